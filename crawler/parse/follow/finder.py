"""Finds the keys that a response names: by the job's rules, by the parser's `response.follow`, and as the next page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import quote

from coordinator.errors import UsageError
from coordinator.model import FoundKey, KeyContext, Outcome
from coordinator.queue.recent import RecentKeys
from coordinator.queue.sharding import digest
from coordinator.queue.wire import MAX_DEPTH
from coordinator.source.key_rule import KeyRule, refuse
from coordinator.url import DEFAULT_PORTS, InvalidUrl, Origin, Target, parse
from crawler.job.job import Job
from crawler.job.sections.following import FollowSettings
from crawler.model import Item, Page
from crawler.parse.follow.lists import ListPages
from crawler.parse.received import Received
from crawler.parse.select.formats import language_of
from crawler.parse.select.language import scope_of
from crawler.parse.select.path import ABSENT, Node, SelectorError
from crawler.parse.select.selector import compile_selector
from crawler.parse.values.shown import abbreviated

# A page that names more is one that a program made; its keys would fill Postgres before anybody sees it.
MOST_FOUND = 50_000
# Short links can become long URLs, because each has the page's path before it.
MOST_FOUND_CHARACTERS = 32_000_000
# Of so many texts those that were found before are left out at once. Of more each one counts against the bounds above.
MOST_LEFT_OUT = 1000
# A URL of so many characters is never longer than a key may be.
MOST_SURE_CHARACTERS = 2000
# Of a rule that bounds nothing, by `response.follow`.
_ANY = FollowSettings(hosts="any")
_UNBOUNDED = -1
_SCHEME = re.compile(r"[\0- ]*([A-Za-z][A-Za-z0-9+.-]*):")


class _Rule:
    """One `[[follow]]`, compiled. `number` is its place in the job, by which `most` counts. Raises UsageError."""

    def __init__(self, number: int, settings: FollowSettings) -> None:
        self.number = number if settings.most is not None else _UNBOUNDED
        self.depth = settings.depth or MAX_DEPTH
        self._hosts = None if settings.hosts == "any" else _hosts(number, settings.hosts)
        self._allows, self._denies = _any_of(settings.allow), _any_of(settings.deny)

    def takes(self, key: str, target: Target | None, page: Target) -> bool:
        """Whether the rule takes a key, which has a target when it is a URL itself."""
        if self._allows is not None and not self._allows(key):
            return False
        if self._denies is not None and self._denies(key):
            return False
        if target is None or self._hosts is None:
            return True
        if not self._hosts and target.origin is page.origin:
            return True
        hosts = self._hosts or {page.origin.upstream_host}
        return target.origin.upstream_host in hosts or _host_and_port(target.origin) in hosts


class Finder:
    """What the pages of one kind name. Raises UsageError when a selector cannot be compiled.

    Keys that are in `recent`, that of their kind, are left out.
    """

    def __init__(self, job: Job, kind: str, recent: Mapping[str, RecentKeys] | None = None) -> None:
        self._recent = recent
        own = job.kinds[kind] if kind else job
        self._kind = kind
        self._language = language_of(own.parse.format)
        self._are_urls = {one.kind: one.request.url is None for one in job.every_kind}
        self._key_rules = {one.kind: _key_rule(one) for one in job.every_kind}
        rules = [(number, rule) for number, rule in enumerate(job.follow) if rule.of == kind]
        self._rules = [
            (_Rule(number, rule), kind if rule.kind is None else rule.kind, self._compiled(number, rule))
            for number, rule in rules
            if rule.source is not None
        ]
        named = [(number, rule) for number, rule in rules if rule.source is None]
        self._named = {kind if rule.kind is None else rule.kind: _Rule(number, rule) for number, rule in named}
        self._list = None if own.paginate is None else ListPages(own, self._language)
        self._is_unbounded = not any(rule.depth or rule.most for rule in job.follow)

    def find(self, pages: Sequence[Page], response: Received) -> None:
        """Give the pages what they name. Raises ValueError when the response has not what it must have."""
        page = next((page for page in pages if page.outcome is Outcome.STORED and page.again is None), None)
        if page is None:
            return
        found: dict[bytes, FoundKey] = {}
        characters = 0
        for one in self._followed(page.item, response):
            if one.rule == _UNBOUNDED or one.digest not in found:  # what another rule takes too counts for no bound
                found[one.digest] = one
            characters += len(one.key)
            if len(found) > MOST_FOUND or characters > MOST_FOUND_CHARACTERS:
                what = f"keys of more than {MOST_FOUND_CHARACTERS // 1_000_000} MB"
                what = f"more than {MOST_FOUND:,} keys" if len(found) > MOST_FOUND else what
                raise SelectorError(f"follow: the response names {what}, and none is followed")
        found.pop(page.item.digest, None)  # a page that names itself
        page.found = list(found.values())
        if self._list is not None:
            seen, following = self._list.content_of(response), None
            page.reason = self._list.repeats(page.item, response, seen)
            if page.reason is not None:
                page.records = []  # they are those of another page
            else:
                has_records = any(page.records for page in pages)
                following, page.reason = self._list.next(page.item, response, has_records, seen)
            if following is not None:
                if len(pages) > 1:
                    raise SelectorError("the response has a next page, and it is not known of which key")
                if not self._is_followed(following, found):
                    page.found.append(following)

    def _is_followed(self, following: FoundKey, found: Mapping[bytes, FoundKey]) -> bool:
        """Whether the next page is a key anyway, by a rule that takes the links of a list's pages too.

        Each of them would be the first page of a list of its own, and a list of n pages cost n²/2 requests. A rule with
        a bound may leave it out, and a key has no fields of the list.
        """
        context = following.context
        if context.params or context.fields or not (self._is_unbounded and self._are_urls[self._kind]):
            return False
        if self._recent is not None and not self._recent[self._kind].new([following.key]):
            return True
        return digest(following.key, KeyContext(self._kind)) in found

    def _followed(self, item: Item, response: Received) -> Iterator[FoundKey]:
        if self._rules:
            scope = scope_of(response, self._language)
            for rule, kind, select in self._rules:
                texts: Sequence[str] = list(_texts(select(Node(scope.root), scope)))
                if self._recent is not None and len(texts) <= MOST_LEFT_OUT:
                    texts = self._recent[kind].new(texts)
                if texts:
                    yield from self._found(item, dict.fromkeys(texts), kind, rule, parse(response.url))
        for text, given in response.followed:
            kind = self._kind if given is None else given
            if kind not in self._are_urls:
                known = ", ".join(filter(None, self._are_urls)) or "none"
                raise ValueError(f"response.follow: no kind {kind!r}; [kinds] has {known}")
            yield from self._found(
                item, [text], kind, self._named.get(kind, _Rule(_UNBOUNDED, _ANY)), parse(response.url)
            )

    def _found(self, item: Item, texts: Iterable[str], kind: str, rule: _Rule, page: Target) -> Iterator[FoundKey]:
        """The keys that texts stand for, without those that the rule does not take."""
        context = KeyContext(kind, item.context.depth + 1, origin=item.digest)
        if context.depth > rule.depth:
            return
        are_urls, key_rule = self._are_urls[kind], self._key_rules[kind]
        for text in texts:
            target, reason, key = None, None, text.strip()
            if not key:
                continue
            if are_urls:
                try:
                    target = parse(key, page)
                    if "#" in key and target.href == page.href:
                        continue  # a place in the page itself
                    key = target.href
                except InvalidUrl as error:
                    if not may_be_page(key):
                        continue
                    reason = str(error)
            # A URL that is parsed can only be too long, or have the separator in it.
            if reason is None and (target is None or key_rule.separator or len(key) > MOST_SURE_CHARACTERS):
                reason = None if key_rule.surely_key(key) else key_rule.reason(key)
            if reason is not None:
                key = refuse(key, 0, reason).key.removesuffix(" (line 0)")
            if rule.takes(key, target, page):
                refusal = "" if reason is None else f"it {reason}"
                yield FoundKey(digest(key, context), key, context, rule.number, refusal)

    def _compiled(self, number: int, rule: FollowSettings) -> Callable[[Node, Any], Any]:
        assert rule.source is not None
        source = rule.source
        if self._language.is_text and "[]" not in source and not re.match(r"\$[a-z]", source):
            css, at, attribute = source.removesuffix("?").partition(" @")
            source = f"{css.rstrip()}[]{at}{attribute}"
        try:
            return compile_selector(source, self._language).select
        except ValueError as error:
            raise UsageError(f"job: [[follow]] {number + 1}: from: {error}") from error


def may_be_page(link: str) -> bool:
    """Whether a link that cannot be requested was meant to lead to a page, as mailto: and javascript: are not."""
    scheme = _SCHEME.match(re.sub("[\t\n\r]", "", link))  # which browsers remove
    return scheme is None or scheme[1].lower() in DEFAULT_PORTS


def _key_rule(job: Job) -> KeyRule:
    separator = job.request.separator if job.request.keys_per_request > 1 else None
    return KeyRule(absolute_url=job.request.url is None, separator=separator)


def _any_of(patterns: Sequence[str]) -> Callable[[str], object] | None:
    """Whether one of the patterns matches the whole text, in linear time; None without patterns.

    What a URL has percent-encoded, like é, matches both as it is and encoded.
    """
    texts = [_linear(*map(_literal, pattern.split("*"))) for pattern in patterns]
    return re.compile("|".join(texts), re.DOTALL).fullmatch if texts else None


def _literal(text: str) -> str:
    return "".join(
        re.escape(one) if "!" <= one <= "~" else f"(?:{re.escape(one)}|(?i:{quote(one, errors='replace')}))"
        for one in text
    )


def _linear(begin: str, *rest: str) -> str:
    """An expression for these parts with anything between them. Each is looked for once: the first place is as good."""
    return begin + "".join(f"(?>.*?{part})" for part in rest[:-1]) + "".join(f".*{part}" for part in rest[-1:])


def _hosts(number: int, hosts: str | Sequence[str]) -> frozenset[str]:
    """The hosts of a rule, each as it stands in a URL; none stands for that of the page. Raises UsageError."""
    found = set()
    for host in () if isinstance(hosts, str) else hosts:
        try:
            origin = parse(f"http://{host}/" if not re.search("[/?#@]", host) else "http://").origin
        except InvalidUrl as error:
            raise UsageError(f"job: [[follow]] {number + 1}: hosts: {host!r} {error}") from error
        if "*" in host:
            raise UsageError(
                f'job: [[follow]] {number + 1}: hosts: {host!r} is no single host; write each of them, or "any"'
            )
        found.add(_host_and_port(origin) if re.search(r":[0-9]+$", host) else origin.upstream_host)
    return frozenset(found)


def _host_and_port(origin: Origin) -> str:
    return f"{origin.upstream_host}:{origin.port}"


def _texts(value: Any) -> Iterable[str]:
    """The texts in what a selector leads to. Raises SelectorError for anything else."""
    if value is ABSENT or value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, (list, tuple)):
        return value if set(map(type, value)) == {str} else chain.from_iterable(map(_texts, value))
    shown = "an object" if isinstance(value, Mapping) else abbreviated(value)
    raise SelectorError(f"follow: {shown} is no key; select texts or numbers")
