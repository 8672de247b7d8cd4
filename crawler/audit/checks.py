"""Pure: compares what source, Postgres, Redis and an upstream's log say about a run; each comparison is a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.model import Outcome, RunCounts, RunState

MAX_EXAMPLES = 5
STORED_WITHOUT_RECORD = "stored keys without a record"


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison: what was compared, what was found and expected, whether it holds, and examples or a reason."""

    what: str
    found: int | str
    expected: int | str
    ok: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class InSource:
    """The source, compared with the pages: `lines` counts a key as often as it occurs, `keys` once.

    `missing` keys have no page, `unknown` pages have no key. `changed` says whether the source has changed since the
    run began; it stays False when that is not known. Found keys count as keys of the source of a run that `follows`.
    """

    lines: int
    keys: int
    missing: int
    unknown: int
    follows: bool = False
    changed: bool = False
    missing_examples: Sequence[str] = ()
    unknown_examples: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Orphans:
    """Records of one table whose key has no page with content in this run, and was not kept of the run before."""

    table: str
    records: int
    examples: Sequence[str]


@dataclass(frozen=True, slots=True)
class StoredWithoutRecord:
    """Stored keys of which no table of the job has a record, and whether `[parse] no_record` allows them."""

    keys: int
    examples: Sequence[str]
    allowed: bool


@dataclass(frozen=True, slots=True)
class InPostgres:
    """A run's rows: `pages` by outcome, also by values that are no outcome of ours.

    `empty` is None when the job has no tables. `counts` are the final ones in `runs`; `attached` are those of its
    `tables` of which the run is a partition.
    """

    complete: bool
    counts: Mapping[Outcome, int]
    pages: Mapping[str, int]
    digests: int
    orphans: Sequence[Orphans]
    empty: StoredWithoutRecord | None
    tables: Sequence[str]
    attached: Sequence[str]
    published: bool

    @property
    def total(self) -> int:
        """All pages."""
        return sum(self.pages.values())


