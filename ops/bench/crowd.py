"""A run at its largest, for the pages: many upstreams, workers and failed keys, as workers would have left it."""

from __future__ import annotations

from dataclasses import dataclass
from time import time

import asyncpg
import msgpack
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.unreachable import UnreachableUpstream, encode_waits
from coordinator.model import Epoch, WorkerId
from coordinator.queue.history import MOST_POINTS, HistoryPoint
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout
from coordinator.queue.streams import Completion, Streams
from coordinator.redis.keys import RunKeys
from coordinator.roles.election import Election
from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import StageFigures, WorkerFigures
from coordinator.stages.timing import Timing
from crawler.job.job import read_job
from crawler.store.catalogue import Catalogue
from crawler.store.tables import RunTables

NAME = "crowd"
MACHINES = 10
LISTED_DEAD_HOSTS = 20
KEPT_SECONDS = 3600
POINT_SECONDS = 5.0
PAUSE_SECONDS = 900.0
# Keys of five kinds, most of them with the history of their attempts.
FAIL = """
INSERT INTO {part} (run_id, digest, key, url, outcome, reason, status, attempts, fetched_at)
SELECT {run}, decode(md5(n::text), 'hex'), url, url, 'failed',
       (ARRAY['status 503 after 5 attempts: 10:00:01 status 503; 10:00:04 status 503; 10:00:12 status 503 x3',
              'status 500 after 5 attempts: 10:00:01 status 500; 10:00:04 status 502; 10:00:12 status 500 x3',
              'dns: ' || host || ': no such host after 5 attempts: 10:00:01 dns x5',
              'timeout after 5 attempts: 10:00:30 timeout; 10:01:04 timeout; 10:02:12 timeout x3',
              'parser: KeyError: ''name'''])[1 + n % 5],
       (ARRAY[503, 500, NULL, NULL, 200])[1 + n % 5], 5, now() - n * interval '1 ms'
FROM generate_series(1, {keys}) AS n, LATERAL (SELECT 'host-' || n % {upstreams} || '.example' AS host) AS at,
     LATERAL (SELECT 'http://' || host || '/item/' || n AS url) AS of
"""


@dataclass(frozen=True, slots=True)
class Crowd:
    """How large the run is."""

    upstreams: int = 1000
    workers: int = 200
    failed: int = 1_000_000

    @property
    def hosts(self) -> list[str]:
        """The names of the upstreams."""
        return [f"host-{number}.example" for number in range(self.upstreams)]


async def gather(crowd: Crowd, redis: Redis, database: str) -> None:
    """Make the run in empty servers."""
    connection = await asyncpg.connect(database)
    try:
        record = await _fill_postgres(crowd, connection)
    finally:
        await connection.close()
    keys = RunKeys(NAME)
    await Runs(redis).make(record)
    await Election(redis, keys, "machine-0-1-coordinator").gain()
    await redis.persist(keys.leader)
    await _employ(crowd, redis, record)
    done = 3 * crowd.failed
    await redis.hset(
        keys.state,
        mapping={
            "published": 4 * crowd.failed,
            "resolved": done,
            "failed": crowd.failed,
            "stored": done - crowd.failed,
        },
    )
    now = time()
    points = [
        HistoryPoint(
            now - POINT_SECONDS * (MOST_POINTS - n), done * n // MOST_POINTS, crowd.failed * n // MOST_POINTS, n
        )
        for n in range(MOST_POINTS)
    ]
    await redis.set(keys.history, bytes(msgpack.packb(points)))
    await ask_upstreams(crowd, redis)
    await redis.persist(keys.active)


async def ask_upstreams(crowd: Crowd, redis: Redis) -> None:
    """Report requests to all upstreams in this second. Every fiftieth fails, and every fortieth is paused."""
    document = _document(crowd)
    limiter = Limiter(redis, RunKeys(NAME), UpstreamMatcher(read_job(document, "/").limits))
    for number, host in enumerate(crowd.hosts):
        sent = 20 + number % 30
        limiter.report(host, sent=sent, failed=sent if number % 50 == 0 else 0)
        if number % 40 == 1:
            await limiter.pause(host, PAUSE_SECONDS)
    await limiter.refresh()


async def _fill_postgres(crowd: Crowd, connection: asyncpg.Connection) -> RunRecord:
    catalogue, document, epoch = Catalogue(connection), _document(crowd), Epoch("bench")
    await catalogue.prepare(upgrade=True)
    run = await catalogue.make(NAME, document, epoch, [])
    await connection.execute(
        FAIL.format(part=RunTables(run).pages, run=run, keys=crowd.failed, upstreams=crowd.upstreams)
    )
    record = RunRecord(NAME, run, epoch, Layout.of(4 * crowd.failed), document, "/", total=4 * crowd.failed)
    await catalogue.rewrite(record)
    await connection.execute("UPDATE runs SET created_at = now() - interval '1 hour'")
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    return record


async def _employ(crowd: Crowd, redis: Redis, record: RunRecord) -> None:
    """Workers with leases, figures, shards, and hosts that they do not reach."""
    keys, hosts = RunKeys(NAME), crowd.hosts
    streams = Streams(redis, keys, record.layout, record.epoch)
    stages = tuple(StageFigures(name, 3.5, 64, 10) for name in ("wait", "fetch", "parse", "commit", "complete", "loop"))
    hired: list[WorkerId] = []
    for number in range(crowd.workers):
        worker = WorkerId(f"machine-{number % MACHINES}-{1000 + number}-abcd")
        await streams.join(worker)
        hired.append(worker)
        at = range(number, number + LISTED_DEAD_HOSTS)
        dead = [UnreachableUpstream(hosts[-1 - one % (len(hosts) // 10)], 12, "no such host", 20.0) for one in at]
        held = tuple(Held(Constraint.RATE, host, 0.2) for host in hosts[number % 900 :][:5])
        figures = WorkerFigures(40.0, stages, held).encode()
        await streams.renew(worker, waits=encode_waits("", dead), figures=figures)
        shard = number % record.layout.shards
        await redis.hset(keys.claims, f"{shard} {worker}", 1)
        await redis.zincrby(keys.ready, 5, str(shard))
        times: dict[str, int] = {}
        for stage in stages:
            timing = Timing()
            timing.add(0.02)
            times |= timing.take(stage.name)
        await streams.complete(worker, 1, Completion([], requests=15_000, received=60_000_000, timings=times))
        await redis.persist(keys.figures(worker))
    # No worker may have so long a lease; the next heartbeat would delete them.
    now_ms = 1000 * (await redis.time())[0]
    await redis.zadd(keys.workers, dict.fromkeys(hired, now_ms + 1000 * KEPT_SECONDS))


def _document(crowd: Crowd) -> dict[str, object]:
    """A job with an entry of [limits] for each upstream; every fourth rate is to be found."""
    rates = ("50/s", ["50/s", "5000/h"], 10, "auto")
    limits = {host: {"rate": rates[n % 4], "concurrency": 8} for n, host in enumerate(crowd.hosts)}
    return {"run": {"name": NAME}, "source": {"path": "keys.txt"}, "limits": limits}
