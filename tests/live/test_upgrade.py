"""A new version of shardcrawl on the database of the one before, in the middle of a run."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import orjson
import pytest
from redis.asyncio import Redis

from coordinator.queue.sharding import digest
from crawler.job.document import load_job_file
from crawler.sample.upstream import Upstream
from crawler.store.queries import query
from tests.live.examples import COUNT_PAGES, each_key_once, job
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

OLD_EPOCH = "of the version before"
OLD_SCHEMA = Path(__file__).parents[1] / "crawler" / "store" / "schema_0001.sql"


async def test_a_run_of_the_version_before_goes_on(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", [str(number) for number in range(300)])
    path = shell.write("job.toml", job(upstream))
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    try:
        await connection.execute(OLD_SCHEMA.read_text())
        document = orjson.dumps(load_job_file(path)).decode()
        run_id = await connection.fetchval(
            "INSERT INTO runs (name, spec, epoch) VALUES ('test', $1::text::jsonb, $2) RETURNING run_id",
            document,
            OLD_EPOCH,
        )
        await connection.execute(query("make-pages-part", part=f"pages_r{run_id}", run_id=run_id))
        done = [(digest(str(number)), str(number), f'{{"id": "{number}"}}') for number in range(100)]
        await connection.executemany(
            f"INSERT INTO pages_r{run_id} (run_id, digest, key, outcome, attempts, fetched_at, body) "
            f"VALUES ({run_id}, $1, $2, 'stored', 1, now(), $3::text::jsonb)",
            done,
        )
    finally:
        await connection.close()
    # Redis has it as the version before wrote it, the job and the layout included: that is not believed.
    planted = {"document": {"source": {"path": "/etc/passwd"}}, "shards": 2**60, "buckets": 2**60, "run_id": 99}
    await redis.set("shardcrawl:{test}:spec", orjson.dumps(planted))
    await redis.hset("shardcrawl:{test}:state", mapping={"epoch": OLD_EPOCH, "state": "running", "cursor": "0:0"})
    await redis.sadd("shardcrawl:runs", "test")
    for command in (["status"], ["runs"], ["audit", "test"], ["retry", "test"]):
        ended = await shell.run(*command, environ=environ, code=1)
        assert "has version 1, and this shardcrawl needs" in ended.err
        assert "`shardcrawl run`" in ended.err
        assert len(ended.err.splitlines()) == 1
    await shell.run("run", path, environ=environ)
    count = COUNT_PAGES.replace("split_part(key, '/item/', 2)", "key")
    assert await shell.sql(count, environ=environ) == each_key_once(300)
    assert upstream.requests == 200, "what was done stays done"
    encodings = "select encoding, count(*) as keys from pages_current group by 1 order by 1"
    assert await shell.sql(encodings, environ=environ) == [
        {"encoding": "utf-8", "keys": 200},
        {"encoding": None, "keys": 100},
    ]
    await shell.run("audit", "test", environ=environ)
