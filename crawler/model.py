"""A key on its way through a worker: the request that asks for it, and the page that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from coordinator.model import NO_ATTEMPTS, Attempts, EntryId, Outcome, ShardId

# Characters of a reason that are kept: it may quote what an upstream or a parser said, and every try.
REASON_LENGTH = 2000


class Headers(Protocol):
    """A response's headers, looked up by name in any case."""

    def get(self, name: str) -> str | None:
        """The first value of the header, or None."""
        ...

    def has(self, names: Iterable[str]) -> bool:
        """Whether any of these headers, written in lower case, is there."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """Every header in the order it came, names in lower case."""
        ...


class HttpResponse(NamedTuple):
    """A whole response: the body is decoded from its content encoding and within the cap."""

    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True)
class OpenBlock:
    """A claimed block of which `left` keys have no committed outcome yet."""

    shard: ShardId
    entry: EntryId
    keys: int
    left: int


class Item(NamedTuple):
    """One key of an open block. A tuple, as one is made for every key: a frozen dataclass takes twice as long."""

    key: str
    digest: bytes
    block: OpenBlock


@dataclass(slots=True, eq=False)
class Request:
    """One HTTP request for some keys. `url` is where it goes next, `first_url` where it went before any redirect."""

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

    `body` is JSON text as it goes into jsonb; `records` are (index of the table, values in column order);
    `fetched_at` is seconds since 1970, UTC. `body_digest` is the XXH3-128 of the body as it came, decoded: it tells
    whether a body changed, and is no proof against somebody who forges one.
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
        """Turn the page into a failed one: what it carried is dropped, the reason is kept, bounded."""
        self.outcome = Outcome.FAILED
        self.reason = reason[:REASON_LENGTH]
        self.body = None
        self.etag = None
        self.last_modified = None
        self.records = []

    @property
    def weight(self) -> int:
        """Bytes that the page holds in memory, nearly."""
        return 512 + len(self.body or b"") + 256 * len(self.records)
