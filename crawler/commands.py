"""What the smaller commands do, between the door and the rooms."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import asyncpg
import orjson
from rich.console import Console

from coordinator.connection import check_server, connect, first_line, redacted
from coordinator.errors import ShardcrawlError, UsageError
from coordinator.model import Counts, Outcome, RunState
from coordinator.runs import Runs
from coordinator.settings import Job
from coordinator.source import STANDARD_INPUT, Cursor
from coordinator.status import Snapshot, counts, snapshot
from coordinator.together import until_first
from crawler import jobfile, progress, screen
from crawler.local import (
    Addresses,
    Place,
    RunEnd,
    Voice,
    coordinator_plan,
    end_of,
    printer,
    run_at,
    services,
    with_signals,
)
from crawler.opening import open_corpus, open_run
from crawler.parse import hook
from crawler.process import Assignment
from crawler.progress import say
from crawler.store import postgres
from crawler.store.catalogue import Catalogue, StoredRun
from crawler.supervisor import ChildPlan, Supervisor

DEMO_QUERIES = (
    "select outcome, count(*) as keys from pages_current group by outcome",
    "select key, status, body->>'title' as title, fetched_at from pages_current order by key limit 5",
)


async def demo(place: Place, voice: Voice, *, keys: int, workers: int, port: int) -> RunEnd:
    """Run a sample corpus against the bundled upstream, then show its outcomes and some rows."""
    async with services(place) as addresses, _upstream(port) as upstream:
        folder = place.data / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        corpus = folder / "keys.txt"
        corpus.write_text("".join(f"item-{number:07}\n" for number in range(keys)))
        document = {
            "run": {"name": f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}", "workers": workers},
            "source": {"path": str(corpus.resolve())},
            "request": {"url": f"{upstream}/item/{{key}}", "allow_private": ["127.0.0.0/8"]},
        }
        say(voice.console, f"the sample upstream answers at {upstream}; {keys:,} keys, {workers} workers")
        end = await run_at(addresses, document, str(folder), voice)
        out = Console()
        screen.summary(end, out, again="shardcrawl demo", at=place.options)
        if end.stored is not None:
            for query in DEMO_QUERIES:
                say(out, f'\nshardcrawl sql{place.options} "{query}"')
                screen.rows(*await query_rows(addresses.database, query), out)
            say(out, f"everything is kept in {place.data}; next: shardcrawl run YOUR-URLS.txt --rate 10")
        return end


@asynccontextmanager
async def _upstream(port: int) -> AsyncIterator[str]:
    """The bundled upstream as a process of its own; gives its URL, ends with us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ops.upstream",
        "--port",
        str(port),
        "--stdin-guard",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            _, errors = await process.communicate()
            words = (errors.decode(errors="replace").strip().splitlines() or ["it ended at once"])[-1]
            raise ShardcrawlError(f"the sample upstream does not start: {words}; choose another --port")
        yield str(orjson.loads(line)["url"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def coordinate(place: Place, document: Mapping[str, Any], folder: str, voice: Voice) -> RunEnd:
    """Plan and tidy one run until it is complete; its workers run elsewhere."""
    addresses = _shared(place, "coordinate")
    began = monotonic()
    client = connect(addresses.redis)
    try:
        for warning in await check_server(client, addresses.redis):
            say(voice.console, f"warning: {warning}")
        opened = await open_run(client, addresses.database, document, folder)
        if opened.complete is not None or opened.record is None:
            stored = opened.complete
            assert stored is not None
            return RunEnd(opened.job, Counts(outcomes=dict(stored.counts)), stored, 0.0, was_complete=True)
        record = opened.record
        supervisor = Supervisor([coordinator_plan(addresses, opened.job, voice)], printer(voice.console))
        with_signals(supervisor, voice.console)
        await until_first(
            supervisor.run(), progress.show(lambda: snapshot(client, record), voice.console, opened.job.run.name)
        )
        return await end_of(addresses, client, record, opened.job, monotonic() - began)
    finally:
        await client.aclose()


async def work(place: Place, voice: Voice, *, workers: int, grace: float) -> None:
    """Keep worker processes at every active run of this Redis until told to leave."""
    addresses = _shared(place, "work")
    client = connect(addresses.redis)
    try:
        for warning in await check_server(client, addresses.redis):
            say(voice.console, f"warning: {warning}")
    finally:
        await client.aclose()
    await (await postgres.connect(addresses.database)).close()
    assignment = Assignment(
        "worker", "worker", addresses.redis, addresses.database, level=voice.level, grace=grace, debug=voice.debug
    )
    plans = [ChildPlan(replace(assignment, who=f"worker-{number + 1}")) for number in range(workers)]
    supervisor = Supervisor(plans, printer(voice.console))
    with_signals(supervisor, voice.console)
    await supervisor.run()


async def status(place: Place, name: str | None) -> list[Snapshot]:
    """Snapshots of one run, or of every run that is not complete. Raises UsageError for a run nobody knows."""
    async with services(place, share=True) as addresses, _stored(addresses) as stored:
        client = connect(addresses.redis)
        try:
            wanted = [run for run in stored if (run.name == name if name else not run.complete)]
            if name and not wanted:
                known = ", ".join(run.name for run in stored) or "none"
                raise UsageError(f"no run {name}; known runs: {known}")
            return [await _snapshot_of(client, run) for run in wanted]
        finally:
            await client.aclose()


async def _snapshot_of(client: Any, run: StoredRun) -> Snapshot:
    record = await Runs(client).find(run.name)
    if run.complete or record is None:
        live = await counts(client, record) if record is not None else Counts()
        final = replace(live, outcomes=dict(run.counts), total=sum(run.counts.values()) if run.complete else None)
        state = RunState.COMPLETE if run.complete else RunState.RUNNING
        return Snapshot(run.name, state, final, workers=0, leader=None, pauses={})
    return await snapshot(client, record)


async def runs(place: Place) -> tuple[list[str], list[Sequence[Any]]]:
    """Every run as rows: name, state, keys by outcome, times."""
    async with services(place, share=True) as addresses, _stored(addresses) as stored:
        client = connect(addresses.redis)
        try:
            records: list[Sequence[Any]] = []
            for run in stored:
                outcomes = dict(run.counts) if run.complete else (await _snapshot_of(client, run)).counts.outcomes
                keys = [outcomes.get(outcome, 0) for outcome in Outcome]
                state = "complete" if run.complete else "running"
                records.append([run.run_id, run.name, state, *keys, run.created_at, run.finished_at])
        finally:
            await client.aclose()
    return ["run_id", "run", "state", *(outcome.value for outcome in Outcome), "created_at", "finished_at"], records


async def sql(place: Place, query: str) -> tuple[list[str], list[Sequence[Any]]]:
    """A query's columns and rows."""
    async with services(place, share=True) as addresses:
        return await query_rows(addresses.database, query)


async def query_rows(database: str, query: str) -> tuple[list[str], list[Sequence[Any]]]:
    """A query's columns and rows, in a transaction that only reads. Raises UsageError in Postgres' words."""
    connection = await postgres.connect(database)
    try:
        async with connection.transaction(readonly=True):
            statement = await connection.prepare(query)
            records = await statement.fetch()
            columns = [attribute.name for attribute in statement.get_attributes()]
            return columns, [tuple(record) for record in records]
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise UsageError(f"sql: {first_line(error)}; `sql` only reads, use psql to change things") from error
    except asyncpg.PostgresError as error:
        raise UsageError(f"sql: {first_line(error)}") from error
    finally:
        await connection.close()


async def check(
    place: Place, document: Mapping[str, Any], folder: str, given: Mapping[str, str], environ: Mapping[str, str]
) -> list[Sequence[Any]]:
    """Look at everything that a run needs; returns (what, value, where it came from). Raises the first fault."""
    job = jobfile.read(document, folder)
    hook.load(job)
    jobfile.with_secrets(job.request.headers, environ)
    total = await asyncio.to_thread(_look_at_source, job)
    lines: list[Sequence[Any]] = [
        ("run", job.run.name, _origin(given, "name", document, "run", "name")),
        ("source", job.source.path or job.source.python, "job file"),
        ("keys", f"about {total:,}" if total is not None else "unknown until read", "source"),
        ("request", job.request.url or "each key is a URL", _origin(given, "", document, "request", "url")),
        (
            "engine",
            f"{job.request.engine}{', HTTP/2' if job.request.http2 else ''}",
            _origin(given, "", document, "request", "engine"),
        ),
        ("workers", job.run.workers or "one a core", _origin(given, "workers", document, "run", "workers")),
        (
            "concurrency",
            f"{job.run.concurrency} a worker",
            _origin(given, "concurrency", document, "run", "concurrency"),
        ),
        ("batch rows", job.store.batch_rows, _origin(given, "batch_rows", document, "store", "batch_rows")),
        ("attempts", job.retry.attempts, _origin(given, "", document, "retry", "attempts")),
        ("parser", job.parse.python or "none: whole body", _origin(given, "", document, "parse", "python")),
        (
            "tables",
            ", ".join(table.name for table in job.tables) or "pages only",
            "job file" if job.tables else "default",
        ),
    ]
    for upstream, limit in job.limits.items() or {"*": job.limit("*")}.items():
        bound = "none" if limit.rate is None else f"{limit.rate:g}/s"
        many = "" if limit.concurrency is None else f", {limit.concurrency} at once"
        lines.append((f"limit of {upstream}", bound + many, _origin(given, "rate", document, "limits", upstream)))
    async with services(place, share=True) as addresses:
        client = connect(addresses.redis)
        try:
            warnings = await check_server(client, addresses.redis)
        finally:
            await client.aclose()
        await (await postgres.connect(addresses.database)).close()
        lines.append(
            (
                "redis",
                redacted(place.redis) if place.redis else f"embedded in {place.data}",
                given.get("redis", "default"),
            )
        )
        lines.append(
            (
                "postgres",
                redacted(place.database) if place.database else f"embedded in {place.data}",
                given.get("database", "default"),
            )
        )
        lines += [("warning", warning, "redis") for warning in warnings]
    return lines


def _look_at_source(job: Job) -> int | None:
    if job.source.path == STANDARD_INPUT:
        return None
    source = open_corpus(job, Cursor())
    try:
        source.read(1000, 1.0)
        return source.estimate()
    finally:
        source.close()


def _origin(given: Mapping[str, str], option: str, document: Mapping[str, Any], section: str, key: str) -> str:
    if option in given:
        return {"commandline": f"--{option.replace('_', '-')}", "environment": "environment"}[given[option]]
    return "job file" if key in (document.get(section) or {}) else "default"


def _shared(place: Place, command: str) -> Addresses:
    if not place.redis or not place.database:
        raise UsageError(
            f"{command} serves several machines and needs shared services: set REDIS_URL and DATABASE_URL "
            "(on one machine `shardcrawl run` starts its own)"
        )
    return Addresses(place.redis, place.database)


@asynccontextmanager
async def _stored(addresses: Addresses) -> AsyncIterator[list[StoredRun]]:
    """The runs that Postgres knows, none when its schema is not made yet."""
    connection = await postgres.connect(addresses.database)
    try:
        await Catalogue(connection).prepare()
        yield await Catalogue(connection).all()
    finally:
        await connection.close()