@dataclass(frozen=True, slots=True)
class InRedis:
    """A run in Redis: state, counts, members of the done set, blocks in its streams, `stray` keys that no code uses.

    `skipped` keys were done already when the planner read them; `workers` are those whose lease has not ended.
    """

    state: RunState
    counts: RunCounts
    skipped: int
    done: int
    blocks: int
    workers: int
    stray: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Other sessions of the database: how many hold a staging table of the run, and which are idle in a transaction."""

    staging: int
    idle: Sequence[str]


@dataclass(frozen=True, slots=True)
class LoggedRequests:
    """The upstream's own log: how many keys were requested in total, how many distinct ones, and some repeated ones.

    `other_lines` are no requests, `other_line` is one of them.
    """

    total: int
    distinct: int
    examples: Sequence[str]
    other_lines: int = 0
    other_line: str = ""


def compare(
    source: InSource | Finding,
    postgres: InPostgres,
    redis: InRedis | Finding,
    sessions: Sessions,
    logged: LoggedRequests | None,
    allowed: int,
) -> list[Finding]:
    """Everything that must be true of a run; a source or a Redis that could not be compared is a finding itself.

    Of a run that goes on, `redis` was read before `postgres`: a page is committed before it is counted in Redis, so
    Redis may know less, never more.
    """
    workers = 0 if isinstance(redis, Finding) else redis.workers
    return [
        *([source] if isinstance(source, Finding) else _of_source(source, postgres, redis)),
        *_of_postgres(postgres),
        *([redis] if isinstance(redis, Finding) else _of_redis(redis, postgres)),
        *_of_sessions(sessions, 0 if postgres.complete else workers),
        *([] if logged is None else _of_requests(logged, allowed)),
    ]


def _of_source(source: InSource, postgres: InPostgres, redis: InRedis | Finding) -> list[Finding]:
    findings = [_none("pages of keys that are not in the source", source.unknown, such_as(source.unknown_examples))]
    if source.changed:
        findings.append(Finding("the source", "changed since the run began", "as it was", False))
    if postgres.complete:
        return [
            _none("keys of the source without a page", source.missing, such_as(source.missing_examples)),
            *findings,
        ]
    what = "keys of the source not finished yet"
    if isinstance(redis, Finding) or source.follows:  # a key that a page named can be published twice
        return [Finding(what, source.missing, "the rest", True), *findings]
    # A line has its page if it was skipped as done, or if its key is resolved. The others may still be without one.
    rest = source.lines - redis.counts.resolved - redis.skipped
    return [_at_most(what, source.missing, rest, "keys are neither stored nor queued nor still to be read"), *findings]


def _of_postgres(postgres: InPostgres) -> list[Finding]:
    unknown = {outcome: keys for outcome, keys in postgres.pages.items() if outcome not in set(Outcome)}
    findings = [
        _none("pages without one of the five outcomes", sum(unknown.values()), such_as(list(unknown))),
        _none("pages beyond one a key", postgres.total - postgres.digests),
    ]
    findings += [
        _none(f"records in {table.table} without a stored page", table.records, such_as(table.examples))
        for table in postgres.orphans
    ]
    if (empty := postgres.empty) is not None:
        expected_keys = "any, by [parse] no_record" if empty.allowed else "0"
        ok = empty.allowed or not empty.keys
        findings.append(Finding(STORED_WITHOUT_RECORD, empty.keys, expected_keys, ok, such_as(empty.examples)))
    if postgres.complete:
        final = {outcome.value: keys for outcome, keys in postgres.counts.items()}
        findings.append(_same("final counts of the run", _words(final), _words(postgres.pages)))
    return [*findings, _of_readers(postgres)]


def _of_readers(postgres: InPostgres) -> Finding:
    """A published run is a partition of all of its tables. Another one is of none; or of all, if who published it died
    before readers saw it, or saw that it may not be published any more.
    """
    what, found, all_tables = (
        "tables where readers see the run",
        ", ".join(postgres.attached),
        ", ".join(postgres.tables),
    )
    if postgres.published:
        return _same(what, found or "none", all_tables)
    return Finding(what, found or "none", "none, or all of them", found in ("", all_tables))


def _of_redis(redis: InRedis, postgres: InPostgres) -> list[Finding]:
    stray = _none("stray Redis keys", len(redis.stray), such_as(redis.stray))
    outcomes = {outcome.value: keys for outcome, keys in redis.counts.outcomes.items()}
    if not postgres.complete:
        return [
            Finding(
                *("state in Redis", redis.state, "running or resolved", redis.state is not RunState.COMPLETE),
                note="complete in Redis, not in Postgres" if redis.state is RunState.COMPLETE else "",
            ),
            # Not by outcome, which may differ: a key that was fetched again after a crash keeps its first page.
            _at_most("keys done, as Redis counts them", redis.counts.done, postgres.total, "done without a page"),
            _at_most("digests in the done set", redis.done, postgres.total, "done without a page"),
            _at_most("published keys that are resolved", redis.counts.resolved, redis.counts.published),
            stray,
        ]
    return [
        _same("state in Redis", redis.state, RunState.COMPLETE.value),
        _same("outcomes, as Redis counts them", _words(outcomes), _words(postgres.pages)),
        # An earlier version left the whole done set.
        _none("digests in the done set", redis.done if redis.done != postgres.total else 0, "not needed any more"),
        _same("published keys that are resolved", redis.counts.resolved, redis.counts.published),
        _none("blocks left in the streams", redis.blocks),
        stray,
    ]


def _of_sessions(sessions: Sessions, workers: int) -> list[Finding]:
    staging = "staging tables of sessions"
    return [
        _at_most(staging, sessions.staging, workers) if workers else _none(staging, sessions.staging),
        _none("sessions idle in a transaction", len(sessions.idle), "; ".join(sessions.idle[:MAX_EXAMPLES])),
    ]


def _of_requests(logged: LoggedRequests, allowed: int) -> list[Finding]:
    repeated = logged.total - logged.distinct
    findings = [_at_most("requests for a key that was asked before", repeated, allowed, such_as(logged.examples))]
    if logged.other_lines:
        note = such_as([logged.other_line])
        what = "lines of the log that are no requests"
        findings.append(Finding(what, logged.other_lines, "not counted", logged.total > 0, note))
    return findings


def _same(what: str, found: int | str, expected: int | str, note: str = "") -> Finding:
    return Finding(what, found, expected, found == expected, "" if found == expected else note)


def _none(what: str, found: int, note: str = "") -> Finding:
    return _same(what, found, 0, note)


def _at_most(what: str, found: int, most: int, note: str = "") -> Finding:
    return Finding(what, found, f"at most {most}", found <= most, "" if found <= most else note)


def such_as(examples: Sequence[str]) -> str:
    """A few examples as one text."""
    return f"such as {', '.join(examples[:MAX_EXAMPLES])}" if examples else ""


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts) if counts[outcome]) or "none"
