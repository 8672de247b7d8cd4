"""Open a job's run: begin it, go on with it, or rebuild it in Redis from what Postgres has."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from redis.asyncio import Redis

from coordinator.errors import EpochLost, ShardcrawlError, UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Epoch, RunState
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.found import Frontier
from coordinator.queue.notices import Notices
from coordinator.queue.registry import RunInRedis, RunRecord, Runs
from coordinator.queue.sharding import Layout
from coordinator.redis.keys import RunKeys
from crawler.corpus import survey_corpus
from crawler.job.fixed import changed_setting, why_no_new_run
from crawler.job.job import Job
from crawler.parse.code import differing_file, parser_files
from crawler.runs.content import content_hash
from crawler.runs.naming import name_lock
from crawler.runs.publish import finish_run
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.store.rows.found import FoundReader
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

logger = logging.getLogger(__name__)

# Redis cannot know that a run is complete which is not so in Postgres.
_GOES_ON = (RunState.RUNNING, RunState.RESOLVED)


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that was opened. `resumed`: it existed before.

    `complete_run` is its row in Postgres when nothing is left to do; only then `record` may be None. `base` is the name
    of the run with which a refresh that begins now does so.
    """

    record: RunRecord | None
    resumed: bool
    complete_run: StoredRun | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Nobody knows the run: make it in Postgres, then in Redis."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Redis and Postgres have the run with the same epoch: go on, if the source is still the same.

    `record` is what Postgres has of it.
    """

    record: RunRecord


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Postgres has the run, and Redis has lost it, or has another one in its place: fill Redis from Postgres."""

    run_id: int


@dataclass(frozen=True, slots=True)
class AlreadyComplete:
    """The run is complete in Postgres; `in_redis` it may be not complete yet, or not be there any more."""

    stored: StoredRun
    in_redis: RunInRedis | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The run must not be opened with this job, or on these servers."""

    error: type[ShardcrawlError]
    message: str


Opening: TypeAlias = Begin | GoOn | Rebuild | AlreadyComplete | Refuse


def decide_opening(job: Job, stored: StoredRun | None, in_redis: RunInRedis | None) -> Opening:
    """Pure: how the job's run is opened, by what Postgres (`stored`) and Redis have of it."""
    if stored is None:
        if in_redis is None:
            return Begin()
        return Refuse(
            EpochLost,
            f"run {job.run.name} is in Redis but not in Postgres: is DATABASE_URL the right one? "
            "To begin anew give the run another --name",
        )
    if changed := changed_setting(job, stored):
        return Refuse(UsageError, changed)
    if stored.complete:
        return AlreadyComplete(stored, in_redis)
    if stored.record is not None and in_redis in [RunInRedis(stored.epoch, state) for state in _GOES_ON]:
        return GoOn(stored.record)
    return Rebuild(stored.run_id)


async def open_run(client: Redis, database: str, job: Job, failpoint: Failpoint = no_failpoint) -> OpenedRun:
    """Begin the job's run, go on with it, or rebuild it. One process at a time opens a run.

    Raises UsageError, SourceError, RunCancelled, EpochLost, PostgresRefused, PostgresUnavailable, RedisUnavailable.
    """
    async with open_catalogue(database) as catalogue:
        await catalogue.prepare(upgrade=True)
        async with name_lock(database, job.run.name):
            return await _open(client, database, catalogue, job, failpoint)


async def _open(client: Redis, database: str, catalogue: Catalogue, job: Job, failpoint: Failpoint) -> OpenedRun:
    runs = Runs(client)
    found = await catalogue.find(job.run.name)
    if found is not None:
        found.refuse_cancelled()
    match decide_opening(job, found, await runs.find(job.run.name)):
        case Refuse(error, message):
            raise error(message)
        case AlreadyComplete(stored, in_redis):
            try:
                await _check_source(job, stored)
            except UsageError as changed:
                logger.warning("%s", changed)
            if stored.shortfall is None:  # who completed it died before it was published
                stored = await finish_run(database, stored, job, failpoint)
            if in_redis is not None and in_redis.state is not RunState.COMPLETE:
                # The worker that took the final counts died before it wrote them to Redis.
                if stored.record is not None and in_redis.epoch == stored.epoch:
                    await runs.finish(stored.record, stored.counts)
                else:
                    await runs.erase(stored.name)
            return OpenedRun(stored.record, resumed=True, complete_run=stored)
        case GoOn(record):
            await _check_source(job, found)
            files = await _parser_files(job, record.parser_files)
            record = replace(record, document=job.document, folder=job.folder, parser_files=files)
            record = _with_content(record, job, record)
            await catalogue.rewrite(record)
            await runs.go_on(record.name)
            return OpenedRun(record, resumed=True)
        case Rebuild(run_id):
            await _check_source(job, found)
            record = await _new_record(job, run_id, found.parser_files if found else {})
            record = replace(_with_content(record, job, found), steering=found.steering) if found else record
            return await _rebuild(client, database, catalogue, record, job.limits, failpoint)
        case Begin():
            return await _begin(runs, catalogue, job, failpoint)


