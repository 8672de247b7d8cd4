"""The next page of a list: what its request is, and when the list ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from types import NoneType
from typing import Any
from urllib.parse import parse_qs

import orjson
from xxhash import xxh3_128_digest

from coordinator.errors import UsageError
from coordinator.model import FoundKey, KeyContext
from coordinator.queue.sharding import digest
from coordinator.source.key_rule import MAX_KEY_BYTES
from coordinator.url import InvalidUrl, parse
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.sections.following import is_step
from crawler.model import Item
from crawler.parse.content import digest_of_records
from crawler.parse.received import Received
from crawler.parse.select.condition import compile_condition
from crawler.parse.select.language import Language, Scope, scope_of
from crawler.parse.select.path import ABSENT, Node, SelectorError
from crawler.parse.select.selected import Nodes, compile_rows
from crawler.parse.select.selector import Selector, compile_selector
from crawler.parse.values.shown import abbreviated

INCOMPLETE = "list incomplete"
# A target of a Link header, and one of the parameters behind it (RFC 8288, appendix B).
_TARGET = re.compile(r"<([^<>]*)>")
_PARAMETER = re.compile(r'\s*;\s*([^\s=;,]*)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^,;"]*)))?', re.DOTALL)
_NO_LINK = re.compile(r"\s*javascript:", re.IGNORECASE)
# What a block in the queue can have.
_MAX_INTEGER = 2**63 - 1


class ListPages:
    """The lists of one kind's keys. Raises UsageError when a selector cannot be compiled."""

    def __init__(self, job: Job, language: Language) -> None:
        settings = job.paginate
        assert settings is not None
        self._language = language
        self._where = f"[kinds.{job.kind}.paginate]" if job.kind else "[paginate]"
        self._most = settings.most
        self._template = Template(job.request)
        self._sent = job.request.json or job.request.form
        self._rows = None if job.parse.python else _rows_of(job, language)
        self._parser_makes_rows = bool(job.own_tables)
        self._next = None if settings.next is None else self._compiled("next", settings.next)
        self._is_link_header = (settings.next or "").lower().rstrip("?") == "$header.link"
        self._steps: dict[str, int] = {}
        self._set: dict[str, Selector] = {}
        self._members: Selector | None = None
        if isinstance(settings.set, str):
            self._members = self._compiled("set", settings.set)
        else:
            for name, given in settings.set.items():
                if is_step(given):
                    self._steps[name] = int(given)
                else:
                    self._set[name] = self._compiled(f"set.{name}", given)
        try:
            self._more = None if settings.more is None else compile_condition(settings.more, language)
        except ValueError as error:
            raise UsageError(f"job: {self._where} more: {error}") from error

    def next(
        self, item: Item, response: Received, has_records: bool, seen: bytes
    ) -> tuple[FoundKey | None, str | None]:
        """The next page of one that `repeats` none, None at the list's end; and why the list is incomplete, or None.

        `has_records`: the response has records for the job's tables. `seen` is what `content_of` says of it. Raises
        SelectorError.
        """
        context = item.context
        scope = scope_of(response, self._language)
        if not has_records and self._is_empty(scope):
            return None, None
        if self._more is not None and self._more.holds(Node(scope.root), scope) is None:
            return None, None
        try:
            following = self._by_params(item, scope) if self._next is None else self._by_url(response, scope)
        except InvalidUrl as error:  # it is not shown: it may have a password
            return None, f"{INCOMPLETE}: the URL of the next page {error}"
        if following is None:
            return None, None
        key, params = following
        if context.page_no >= self._most:
            return None, f"{INCOMPLETE}: it has more than {self._most} pages ({self._where} most)"
        found = KeyContext(
            kind=context.kind,
            depth=context.depth,
            page_no=context.page_no + 1,
            origin=item.digest,
            fields=context.fields,
            list_key=context.list_key or item.key,
            params=params,
            seen=seen,
        )
        if key == response.url or self._is_requested_before(key, found, item):
            return None, f"{INCOMPLETE}: page {context.page_no} names itself, or the first page, as the next one"
        if len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
            return None, f"{INCOMPLETE}: the next page's address is longer than {MAX_KEY_BYTES} bytes"
        return FoundKey(digest(key, found), key, found), None

    def content_of(self, response: Received) -> bytes:
        """What tells whether a page is the one before it: the digest of its rows as they stand there, else of its body.

        A server that sends its last page for ever may write another page number, time or token around the same rows.
        Rows that are plain values may well be those of the page before. Raises SelectorError.
        """
        scope = scope_of(response, self._language)
        rows = [node.value for nodes in self._rows or () for node in nodes(scope)]
        if not rows or isinstance(rows[0], (str, int, float, Decimal, NoneType)):
            return xxh3_128_digest(response.body)
        return digest_of_records([(0, tuple(getattr(row, "html", row) for row in rows))])

    def repeats(self, item: Item, response: Received, seen: bytes) -> str | None:
        """Why the rows of a page are those of another page of its list; None when they are not."""
        context = item.context
        if context.seen == seen:
            return f"{INCOMPLETE}: page {context.page_no} is the same as the one before"
        if context.list_key and self._template.target([item.key], context).href != response.url:
            first = self._template.target([context.list_key], KeyContext(context.kind, fields=context.fields))
            if response.url == first.href:
                return f"{INCOMPLETE}: page {context.page_no} was redirected to the first page"
        return None

    def _is_requested_before(self, key: str, found: KeyContext, item: Item) -> bool:
        """Whether the request for the next page is the one of this page or of the first one."""
        context = item.context
        try:
            first = self._template.build([found.list_key], KeyContext(context.kind, fields=context.fields))
            before = (first, self._template.build([item.key], context))
            if not found.params:
                return key in {target.href for target, _ in before}
            return self._template.build([key], found) in before
        except InvalidUrl:  # which the next page's own outcome says
            return False

    def _is_empty(self, scope: Scope) -> bool:
        """Whether a page has no rows. Those that the job leaves out are rows, and without `rows` every page has one."""
        if self._rows is None:
            return self._parser_makes_rows
        return bool(self._rows) and not any(True for nodes in self._rows for _ in nodes(scope))

    def _by_url(self, response: Received, scope: Scope) -> tuple[str, Mapping[str, Any]] | None:
        """The next page by its URL. Raises InvalidUrl, and SelectorError when it is no text."""
        assert self._next is not None
        value = self._next.select(Node(scope.root), scope)
        if self._is_link_header and isinstance(value, str):
            value = next_link(value)
        if value is ABSENT or value is None or value is False:
            return None
        if not isinstance(value, str):
            raise SelectorError(f"{self._where} next: {abbreviated(value)} is no URL; select one text")
        page = parse(response.url)
        # As buttons have it that lead to no page.
        if not value.strip() or _NO_LINK.match(value):
            return None
        following = parse(value, page)
        return None if "#" in value and following.href == page.href else (following.href, {})

    def _by_params(self, item: Item, scope: Scope) -> tuple[str, Mapping[str, Any]] | None:
        """The next page by what it changes in the request of the list's key. Raises SelectorError."""
        node = Node(scope.root)
        params: dict[str, Any] = {name: self._current(name, item) + step for name, step in self._steps.items()}
        for name, selector in self._set.items():
            value = selector.select(node, scope)
            if value is ABSENT or value is None or value == "" or value is False:
                return None
            params[name] = value
        if self._members is not None:
            value = self._members.select(node, scope)
            if value is ABSENT or not value:
                return None
            if not isinstance(value, Mapping):
                raise SelectorError(f"{self._where} set: {abbreviated(value)} is no object")
            params.update(value)
        for name, value in params.items():
            is_large = isinstance(value, int) and abs(value) > _MAX_INTEGER
            if is_large or not isinstance(value, (str, int, float)) or not _is_unicode(value):
                what = "is no text, and no number of 64 bits"
                raise SelectorError(f"{self._where} set.{name}: {abbreviated(value)} {what}")
        return params_key(item.context.list_key or item.key, params), params

    def _current(self, name: str, item: Item) -> int:
        """The number that a parameter has in the request of this page, before any redirect; 0 when it has none."""
        value: Any = item.context.params.get(name)
        if value is None:
            query = self._template.target([item.key], item.context).path.partition("?")[2]
            value = next(iter(parse_qs(query).get(name, ())), None)
        if value is None:
            value = _member(self._sent, name)
        try:
            return int(value or 0)
        except (TypeError, ValueError):
            raise SelectorError(f"{self._where} set.{name}: {abbreviated(value)} is no number to add to") from None

    def _compiled(self, key: str, text: str) -> Selector:
        try:
            return compile_selector(text, self._language)
        except ValueError as error:
            raise UsageError(f"job: {self._where} {key}: {error}") from error


