"""How a run stands when its command ends, with the files that it has written, and what is said of its found keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.failpoints import failpoint_at
from coordinator.limits.upstream_health import read_upstream_health
from coordinator.queue.notices import Notices
from coordinator.queue.registry import RunRecord
from coordinator.redis.keys import RunKeys
from coordinator.settings import ANY_UPSTREAM
from coordinator.status import read_counts
from coordinator.tasks import run_until_first_ends
from crawler.export.published import PublishedFiles, check_export, export_published
from crawler.job.job import Job
from crawler.job.sections.source import SITEMAP
from crawler.local.child_spec import FAILPOINT_VARIABLE
from crawler.local.events import Listener, RunEnd
from crawler.local.services import Addresses
from crawler.local.signals import until_signal
from crawler.runs.publish import finish_run
from crawler.store.catalogue import open_catalogue
from crawler.store.rows.found import FoundCounts
from crawler.store.tables import RunTables

logger = logging.getLogger(__name__)


def found_notices(job: Job, found: Mapping[str, FoundCounts], broken_lists: int) -> Sequence[str]:
    """The notices of a complete run: `found` has what was found of each kind, "" for that of the source."""
    notices = []
    if broken_lists:
        again = f"`shardcrawl retry {job.run.name} --lists`"
        notices.append(f"{broken_lists:,} lists are incomplete: {again} lets them be requested again")
    none = FoundCounts(0, 0, 0, 0)
    for one in job.every_kind:
        counts = found.get(one.kind, none)
        if one.paginate is not None and counts.pages and not counts.list_pages:
            where = f"[kinds.{one.kind}.paginate]" if one.kind else "[paginate]"
            but = " that no [[follow]] takes" if counts.followed else ""
            notices.append(f"{where}: no page named a next one{but}; is that right?")
    for number, rule in enumerate(job.follow, 1):
        kind = rule.of if rule.kind is None else rule.kind
        if found.get(rule.of, none).pages and not found.get(kind, none).followed:
            what = f"a key of kind {kind}" if kind else "a key"
            notices.append(f"[[follow]] {number}: no page named {what}; is that right?")
    if unread := found.get(SITEMAP, none).unread:
        notices.append(f"{unread:,} sitemaps could not be read: their `pages.reason` says why (kind {SITEMAP})")
    return notices


async def end_of(addresses: Addresses, client: Redis, record: RunRecord, job: Job, seconds: float) -> RunEnd:
    """How the run stands now, with its row in Postgres when it is complete."""
    async with open_catalogue(addresses.database) as catalogue:
        stored = await catalogue.find(job.run.name)
        if stored is None:
            raise UsageError(f"run {job.run.name} is no longer in Postgres: somebody deleted it")
        stored.refuse_cancelled()
        counts = await read_counts(client, record.name, record.total)
        notices = Notices(client, RunKeys(record.name))
        end = RunEnd(job, counts, None, seconds, null_columns=await notices.turned_null())
        if stored.complete:
            if stored.shortfall is None:  # a worker of an earlier version, which has no corpora, completed it
                stored = await finish_run(addresses.database, stored, job)
            without_match = await notices.without_match(job.limits)
            unmatched = tuple(name for name in without_match if name != ANY_UPSTREAM)
            found = found_notices(job, *await catalogue.found(RunTables.of(record))) if job.follows else ()
            return replace(end, stored=stored, reasons=stored.reasons, unmatched=unmatched, found=found)
        outcomes, reasons = await catalogue.outcomes_so_far(RunTables.of(record))
    if outcomes:  # Redis may have lost the run in the last moments
        end = replace(end, counts=replace(counts, outcomes=dict(outcomes)))
    upstreams = await read_upstream_health(client, RunKeys(record.name))
    unauthorized = tuple(health for health in upstreams if health.status is not None)
    return replace(end, reasons=reasons, unauthorized=unauthorized)


async def with_files(
    addresses: Addresses,
    job: Job,
    listener: Listener,
    environ: Mapping[str, str],
    work: Callable[[], Awaitable[RunEnd]],
) -> RunEnd:
    """What the `work` on a run returns, with the files that `[publish] export` wants of it if readers see it.

    Before the work come those that an earlier command has left. Raises UsageError when this machine cannot write them,
    CancelledError when a signal comes before the work.
    """
    if job.publish.export is None:
        return await work()
    check_export(job)
    failpoint = failpoint_at(environ.get(FAILPOINT_VARIABLE), "export")

    async def write(name: str | None = None) -> PublishedFiles | None:
        found: list[PublishedFiles | None] = []

        async def export() -> None:
            found.append(
                await export_published(addresses.database, job.corpus, name, folder=job.folder, failpoint=failpoint)
            )

        watches = [addresses.embedded.watch()] if addresses.embedded else []
        await until_signal(run_until_first_ends(export(), *watches), listener, addresses.embedded)
        return found[0]

    if (left := await write()) is not None and left.fault:
        logger.warning("run %s: %s", left.run, left.words)
    end = await work()
    if end.stored is None:
        return end
    try:
        return replace(end, files=await write(end.stored.name))
    except asyncio.CancelledError:
        return replace(end, files=PublishedFiles(end.stored.name, "", fault="interrupted"))
