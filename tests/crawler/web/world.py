"""What the pages of these tests show: runs of two corpora, one of which goes on, with hostile texts in all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import httpx
import uvicorn
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.unreachable import UnreachableUpstream, encode_waits
from coordinator.model import Attempts, Epoch, Outcome, WorkerId
from coordinator.queue.history import HistoryKeeper
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout, digest
from coordinator.queue.streams import Completion, Streams
from coordinator.queue.wire import Deferral
from coordinator.redis.keys import RunKeys
from coordinator.roles.election import Election
from crawler.job.sections.limits import limits_in
from crawler.local.services import Addresses
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import connect_postgres
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from crawler.web.app import Dashboard
from crawler.web.guard import Access
from tests.crawler.examples import a_document, a_page, a_table

TOKEN = "a token of these tests"
SCRIPT = "<img src=x onerror='window.hit=1'><script>window.hit=2</script>"
OLD, NEW, WAITING = "things-1", "things-2", "others-1"
SLOW, BROKEN, DEAD = "slow.example", "broken.example", f"dead.example/{SCRIPT}"
WORKERS = [WorkerId(f"{host}-{number}-abcd") for host in ("alpha", "beta") for number in (11, 12)]
TITLES = a_table("titles", title="text")
LIMITS = {SLOW: {"rate": 5}, BROKEN: {"rate": "20/s", "concurrency": 4}}
DEFERRED = "deferred key"


def ended(key: str, outcome: Outcome, reason: str, status: int | None, attempts: int = 1) -> Page:
    page = replace(a_page(key, body=None), outcome=outcome, reason=reason, attempts=attempts)
    return replace(page, status=status, fetched_at=datetime.now(UTC).timestamp())


def pages_of(name: str) -> list[Page]:
    body = f'{{"title": "{SCRIPT}"}}'.encode()
    pages = [a_page(f"item {number}", body=body, records=[(f"{name} {number}",)]) for number in range(40)]
    pages.append(a_page(SCRIPT, body=body, records=[(SCRIPT,)]))
    for number in range(9):
        history = f"10:00:0{number} status 503 \u00d75"
        pages.append(ended(f"busy {number}", Outcome.FAILED, f"status 503 after 5 attempts: {history}", 503, 5))
    for number in range(3):
        reason = f"dns: no{number}.example: no such host after 2 attempts: 10:00:00 dns"
        pages.append(ended(f"nowhere {number}", Outcome.FAILED, reason, None, 2))
    pages.append(ended(f"bad {SCRIPT}", Outcome.FAILED, f"parser: {SCRIPT}", 200))
    pages.append(ended("secret", Outcome.REFUSED, "status 403", 403))
    pages.append(ended("item 404", Outcome.GONE, "status 404", 404))
    return pages


@dataclass(frozen=True)
class World:
    """Where it is, and what a test needs to look behind the page."""

    redis: Redis
    database: str
    run: RunTables


async def made_run(database: str, name: str, corpus: str, *, complete: bool, published: bool = True) -> RunTables:
    document = a_document(
        run={"name": name, "corpus": corpus},
        tables=[{"name": "titles", "columns": TITLES.column_settings}],
        limits=LIMITS,
        parse={"format": "json"},
    )
    connection = await connect_postgres(database)
    try:
        catalogue, epoch = Catalogue(connection), Epoch(f"epoch of {name}")
        await catalogue.prepare()
        of_run = RunTables(await catalogue.make(name, document, epoch, [TITLES], corpus=corpus))
        writer = Writer(database, of_run, epoch, [TITLES])
        await writer.write(pages_of(name)[:-20] if name == OLD else pages_of(name))
        await writer.close()
        if complete:
            await catalogue.complete(of_run, epoch, [TITLES])
            corpora = Corpora(connection)
            if published:
                await corpora.publish(corpus, of_run, [TITLES])
            else:
                await corpora.refuse(of_run.run_id, "[publish] max_failed: 13 of 55 keys failed")
        return of_run
    finally:
        await connection.close()


async def goes_on(redis: Redis, database: str, name: str) -> None:
    """The run as Redis has it while workers of two hosts work on it, and three upstreams make trouble."""
    connection = await connect_postgres(database)
    run = await Catalogue(connection).find(name)
    assert run is not None
    record = RunRecord(name, run.run_id, run.epoch, Layout(4, 4), run.document, "/somewhere", total=200)
    await Catalogue(connection).rewrite(record)
    await connection.close()
    keys = RunKeys(name)
    await Runs(redis).make(record)
    await Election(redis, keys, "alpha-10-abcd").gain()
    await redis.persist(keys.leader)
    streams = Streams(redis, keys, record.layout, record.epoch)
    for worker in WORKERS:
        await streams.join(worker)
    pages = pages_of(name)
    done = [(page.item.digest, page.outcome) for page in pages]
    attempts = Attempts(2, 0, ("10:00:00 status 503", "10:00:09 status 500"))
    deferred = Deferral(digest(DEFERRED), DEFERRED, attempts, delay=60.0)
    await streams.complete(WORKERS[0], 1, Completion(done, (), [deferred], requests=90, received=123_456))
    waits = encode_waits("", [UnreachableUpstream(DEAD, 12, f"no such host {SCRIPT}", 20.0)])
    await streams.renew(WORKERS[1], waits=waits)
    in_an_hour = 1000 * ((await redis.time())[0] + 3600)
    await redis.zadd(keys.workers, dict.fromkeys(WORKERS, in_an_hour))
    await HistoryKeeper(redis, keys).record()
    limiter = Limiter(redis, keys, UpstreamMatcher(limits_in(LIMITS)))
    limiter.report(SLOW, sent=45, throttled=1)
    limiter.report(BROKEN, sent=30, failed=30)
    await limiter.pause(SLOW, 300.0)
    await limiter.refresh()


@asynccontextmanager
async def a_world(redis: Redis, database: str) -> AsyncIterator[World]:
    await made_run(database, OLD, "things", complete=True)
    await made_run(database, WAITING, "others", complete=True, published=False)
    of_run = await made_run(database, NEW, "things", complete=False)
    await goes_on(redis, database, NEW)
    yield World(redis, database, of_run)


@asynccontextmanager
async def a_dashboard(redis_url: str, database: str, access: Access, seconds: float = 0.2) -> AsyncIterator[Dashboard]:
    addresses = Addresses(redis_url, database)
    dashboard = Dashboard(lambda: addresses, access, seconds)
    try:
        yield dashboard
    finally:
        await dashboard.close()


@asynccontextmanager
async def a_visitor(dashboard: Dashboard) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a socket between."""
    transport = httpx.ASGITransport(dashboard.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
        yield client


@asynccontextmanager
async def served(dashboard: Dashboard) -> AsyncIterator[int]:
    """The dashboard on a port of this machine."""
    server = uvicorn.Server(
        uvicorn.Config(dashboard.app, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1, ws="none")
    )
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving
