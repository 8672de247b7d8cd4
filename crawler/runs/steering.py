"""What changes a run that exists: it is paused, bounded or limited while it goes on, and keys go back into it.

How it is steered Postgres remembers, and Redis tells those who work on the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import DEFAULT, KEEP, LimitOverrides
from coordinator.model import Outcome, Steering
from coordinator.queue.registry import Runs
from coordinator.redis.keys import RunKeys
from coordinator.settings import ANY_UPSTREAM, LimitSettings
from coordinator.source import reads_once
from coordinator.url import parse
from crawler.job.job import read_job
from crawler.job.sections.limits import limit_of, upstream_named
from crawler.runs.naming import name_lock
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

MAX_CONCURRENCY = 100_000
# Python refuses to read a number of some thousand digits.
MAX_DIGITS = 100
# Rate and concurrency, as LimitOverrides.change takes them.
WantedLimit: TypeAlias = tuple[LimitSettings | str | None, int | str | None]


async def steer_run(client: Redis, database: str, name: str, change: Callable[[Steering], Steering]) -> Steering:
    """Steer a run otherwise, at once and for all who work on it; returns how it is steered now.

    Raises UsageError when it is unknown or complete, RunCancelled, RedisUnavailable, PostgresUnavailable,
    PostgresRefused.
    """
    async with name_lock(database, name), open_catalogue(database) as catalogue:
        await catalogue.prepare()
        run = await _known(catalogue, name)
        steering = change(run.steering)
        arguments = (run.run_id, steering.paused, steering.max_workers)
        with postgres_errors():
            if await catalogue.connection.fetchval(query("steer-run"), *arguments) is None:
                await _known(catalogue, name)  # cancelled or deleted meanwhile
                raise UsageError(f"run {name} is complete: nobody works on it any more")
        await Runs(client).steer(name, steering)
    return steering


async def change_limit(catalogue: Catalogue, client: Redis, name: str, upstream: str, wanted: WantedLimit) -> str:
    """Override the limit of an upstream in a run that goes on; returns the upstream's name.

    Raises UsageError for an unknown or complete run, and an upstream that has no budget of its own; RunCancelled,
    RedisUnavailable, PostgresUnavailable.
    """
    run = await catalogue.find(name)
    if run is None:
        known = ", ".join(run.name for run in await catalogue.all()) or "none"
        raise UsageError(f"no run {name}; known runs: {known}")
    run.refuse_cancelled()
    upstream = _own_budget(upstream, run)
    if not await LimitOverrides(client, RunKeys(name)).change(upstream, *wanted):
        lost = "is not in Redis now: let `run`, `coordinate` or `rebuild` open it again"
        why = lost if run.unfinished else "is complete: there is nothing to limit any more"
        raise UsageError(f"run {name} {why}")
    return upstream


def wanted_limit(rate: str | None, ceiling: str | None, concurrency: str | None) -> WantedLimit:
    """Pure: the limit as the user writes it, as arguments of an override. Raises UsageError, also without any."""
    if rate is None and concurrency is None:
        raise UsageError("limit: nothing to change; give --rate, --concurrency, or both")
    return _wanted_rate(rate, ceiling), _wanted_concurrency(concurrency)


def _wanted_rate(rate: str | None, ceiling: str | None) -> LimitSettings | str | None:
    if rate == "default" and ceiling is None:
        return DEFAULT
    return KEEP if rate is None and ceiling is None else limit_of(rate, ceiling, None, "limit:")


def _wanted_concurrency(text: str | None) -> int | str | None:
    if text is None:
        return KEEP
    if text in ("default", "none"):
        return DEFAULT if text == "default" else 0
    if (number := whole_number(text, MAX_CONCURRENCY)) is None:
        raise UsageError(
            f'limit: --concurrency is {text!r:.50}; write a number up to {MAX_CONCURRENCY:,}, "none" or "default"'
        )
    return number


def whole_number(text: str, most: int) -> int | None:
    """Pure: the number from 1 to `most` that a user has written; None for anything else, however long it is."""
    is_short = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS
    return int(text) if is_short and 0 < int(text) <= most else None


def _own_budget(name: str, run: StoredRun) -> str:
    """The upstream of that name, if the run has such a budget: a limit that no request meets would have no effect."""
    limits = read_job(run.document).limits
    upstream = upstream_named(name, f"limit {name}")
    if upstream in limits or upstream == ANY_UPSTREAM:
        return upstream
    if "*" in upstream or "/" in upstream:
        raise UsageError(f"run {run.name} has no upstream {name}; its job names {', '.join(limits) or 'none'}")
    # The default port of a scheme is no part of the upstream's name.
    target = parse(f"{'https' if upstream.endswith(':443') else 'http'}://{upstream}")
    owner = UpstreamMatcher(limits).upstream_of(target)
    if owner != target.origin.upstream:
        raise UsageError(f"{name} is a part of {owner} in run {run.name}; limit that")
    return owner


async def put_back(catalogue: Catalogue, name: str, wanted: PagesToRetry) -> Mapping[Outcome, int]:
    """Delete pages of a run in Postgres, so that their keys are planned again; returns how many, by outcome.

    Raises UsageError for an unknown run, and one whose source cannot be read again; RunCancelled, PostgresUnavailable.
    """
    run = await _known(catalogue, name)
    if reads_once((run.document.get("source") or {}).get("path"), Path.cwd()):
        raise UsageError(f"run {name} read a pipe, which cannot be read again: give a file to a new run")
    job = read_job(run.document, run.folder or ".")
    if wanted.lists and not job.follows:
        raise UsageError(f"run {name} has no lists: its job has no [paginate]")
    return await catalogue.reopen(RunTables.of(run), wanted, job.tables)


async def _known(catalogue: Catalogue, name: str) -> StoredRun:
    """The run of that name. Raises UsageError when there is none, RunCancelled."""
    run = await catalogue.find(name)
    if run is None:
        raise UsageError(f"run {name} is not known; `shardcrawl runs` lists every run")
    run.refuse_cancelled()
    return run
