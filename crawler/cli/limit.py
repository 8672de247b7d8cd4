"""What `limit` does: one upstream's limit in a run that goes on, changed for all of its workers at once."""

from __future__ import annotations

from coordinator.errors import UsageError
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import DEFAULT, KEEP, LimitOverrides
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys
from coordinator.settings import ANY_UPSTREAM, LimitSettings
from crawler.job.job import read_job
from crawler.job.limits import limit_of, upstream_named
from crawler.local.run import Place, services

MOST_AT_ONCE = 100_000


async def change_limit(
    place: Place, name: str, upstream: str, *, rate: str | None, ceiling: str | None, concurrency: str | None
) -> str:
    """Change what is given of a live limit; "default" goes back to the job's own. Returns the upstream's name.

    Raises UsageError for an unknown or complete run, an upstream that has no budget of its own, and a malformed limit.
    """
    if rate is None and concurrency is None:
        raise UsageError("limit: nothing to change; give --rate, --concurrency, or both")
    changed, at_once = _rate(rate, ceiling), _concurrency(concurrency)
    async with services(place, share=True) as addresses:
        client = connect_redis(addresses.redis)
        try:
            runs = Runs(client)
            record = await runs.find(name)
            if record is None:
                known = ", ".join(await runs.names()) or "none"
                raise UsageError(f"no run {name} in Redis; known runs: {known}")
            upstream = _budget(upstream, record)
            if not await LimitOverrides(client, RunKeys(name)).change(upstream, changed, at_once):
                raise UsageError(f"run {name} is complete: there is nothing to limit any more")
        finally:
            await client.aclose()
    return upstream


def _rate(rate: str | None, ceiling: str | None) -> LimitSettings | str | None:
    if rate == "default" and ceiling is None:
        return DEFAULT
    return KEEP if rate is None and ceiling is None else limit_of(rate, ceiling, None, "limit:")


def _concurrency(text: str | None) -> int | str | None:
    if text is None:
        return KEEP
    if text in ("default", "none"):
        return DEFAULT if text == "default" else 0
    if not text.isdecimal() or not 0 < int(text) <= MOST_AT_ONCE:
        raise UsageError(
            f'limit: --concurrency is {text!r}; write a number up to {MOST_AT_ONCE:,}, "none" or "default"'
        )
    return int(text)


def _budget(name: str, record: RunRecord) -> str:
    """The upstream by its name, when the run has such a budget: a limit that no request would meet helps nobody."""
    limits = read_job(record.document, record.folder).limits
    upstream = upstream_named(name, f"limit {name}")
    if upstream in limits or upstream == ANY_UPSTREAM:
        return upstream
    if "*" in upstream or "/" in upstream:
        raise UsageError(f"run {record.name} has no upstream {name}; its job names {', '.join(limits) or 'none'}")
    owner = UpstreamMatcher(limits).upstream_of(f"https://{upstream}/")
    if owner != upstream:
        raise UsageError(f"{name} is a part of {owner} in run {record.name}; limit that")
    return upstream