async def _begin(runs: Runs, catalogue: Catalogue, job: Job, failpoint: Failpoint) -> OpenedRun:
    before = [run for run in await catalogue.all() if run.corpus == job.corpus]
    if refused := why_no_new_run(job, before[-1] if before else None, await catalogue.current(job.corpus)):
        raise UsageError(refused)
    record = await _new_record(job, run_id=0)
    record = replace(record, content_hash=content_hash(job, record.parser_files))
    base = await _base(catalogue, job) if job.run.refresh else None
    if base is not None and record.content_hash is not None and base.content_hash == record.content_hash:
        record = replace(record, carried_run=base.run_id)
        await catalogue.index_records(RunTables.of(base), job.tables)
    elif base is not None:
        logger.info("everything is fetched whole: run %s was made by another parser, or by other settings", base.name)
    run_id = await catalogue.make(
        *(record.name, job.document, record.epoch, job.tables),
        corpus=job.corpus,
        base_run=base.run_id if base else None,
        follows=job.follows,
    )
    record = replace(record, run_id=run_id)
    await catalogue.rewrite(record)
    failpoint("made")
    await runs.make(record)
    return OpenedRun(record, resumed=False, base=base.name if base else None)


async def _base(catalogue: Catalogue, job: Job) -> StoredRun | None:
    """The run with which a refresh begins: its corpus' current one. Raises UsageError while that is not complete."""
    base = await catalogue.current(job.corpus)
    if base is not None and not base.complete:
        raise UsageError(f"run {base.name} has keys that go again: finish it first (--name {base.name})")
    return base


def _with_content(record: RunRecord, job: Job, before: StoredRun | RunRecord) -> RunRecord:
    """The record of a run that goes on; with another parser its content has no hash, and nothing more is carried."""
    same = before.content_hash is not None and before.content_hash == content_hash(job, record.parser_files)
    carried = before.carried_run if same else None
    return replace(record, content_hash=before.content_hash if same else None, carried_run=carried)


async def _rebuild(
    client: Redis, database: str, catalogue: Catalogue, record: RunRecord, limits: Collection[str], failpoint: Failpoint
) -> OpenedRun:
    # Postgres gets the new epoch last. Until then no worker joins, and after a crash the next opening rebuilds again.
    await Runs(client).make(record, rebuilt=True)
    logger.info(
        "run %s is not in Redis as it is in Postgres: it is rebuilt from Postgres",
        record.name,
        extra={"event": "run_rebuilt"},
    )
    done = DoneSet(client, RunKeys(record.name), record.layout, record.epoch)
    await done.rebuild(catalogue.digests(RunTables.of(record)))
    if record.layout.follows:
        await _rebuild_found(client, database, record)
    if limits:  # which of them were met is lost too, and nothing is said that may be wrong
        await Notices(client, RunKeys(record.name)).add(limits)
    failpoint("rebuilt")
    await catalogue.rewrite(record)
    await catalogue.change_epoch(record.run_id, record.epoch)
    return OpenedRun(record, resumed=True)


async def _rebuild_found(client: Redis, database: str, record: RunRecord) -> None:
    """Fill the known set and the frontier from the found keys that have no page."""
    keys, layout, epoch = RunKeys(record.name), record.layout, record.epoch
    known, frontier = KnownSet(client, keys, layout, epoch), Frontier(client, keys, layout, epoch)
    found = FoundReader(database, RunTables.of(record))
    try:
        async for digests in found.unfetched_digests():
            await known.mark(digests)
        batches, followed = await found.unfetched()
        await frontier.count_followed(followed)
        await frontier.add(batches)
    finally:
        found.close()


async def _new_record(job: Job, run_id: int, earlier: Mapping[str, str] = MappingProxyType({})) -> RunRecord:
    """The run's record with a new epoch, and with a layout for the source as it is now. Raises SourceError.

    `earlier` are the files of its parser when it was opened before.
    """
    fingerprint, total = await asyncio.to_thread(survey_corpus, job)
    return RunRecord(
        name=job.run.name,
        run_id=run_id,
        epoch=Epoch(secrets.token_hex(8)),
        layout=Layout.of(_most_keys(job, total), job.run.shards, follows=job.follows),
        document=job.document,
        folder=job.folder,
        fingerprint=fingerprint,
        total=total,
        parser_files=await _parser_files(job, earlier),
    )


def _most_keys(job: Job, total: int | None) -> int | None:
    """About how many keys the run has: those of the source, and what it may find if that has a bound."""
    if not job.follows or total is None:
        return total
    bounded = len(job.most_found) == len(job.follow) and not any(one.paginate for one in job.every_kind)
    return total + sum(job.most_found.values()) if bounded else None


async def _parser_files(job: Job, earlier: Mapping[str, str]) -> Mapping[str, str]:
    """The parser's files as they are now; those of `earlier`, if the module is not on this machine."""
    try:
        found = (await asyncio.to_thread(parser_files, job)).digests
    except UsageError as error:  # this machine need not have workers
        logger.warning("%s%s", error, "" if earlier else "; until then nobody checks that all workers have the same")
        return earlier
    if (name := differing_file(earlier, found)) is not None:
        logger.warning(
            "the parser has changed since the run was opened last (%s): from now on the new one parses. Copy it to all "
            "machines, and where `shardcrawl work` runs start that again: it keeps the old one",
            name,
        )
    return found


async def _check_source(job: Job, run: StoredRun | None) -> None:
    """Raise UsageError when the source has changed since the run began."""
    if run is not None and run.fingerprint:
        fingerprint, _ = await asyncio.to_thread(survey_corpus, job, count=False)
        if fingerprint != run.fingerprint:
            raise UsageError(
                f"source {job.source.name} has changed since run {run.name} began: "
                "bring the old one back, or give the new run another --name"
            )
