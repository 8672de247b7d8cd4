"""A key on its way through a worker: block, item, request, response, page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from coordinator.model import NO_ATTEMPTS, NO_CONTEXT, Attempts, EntryId, FoundKey, KeyContext, Outcome, ShardId
from coordinator.url import Target

# A reason may quote an upstream or a parser, and has the history of the attempts: so it is bounded.
MAX_REASON_CHARACTERS = 2000
# Statuses with which an upstream denies access: unlike after a 400, another token, place or day may change that. Keys
# that were refused so count against `max_failed`, and go back by `retry`.
DENIED_STATUSES = (401, 403, 407, 451)
# Estimates of the memory that a page takes without its body and records, and that one record takes.
PAGE_BYTES = 512
RECORD_BYTES = 256


class Headers(Protocol):
    """The headers of a response, found by name in upper or lower case."""

    def get(self, name: str) -> str | None:
        """The first value of the header, None when it is missing."""
        ...

    def joined(self, name: str) -> str | None:
        """All values of the header, joined by commas (RFC 9110, section 5.3); None when it is missing."""
        ...

    def has(self, names: Iterable[str]) -> bool:
        """Whether there is any of these headers; the names must be in lower case."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """Every header in the order of the response, names in lower case."""
        ...


class HttpResponse(NamedTuple):
    """A whole response. The body is decoded from its content encoding, and within the job's limit on bytes.

    `coding` is a content encoding that nobody here can undo: the body is as the upstream encoded it. Else it is None.
    A large body has `release`, which gives its memory to others: to be called when the body is needed no longer.
    """

    status: int
    headers: Headers
    body: bytes
    coding: str | None = None
    release: Callable[[], None] | None = None


@dataclass(slots=True)
class OpenBlock:
    """A claimed block. `keys` is how many it has, `left` how many of them have no committed outcome yet.

    With several `deliveries` workers died, or lost their lease, while they had it.
    """

    shard: ShardId
    entry: EntryId
    keys: int
    left: int
    deliveries: int = 1


class Item(NamedTuple):
    """One key of an open block. A tuple: one is made for every key, and a frozen dataclass would take twice as long."""

    key: str
    digest: bytes
    block: OpenBlock
    context: KeyContext = NO_CONTEXT

    @property
    def user_key(self) -> str:
        """The key that the user knows: of a page of a list, that of the list."""
        return self.context.list_key or self.key


class BasePage(NamedTuple):
    """What the base of a refresh has of a key: `url` is the one that responded.

    `fetched_at` is when the content was fetched, or found unchanged, last: seconds since 1970, None when the key failed
    after that. `content` is the digest of the content, empty when that is not whole. `is_kept`: the key keeps it when
    it fails now. A tuple: one is made for every key.
    """

    url: str | None
    etag: str | None
    last_modified: str | None
    fetched_at: float | None
    content: bytes
    is_kept: bool = False

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """The headers that ask for what has changed since then (RFC 9110, section 13.1); none without validators."""
        etag, modified = self.etag, self.last_modified
        if etag is None:
            return () if modified is None else (("If-Modified-Since", modified),)
        first = ("If-None-Match", etag)
        return (first,) if modified is None else (first, ("If-Modified-Since", modified))


@dataclass(frozen=True, slots=True)
class Payload:
    """What a request has beside its target.

    `content_type` is that of the body, None when the job's headers have one. `headers` are those made of the fields of
    a key. Not `with_credentials`: the target is of another origin than the job's. Not `is_repeatable`: an upstream that
    may have received it must not get it again.
    """

    method: str = "GET"
    body: bytes | None = field(default=None, repr=False)  # it may have a secret
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    with_credentials: bool = True
    is_repeatable: bool = True

    @property
    def own_headers(self) -> tuple[tuple[str, str], ...]:
        """`headers`, and the type of the body."""
        return self.headers if self.content_type is None else (*self.headers, ("Content-Type", self.content_type))

    @property
    def may_go_again(self) -> bool:
        """Whether it may be sent after an attempt whose end nobody knows; a redirect can make a GET of it."""
        return self.is_repeatable or self.method == "GET"


GET = Payload()


@dataclass(slots=True, eq=False)
class Request:
    """One HTTP request for one key or several.

    `counted_at` is when its last failed attempt was counted, on the fetcher's clock. `renewed`: it was sent again in
    another session. `is_whole`: it was sent again without conditions. `waits_since` is when it began to wait for its
    first attempt, on the monotonic clock; 0 after that.

    `first_target` is that before any redirect, `target` the one to send next, `hops` how many redirects were followed.
    `attempts` are those of the key with the most of them; `attempts_of` has those of each key, by digest, before this
    request. `base` has, in a refresh, what the base has of keys, by digest.
    """

    first_target: Target
    items: Sequence[Item]
    upstream: str
    attempts: Attempts = NO_ATTEMPTS
    payload: Payload = GET
    attempts_of: Mapping[bytes, Attempts] | None = None
    base: Mapping[bytes, BasePage] | None = None
    target: Target = field(init=False)
    hops: int = 0
    renewed: bool = False
    counted_at: float = -math.inf
    waits_since: float = 0.0
    is_whole: bool = False

    def __post_init__(self) -> None:
        self.target = self.first_target

    @property
    def kind(self) -> str:
        """The kind of its keys."""
        return self.items[0].context.kind

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """The headers by which it asks for what has changed: of one key, at the URL whose response the base has."""
        if self.base is None or self.is_whole or len(self.items) != 1 or self.payload.method not in ("GET", "HEAD"):
            return ()
        page = self.base.get(self.items[0].digest)
        return page.conditions if page is not None and page.url == self.target.href else ()


@dataclass(frozen=True, slots=True)
class Again:
    """What a parser says of a key that is to be requested again, `after` seconds if it says that.

    It counts as a failed attempt, unless the key `waits` for something that is not ready yet.
    """

    reason: str
    after: float | None = None
    waits: bool = False


@dataclass(slots=True)
class Page:
    """The row of one key in the fetch log, and the records that the parser made for it.

    `url` is None for a key that was refused before any request. `fetched_at` is seconds since 1970, UTC. `body` is JSON
    text in UTF-8 for a jsonb column, and `encoding` says how it was decoded: `utf-8`, or `utf-8, 3 replaced`. `content`
    is what is no text, as it was received, and `content_type` its media type; beside a JSON body that is the whole
    Content-Type, which is not stored. `body_digest` is the XXH3-128 of the decoded body: it shows whether a body has
    changed, but does not protect against forged ones. `records` are (index of the table in the job, values in column
    order; before a transform a mapping), `found` the keys that the page named. `again` is set until it is decided what
    follows.

    `final_url` is the URL that responded, where that is another one than `url`. `content_digest` is that of the
    records, None when the page's content is its body, and empty when it has none of its own. `base` is what the base
    of a refresh has of the key; `unmodified` says that this is its content still.
    """

    item: Item
    url: str | None
    outcome: Outcome
    reason: str | None = None
    status: int | None = None
    attempts: int = 0
    fetched_at: float = 0.0
    etag: str | None = None
    last_modified: str | None = None
    body_digest: bytes | None = None
    body: bytes | None = None
    content: bytes | None = None
    content_type: str | None = None
    encoding: str | None = None
    records: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)
    found: list[FoundKey] = field(default_factory=list)
    again: Again | None = None
    final_url: str | None = None
    content_digest: bytes | None = None
    base: BasePage | None = None
    unmodified: bool = False

    @property
    def is_carried(self) -> bool:
        """Whether its content is to be carried over: it has not changed, or the key failed and keeps it."""
        if self.base is None:
            return False
        return self.unmodified or (self.base.is_kept and self.outcome is Outcome.FAILED)

    def fail(self, reason: str) -> None:
        """Make this the page of a failed key, without body, content, validators, records and found keys.

        A long reason is cut. In a refresh the key may keep what the base has of it, and then what it has named.
        """
        self.outcome = Outcome.FAILED
        self.reason = reason[:MAX_REASON_CHARACTERS]
        self.body = self.content = None
        self.content_type = self.encoding = None
        self.etag = self.last_modified = self.final_url = self.content_digest = None
        self.records = []
        self.again = None
        self.unmodified = False
        if not self.is_carried:
            self.found = []

    @property
    def memory_bytes(self) -> int:
        """About how many bytes the page takes in memory."""
        body = len(self.content or self.body or b"")
        named = sum(map(len, (one.key for one in self.found))) if self.found else 0
        return PAGE_BYTES + body + RECORD_BYTES * (len(self.records) + len(self.found)) + named
