"""What a run's pages say of its end: keys by outcome, and the usual reasons of those that were refused or failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import asyncpg
import orjson

from coordinator.model import Outcome
from crawler.model import DENIED_STATUSES
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.tables import RunTables

# Reasons that are kept for each outcome. The rest is counted together.
KEPT_REASONS = 10
# Newest failures that are shown to who looks at a run.
SHOWN_FAILURES = 10
_SPECIAL = re.compile(r"([\\%_])")
_ANYTHING = re.compile(r"…|(?<!\w)N(?!\w)")


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many keys of a run were refused or failed for a reason, which is None for all reasons that were not kept.

    `denied`: the upstream denied access to them, with one of DENIED_STATUSES.
    """

    outcome: Outcome
    reason: str | None
    keys: int
    denied: bool = False


def like_pattern(text: str) -> str:
    """Pure: the LIKE pattern for text that contains this.

    Where `status` has put together reasons that differ, "…" and a lone N stand for anything.
    """
    return "%" + _ANYTHING.sub("%", _SPECIAL.sub(r"\\\1", text)) + "%"


@dataclass(frozen=True, slots=True)
class Failure:
    """A key that failed or was refused, why, and when its page was fetched."""

    outcome: Outcome
    key: str
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class PagesToRetry:
    """Which pages `retry` deletes, so that their keys are fetched again.

    Without `outcomes` and `statuses` that are the failed ones, and those to which access was denied; with statuses
    alone, pages of every outcome that brought nothing. With `reason` only pages whose reason contains this text, or is
    shown so by `status`. With `digest` only that of this key. With `lists` that are all pages of the lists that are
    incomplete.
    """

    outcomes: tuple[Outcome, ...] = ()
    statuses: tuple[int, ...] = ()
    reason: str | None = None
    lists: bool = False
    digest: bytes | None = None

    @property
    def arguments(self) -> tuple[Sequence[Outcome], Sequence[int] | None, Sequence[int], str | None, bytes | None]:
        """The arguments of the query `delete-pages`."""
        reason = None if self.reason is None else like_pattern(self.reason)
        if not self.outcomes and not self.statuses:
            return (Outcome.FAILED,), None, DENIED_STATUSES, reason, self.digest
        outcomes = self.outcomes or (Outcome.GONE, Outcome.REFUSED, Outcome.FAILED)
        return outcomes, self.statuses or None, (), reason, self.digest


async def count_outcomes(
    connection: PostgresConnection, part: str
) -> tuple[Mapping[Outcome, int], tuple[ReasonCount, ...]]:
    """Keys by outcome and by reason, the most frequent first. Reads the whole part; raises what asyncpg does."""
    rows = await connection.fetch(query("count-reasons", part=part), DENIED_STATUSES, KEPT_REASONS)
    counts: Counter[Outcome] = Counter()
    reasons = []
    for outcome, denied, reason, keys in rows:
        counts[Outcome(outcome)] += keys
        if outcome in (Outcome.REFUSED, Outcome.FAILED):
            reasons.append(ReasonCount(Outcome(outcome), reason, keys, denied))
    return dict(counts), tuple(reasons)


async def newest_failures(connection: PostgresConnection, tables: RunTables) -> tuple[Failure, ...]:
    """The last keys that failed or were refused, the newest first; () when the run has no table of pages.

    Looks only at the last rows of the table, however large it is. Raises what asyncpg does.
    """
    try:
        rows = await connection.fetch(query("newest-failures", part=tables.pages), tables.pages, SHOWN_FAILURES)
    except asyncpg.UndefinedTableError:  # nobody has begun it, or it was pruned meanwhile
        return ()
    return tuple(Failure(Outcome(outcome), key, reason, at) for outcome, key, reason, at in rows)


def encode_reasons(reasons: Sequence[ReasonCount]) -> str:
    """The text of `runs.reasons`."""
    return orjson.dumps([asdict(reason) for reason in reasons]).decode()


def decode_reasons(text: str | None) -> tuple[ReasonCount, ...]:
    """The reasons in `runs.reasons`; none for a run that is not complete, or that an earlier version completed."""
    fields = orjson.loads(text or "[]")
    return tuple(ReasonCount(**{**one, "outcome": Outcome(one["outcome"])}) for one in fields)