def next_link(header: str) -> str | None:
    """The target with the relation type "next" in a Link header (RFC 8288); None when there is none.

    A link with `anchor` is one of another resource than the response.
    """
    at = 0
    while (target := _TARGET.search(header, at)) is not None:
        at = target.end()
        found: dict[str, str] = {}
        while (parameter := _PARAMETER.match(header, at)) is not None:
            at = parameter.end()
            value = re.sub(r"\\(.)", r"\1", parameter[2] or "") or parameter[3] or ""
            found.setdefault(parameter[1].lower(), value)  # the first one counts
        if "next" in found.get("rel", "").lower().split() and "anchor" not in found:
            return target[1]
    return None


def params_key(list_key: str, params: Mapping[str, Any]) -> str:
    """The key of a page of a list that has parameters of its own."""
    return f"{list_key} {orjson.dumps(params).decode()}"


def _rows_of(job: Job, language: Language) -> list[Nodes]:
    """The rows of each table, or those of the format when there is no table; none where a response is a row."""
    texts = dict.fromkeys(table.rows or job.parse.rows for table in job.own_tables) or {job.parse.rows: None}
    return [] if None in texts and not language.has_lines else [compile_rows(text, language) for text in texts]


def _is_unicode(value: Any) -> bool:
    return not isinstance(value, str) or value.isascii() or not re.search("[\ud800-\udfff]", value)


def _member(value: Any, dotted: str) -> Any:
    if isinstance(value, Mapping) and dotted in value:
        return value[dotted]
    for name in dotted.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
