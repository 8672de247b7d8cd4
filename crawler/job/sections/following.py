"""`[[follow]]`, `[paginate]` and `[kinds]`: how the keys are found that pages name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Annotated, Any

from msgspec import Meta, field

from coordinator.errors import UsageError
from crawler.job.fields import Section, number, text, value
from crawler.job.request.settings import RequestSettings
from crawler.job.request_checks import is_credential

KIND_NAME = r"[a-z][a-z0-9_-]{0,39}"
# Of [request], a kind has these keys of its own; the others hold for all kinds.
KIND_REQUEST_KEYS = frozenset({"url", "keys_per_request", "separator", "method", "json", "form", "body", "idempotent"})
KIND_SECTIONS = ("request", "parse", "paginate")


# The formatter would give each argument a line of its own.
# fmt: off
class FollowSettings(Section, frozen=True, kw_only=True):
    """Keys that a response names are fetched too, once for each such rule. Each key is fetched once, whoever names it.

    They count against the limits and obey robots.txt like all keys. `pages.origin`, `depth` and `kind` say where a key
    was found.
    """

    source: Annotated[str, text(
        "The selector of the keys or links in a response. Links are absolute, without their fragment. A response may "
        "name 50,000 keys.",
        "li.product a @href", absent="what the parser gives to `response.follow`")] | None = field(
            default=None, name="from")
    kind: Annotated[str, text(
        "The kind of the found keys: `[kinds.NAME]` has their sections.",
        "product", f"^{KIND_NAME}$", absent="the kind of the page that names them")] | None = None
    of: Annotated[str, text(
        "The kind of the pages that are searched.",
        "product", f"^{KIND_NAME}$", absent="the keys of the source, and what is found of their kind")] = ""
    allow: Annotated[tuple[str, ...], value(
        "Patterns with * over the whole key or URL; one of them must match. Letters beyond ASCII match as a URL has "
        "them, too.",
        ["*/p/*"])] = ()
    deny: Annotated[tuple[str, ...], value(
        "Patterns with * over the whole key or URL; none of them may match.",
        ["*?sort=*"])] = ()
    hosts: Annotated[str | tuple[str, ...], value(
        'Where links may lead: "same" is the host of the page, "any" is everywhere, or a list of hosts. A host is '
        "every port of it, `host:port` only that one.",
        ["shop.example.org"], write='write "same", "any" or a list of hosts')] = "same"
    depth: Annotated[int, number(
        "How many links lead to a key at most. With it, a depth begins when all keys of the depth before have ended: "
        "so `pages.depth` is the least.",
        3, 1, 1_000_000, absent="no bound")] | None = None
    most: Annotated[int, number(
        "How many keys the rule finds at most, over the whole run.",
        1_000_000, 1, 2**31, absent="no bound")] | None = None


class PaginateSettings(Section, frozen=True, kw_only=True):
    """A list that has several pages: the next page is a key of its own. `next` or `set` says which it is.

    A list ends when there is no next page or an empty one, when a page has no rows, or when `more` does not hold. It is
    incomplete when a page of it fails, when a page comes again, or behind `most`: see [following.md](following.md).
    """

    next: Annotated[str, text(
        "The selector of the next page's URL. From a Link header it takes the one with rel=next.",
        "$header.link")] | None = None
    set: Annotated[str | dict[str, str], value(
        "Parameters of the next request, in its `url`, `json` or `form`: each with the selector of its value, or with "
        'a number that is added, as "+100", to 0 where the request has none. `"a.b"` reaches into `json`. A text alone '
        "is the selector of an object, all of whose members are set.",
        {"cursor": "meta.next_cursor"},
        write='write { parameter = "selector" } or { parameter = "+100" }, or the selector of an object',
        each='needs a selector, or a number to add like "+100"', kind="table of selectors")] = field(
            default_factory=dict)
    more: Annotated[str, text(
        "A condition: the list goes on only while it holds.",
        "has_more")] | None = None
    most: Annotated[int, number(
        "Pages of one list at most.",
        100, 1, 1_000_000_000)] = 10_000


class KindSettings(Section, frozen=True, kw_only=True):
    """The sections of keys of one kind. The kind is part of a key's identity.

    Where other keys have a `url`, credentials go to its host only.
    """

    request: Annotated[dict[str, Any], Meta(
        description="`url` and what else makes a request of a key; the rest of `[request]` holds for all kinds.",
        examples=[{"url": "https://api.example.org/works/{key}"}],
        extra={"each": "is a key of [request]", "absent": "the key is a URL", "kind": "table"})] = field(
            default_factory=dict)
    parse: Annotated[dict[str, Any], Meta(
        description="As `[parse]`.", examples=[{"format": "html"}],
        extra={"each": "is a key of [parse]", "absent": "as `[parse]` with nothing in it", "kind": "table"})] = field(
            default_factory=dict)
    paginate: Annotated[dict[str, Any], Meta(
        description="As `[paginate]`.", examples=[{"next": "a.next @href"}],
        extra={"each": "is a key of [paginate]", "absent": "no list", "kind": "table"})] = field(default_factory=dict)
# fmt: on


def check_following(follow: tuple[FollowSettings, ...], kinds: Mapping[str, Any], *, has_parser: bool) -> None:
    """Raise UsageError for a rule or a kind that comes to nothing. `has_parser`: it may call response.follow."""
    for number_, rule in enumerate(follow, 1):
        where = f"job: [[follow]] {number_}"
        for key, kind in (("kind", rule.kind), ("of", rule.of)):
            if kind:
                check_kind(f"{where}: {key}", kind, kinds)
        if isinstance(rule.hosts, str) and rule.hosts not in ("same", "any"):
            raise UsageError(f'{where}: hosts is {rule.hosts!r}; write "same", "any" or a list of hosts')
        if rule.source is None and not has_parser:
            raise UsageError(f"{where}: say where the keys are, by from; without it a parser calls response.follow")
    unreached = set(kinds) - {rule.kind for rule in follow}
    if unreached and not has_parser:
        name = min(unreached)
        raise UsageError(f"job: [kinds.{name}]: no key is of this kind; write kind = {name!r} in a [[follow]]")


def check_kind(where: str, kind: str, kinds: Mapping[str, Any]) -> None:
    """Raise UsageError for a kind that the job does not have."""
    if kind not in kinds:
        close = get_close_matches(kind, kinds, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"[kinds] has {', '.join(kinds) or 'none'}"
        raise UsageError(f"{where} is {kind!r}; {known}")


def check_paginate(where: str, settings: PaginateSettings | None) -> None:
    """Raise UsageError for a list that cannot go on."""
    if settings is None:
        return
    if settings.next is None and not settings.set:
        raise UsageError(f"job: {where}: say where the next page is, by next or set")
    if settings.next is not None and settings.set:
        raise UsageError(f"job: {where}: next and set both say where the next page is; leave one out")


def kind_request(where: str, shared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The `[request]` of a kind: its own keys, and of those for all kinds what holds for it. Raises UsageError.

    Credentials go to the hosts of a `url`, or of `hosts`: so a kind whose keys are URLs has none when another has one.
    """
    for key in given:
        if key in RequestSettings.__struct_encode_fields__ and key not in KIND_REQUEST_KEYS:
            raise UsageError(f"job: [{where}] {key}: stands in [request], for all kinds")
    found = {key: value for key, value in shared.items() if key not in KIND_REQUEST_KEYS}
    if "url" in given:
        found.pop("hosts", None)
    elif "url" in shared:
        headers = {name: text for name, text in _dict(found.pop("headers", {})) if not is_credential(name, str(text))}
        found = {key: value for key, value in found.items() if key not in ("auth", "cookies", "login")}
        found["headers"] = headers
    return {**found, **given}


@contextmanager
def in_kind(name: str) -> Iterator[None]:
    """Let errors say where they stand in the sections of a kind, which is empty for the keys of the source."""
    try:
        yield
    except UsageError as error:
        if not name:
            raise
        raise UsageError(re.sub(r"\[(request|parse)\]", rf"[kinds.{name}.\1]", str(error))) from None


def _dict(given: Any) -> list[tuple[str, Any]]:
    return list(given.items()) if isinstance(given, Mapping) else []


def is_step(text: str) -> bool:
    """Whether this is a number to add, like "+100"."""
    return text[:1] == "+" and text[1:].isdecimal() and text.isascii()
