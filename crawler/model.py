"""A key on its way through a worker: block, item, request, response, page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from coordinator.model import NO_ATTEMPTS, Attempts, EntryId, Outcome, ShardId

# A reason may quote an upstream or a parser, and has the history of the attempts: so it is bounded.
MAX_REASON_CHARACTERS = 2000
# Estimates of the memory that a page takes without its body and records, and that one record takes.
PAGE_BYTES = 512
RECORD_BYTES = 256


class Headers(Protocol):
    """The headers of a response, found by name in upper or lower case."""

    def get(self, name: str) -> str | None:
        """The first value of the header, None when it is missing."""
        ...

    def has(self, names: Iterable[str]) -> bool:
        """Whether there is any of these headers; the names must be in lower case."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """Every header in the order of the response, names in lower case."""
        ...


class HttpResponse(NamedTuple):
    """A whole response. The body is decoded from its content encoding, and within the job's limit on bytes."""

    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True)
class OpenBlock:
    """A claimed block. `keys` is how many it has, `left` how many of them have no committed outcome yet."""

    shard: ShardId
    entry: EntryId
    keys: int
    left: int


class Item(NamedTuple):
    """One key of an open block. A tuple: one is made for every key, and a frozen dataclass would take twice as long."""

    key: str
    digest: bytes
    block: OpenBlock


@dataclass(slots=True, eq=False)
class Request:
    """One HTTP request for one key or several.

    `first_url` is the URL before any redirect, `url` the one to send next, `hops` how many redirects were followed.
    """

    first_url: str
    items: Sequence[Item]
    upstream: str
    attempts: Attempts = NO_ATTEMPTS
    url: str = ""
    hops: int = 0

    def __post_init__(self) -> None:
        self.url = self.url or self.first_url


@dataclass(slots=True)
class Page:
    """The row of one key in the fetch log, and the records that the parser made for it.

    `url` is None for a key that was refused before any request. `fetched_at` is seconds since 1970, UTC. `body` is JSON
    text for a jsonb column. `body_digest` is the XXH3-128 of the decoded body: it shows whether a body has changed, but
    does not protect against forged ones. `records` are (index of the table in the job, values in column order).
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
    records: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Make this the page of a failed key, without body, validators and records. A long reason is cut."""
        self.outcome = Outcome.FAILED
        self.reason = reason[:MAX_REASON_CHARACTERS]
        self.body = None
        self.etag = None
        self.last_modified = None
        self.records = []

    @property
    def memory_bytes(self) -> int:
        """About how many bytes the page takes in memory."""
        return PAGE_BYTES + len(self.body or b"") + RECORD_BYTES * len(self.records)
