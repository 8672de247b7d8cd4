"""The auditor agrees with real runs, and sees exactly what somebody broke by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.redis.keys import RunKeys
from crawler.audit import auditor
from crawler.audit.checks import Finding
from crawler.local.services import Place
from crawler.sample.upstream import Upstream
from tests.live.shell import Running, Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

NAME = "audited"
ITEMS, MISSING = 280, 20
KEYS = ITEMS + MISSING + 1
PARSER = """
def items(response):
    rows = []
    for item in response.json()["items"]:
        if item.get("missing"):
            response.gone(item["id"])
        else:
            rows.append({"_key": item["id"], "name": item["id"]})
    return {"things": rows}
"""
NO_PAGE = "keys of the source without a page"
NO_KEY = "pages of keys that are not in the source"
NO_OUTCOME = "pages without one of the five outcomes"
DOUBLED = "pages beyond one a key"
ORPHANS = "records in things without a stored page"
EMPTY = "stored keys without a record"
FINAL = "final counts of the run"
PUBLISHED = "tables where readers see the run"
STATE = "state in Redis"
COUNTERS = "outcomes, as Redis counts them"
COUNTED = "keys done, as Redis counts them"
DONE = "digests in the done set"
RESOLVED = "published keys that are resolved"
BLOCKS = "blocks left in the streams"
STRAY = "stray Redis keys"
STAGING = "staging tables of sessions"
IDLE = "sessions idle in a transaction"
SEEN = "run that readers of corpus job see"
UNLIKE = f"pages that were carried over and are not as in {NAME}"
OTHER_RECORDS = "pages that were carried over with other records in things"
NOT_UNIQUE = "records in things with the `unique` columns of another"
NOT_FAILED = "stale pages that have not failed"
AGAIN = "requests for a key that was asked before"
ANOTHER = (
    "INSERT INTO pages_r1 (run_id, digest, key, outcome, attempts, fetched_at) "
    "VALUES (1, '\\x00', 'a stranger', 'gone', 1, now())"
)


@dataclass(frozen=True, slots=True)
class Crawl:
    """A run on the session's own Redis and Postgres, where a test can reach both."""

    shell: Shell
    upstream: Upstream
    redis: Redis
    postgres: asyncpg.Connection[asyncpg.Record]
    environ: dict[str, str]

    async def start(self, *options: str) -> Running:
        lines = [f"k{number}" for number in range(ITEMS)] + [f"missing{number}" for number in range(MISSING)]
        self.shell.write("keys.txt", [*lines, "k1", "a bad|line", ""])
        self.shell.write("parse.py", PARSER)
        job = f"""
            [run]
            name = "{NAME}"
            concurrency = 4
            [source]
            path = "keys.txt"
            [request]
            url = "{self.upstream.url}/batch?ids={{keys}}&of=test"
            keys_per_request = 5
            allow_private = ["127.0.0.0/8"]
            [parse]
            python = "parse:items"
            [[tables]]
            name = "things"
            columns = {{ name = "text" }}
        """
        path = self.shell.write("job.toml", job)
        return await self.shell.start("run", path, "--workers", "2", *options, environ=self.environ)

    async def finish(self) -> None:
        ended = await (await self.start()).end()
        assert ended.code == 0, ended.err

    async def interrupt(self) -> None:
        running = await self.start("--rate", "20")
        await eventually(lambda: self.upstream.requests >= 15, "15 requests")
        running.interrupt()
        assert (await running.end()).code == 130

    async def findings(self, log: Path | None = None, allowed: int = 0, name: str = NAME) -> dict[str, Finding]:
        place = Place(self.environ["REDIS_URL"], self.environ["DATABASE_URL"], self.shell.data)
        found = await auditor.audit(place, name, "/", log, allowed, {})
        assert len({one.what for one in found}) == len(found)
        return {one.what: one for one in found}

    async def broken(self, log: Path | None = None, allowed: int = 0, name: str = NAME) -> set[str]:
        return {what for what, one in (await self.findings(log, allowed, name)).items() if not one.ok}

    def log(self, *more: str) -> Path:
        """What the upstream was asked, as it logs it, and some lines more."""
        lines = [f"{number}.5 {path}" for number, path in enumerate(self.upstream.paths)]
        return self.shell.write("requests.log", [*lines, *more])


@pytest.fixture
async def crawl(shell: Shell, upstream: Upstream, redis: Redis, redis_url: str, database: str) -> AsyncIterator[Crawl]:
    connection = await asyncpg.connect(database)
    yield Crawl(shell, upstream, redis, connection, {"REDIS_URL": redis_url, "DATABASE_URL": database})
    await connection.close()


@pytest.mark.slow
async def test_an_interrupted_run_that_has_a_robots_txt_agrees_with_itself(shell: Shell, upstream: Upstream) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(200)])
    running = await shell.start("run", urls, "--rate", "20")
    await eventually(lambda: upstream.requests >= 5, "5 requests", seconds=60)
    running.interrupt()
    await running.end()
    assert "BROKEN" not in (await shell.run("audit", "urls")).out


@pytest.mark.slow
async def test_a_run_agrees_with_itself_while_it_goes_on_when_it_is_interrupted_and_when_it_is_complete(
    crawl: Crawl,
) -> None:
    running = await crawl.start("--rate", "20")
    await eventually(lambda: crawl.upstream.requests >= 15, "15 requests")
    assert await crawl.broken() == set()
    running.interrupt()
    assert (await running.end()).code == 130

    interrupted = await crawl.shell.run("audit", NAME, "--json", environ=crawl.environ)
    found = {row["what"]: row for row in json.loads(interrupted.out)}
    pages = await crawl.postgres.fetchval("SELECT count(*) FROM pages_r1")
    assert 0 < pages < KEYS
    assert found["keys of the source not finished yet"]["found"] == KEYS - pages
    assert found[COUNTED]["found"] == pages

    await crawl.finish()
    complete = await crawl.shell.run("audit", NAME, "--requests", crawl.log(), environ=crawl.environ)
    assert "BROKEN" not in complete.out
    assert f"20 gone, 1 refused, {ITEMS} stored" in complete.out
    assert AGAIN in complete.out
    assert complete.err == ""


async def test_what_does_not_hold_is_a_row_one_error_line_and_exit_code_1(crawl: Crawl) -> None:
    await crawl.finish()
    with (crawl.shell.folder / "keys.txt").open("a") as corpus:
        corpus.write("late\n")
    ended = await crawl.shell.run("audit", NAME, environ=crawl.environ, code=1)
    broken = [line.split("  ")[0].strip() for line in ended.out.splitlines() if "BROKEN" in line]
    assert broken == [NO_PAGE, "the source"]
    assert "such as late" in ended.out
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert f"error: run {NAME}: 2 of 18 findings do not hold" in ended.err
    unknown = await crawl.shell.run("audit", "nobody", environ=crawl.environ, code=2)
    assert f"no run nobody; known runs: {NAME}" in unknown.err

    await crawl.postgres.execute("""UPDATE runs SET spec = jsonb_set(spec, '{source,path}', '"-"')""")
    assert (await crawl.findings())["the source"].expected == "not compared: it cannot be read again"
    assert await crawl.broken() == set()


CHANGES = (
    ("DELETE FROM pages WHERE key = 'k1'", {NO_PAGE, ORPHANS, FINAL, COUNTERS}),
    (ANOTHER, {NO_KEY, FINAL, COUNTERS}),
    ("UPDATE pages SET outcome = 'lost' WHERE key = 'missing1'", {NO_OUTCOME, FINAL, COUNTERS}),
    ("INSERT INTO things VALUES (1, '\\x00', 'nobody')", {ORPHANS}),
    ("INSERT INTO things SELECT run_id, digest, 'x' FROM pages WHERE key = 'missing1'", {ORPHANS}),
    ("INSERT INTO things SELECT * FROM things WHERE name IN ('k1', 'k2')", {NOT_UNIQUE}),
    ("UPDATE things SET name = NULL WHERE name IN ('k1', 'k2')", set()),
    ("""UPDATE runs SET counts = '{"stored": 300}'""", {FINAL}),
    ("ALTER TABLE things DETACH PARTITION things_r1", {PUBLISHED}),
)
UNIQUE = """UPDATE runs SET spec = jsonb_set(spec, '{tables,0,unique}', '["name"]')"""
KEEP = "CREATE TABLE kept_{0} AS SELECT * FROM {0}"
RESTORE = """
    TRUNCATE pages_r1, things_r1;
    INSERT INTO pages_r1 SELECT * FROM kept_pages;
    INSERT INTO things_r1 SELECT * FROM kept_things;
    UPDATE runs SET counts = (SELECT counts FROM kept_runs);
"""


async def test_rows_changed_by_hand_are_found(crawl: Crawl) -> None:
    await crawl.finish()
    for table in ("pages", "things", "runs"):
        await crawl.postgres.execute(KEEP.format(table))
    await crawl.postgres.execute(UNIQUE)
    for change, expected in CHANGES:
        assert await crawl.broken() == set()
        assert await crawl.postgres.execute(change) not in ("DELETE 0", "UPDATE 0", "INSERT 0 0")
        assert await crawl.broken() == expected, change
        await crawl.postgres.execute(RESTORE)


async def test_stored_keys_without_a_record_are_counted_and_found_where_the_job_wants_one(crawl: Crawl) -> None:
    await crawl.finish()
    assert (await crawl.findings())[EMPTY].found == 0
    await crawl.postgres.execute("DELETE FROM things WHERE name IN ('k1', 'k2')")
    found = (await crawl.findings())[EMPTY]
    assert (found.found, found.note, found.ok) == (2, "such as k1, k2", True)
    await crawl.postgres.execute("""UPDATE runs SET spec = jsonb_set(spec, '{parse,no_record}', '"gone"')""")
    assert await crawl.broken() == {EMPTY}


# A refresh of run 1 that found everything unchanged, and fell short.
REFRESH = """
    INSERT INTO runs (name, spec, epoch, state, counts, corpus, base_run, content_hash, layout, shortfall)
        SELECT 'refreshed', spec, epoch, state, jsonb_build_object('unchanged', counts -> 'stored', 'gone',
               counts -> 'gone', 'refused', counts -> 'refused'), corpus, run_id, content_hash,
               layout || '{"carried_run": 1}', 'too few keys' FROM runs;
    CREATE TABLE pages_r2 (LIKE pages INCLUDING ALL, CHECK (run_id = 2));
    CREATE TABLE things_r2 (LIKE things INCLUDING ALL, CHECK (run_id = 2));
    CREATE TABLE copied AS TABLE pages;
    UPDATE copied SET run_id = 2, outcome = CASE outcome WHEN 'stored' THEN 'unchanged' ELSE outcome END;
    INSERT INTO pages_r2 TABLE copied;
    INSERT INTO things_r2 SELECT 2, digest, name FROM things;
"""
WITH_BODIES = "UPDATE pages_r1 SET body_digest = 'a', body = '1'; UPDATE pages_r2 SET body_digest = 'a'"
WANTED = """UPDATE runs SET spec = jsonb_set(spec, '{parse,no_record}', '"gone"')"""
# Each is undone before the next.
REFRESHED = (
    ("SELECT 1", set()),
    ("UPDATE things_r2 SET name = 'x' WHERE name = 'k1'", {OTHER_RECORDS}),
    ("DELETE FROM things_r2 WHERE name = 'k1'", {OTHER_RECORDS}),
    ("INSERT INTO things_r2 SELECT * FROM things_r2 WHERE name = 'k1'", {OTHER_RECORDS}),
    ("UPDATE pages_r2 SET content_digest = 'other' WHERE key = 'k1'", {UNLIKE}),
    ("UPDATE pages_r2 SET content_digest = '' WHERE key = 'k1'; DELETE FROM things_r2 WHERE name = 'k1'", set()),
    ("DELETE FROM pages_r1 WHERE key = 'k1'", {UNLIKE}),
    ("DELETE FROM pages_r1 WHERE key = 'k1'; UPDATE runs SET finished_at = now() WHERE run_id = 1", set()),
    ("DELETE FROM pages_r1 WHERE key = 'k1'; UPDATE runs SET finished_at = NULL WHERE run_id = 1", set()),
    ("UPDATE pages_r1 SET outcome = 'gone' WHERE key = 'k1'", {UNLIKE}),
    (f"{WITH_BODIES}; UPDATE pages_r2 SET body = '1'", set()),
    (f"{WITH_BODIES}; UPDATE pages_r2 SET body = CASE key WHEN 'k1' THEN '2'::jsonb ELSE '1' END", {UNLIKE}),
    (f"{WITH_BODIES}; UPDATE pages_r2 SET body = CASE key WHEN 'k1' THEN NULL ELSE '1'::jsonb END", {UNLIKE}),
    ("INSERT INTO things_r2 SELECT 2, digest, 'x' FROM pages_r2 WHERE key = 'missing1'", {ORPHANS}),
    ("UPDATE pages_r2 SET outcome = 'failed', stale = true WHERE key = 'k1'", {FINAL}),
    ("UPDATE pages_r2 SET outcome = 'failed' WHERE key = 'k1'", {FINAL, ORPHANS}),
    ("UPDATE pages_r2 SET stale = true WHERE key = 'k1'", {NOT_FAILED}),
    ("ALTER TABLE things ATTACH PARTITION things_r2 FOR VALUES IN (2)", {PUBLISHED}),
    ("UPDATE runs SET published_at = now() WHERE run_id = 2", {PUBLISHED}),
    ("UPDATE runs SET shortfall = NULL WHERE run_id = 2", set()),
    ("UPDATE corpora SET current_run = 2", {SEEN}),
    ("UPDATE corpora SET current_run = NULL", {SEEN}),
    ("""UPDATE runs SET layout = layout || '{"carried_run": 99}'; DELETE FROM things_r2 WHERE name = 'k1'""", set()),
    (WANTED, set()),
    (f"{WANTED}; DELETE FROM things_r2 WHERE name = 'k1'", {EMPTY, OTHER_RECORDS}),
)
ROWS = ("pages_r1", "pages_r2", "things_r1", "things_r2")
UNDO = f"""
    DO $$ BEGIN
        IF (SELECT relispartition FROM pg_class WHERE relname = 'things_r2') THEN
            ALTER TABLE things DETACH PARTITION things_r2;
        END IF;
    END $$;
    {"; ".join(f"TRUNCATE {name}; INSERT INTO {name} TABLE kept_{name}" for name in ROWS)};
    UPDATE runs r SET (spec, layout, shortfall, published_at, finished_at)
        = (k.spec, k.layout, k.shortfall, k.published_at, k.finished_at) FROM kept_runs k WHERE k.run_id = r.run_id;
    UPDATE corpora c SET current_run = k.current_run FROM kept_corpora k WHERE k.corpus = c.corpus;
"""
MERGED = """UPDATE runs SET spec = jsonb_set(spec, '{tables,0,mode}', '"merge"'); """
KEPT = "INSERT INTO things_r2 SELECT 2, digest || '\\x00', name FROM things WHERE name = 'k1'"
KEPT_RECORDS = (
    (KEPT, set()),
    ("INSERT INTO things_r2 VALUES (2, '\\x0123456789abcdef0123456789abcdef00', 'of a run that was pruned')", set()),
    ("INSERT INTO things_r2 VALUES (2, '\\x00', 'of no key')", {ORPHANS}),
    (f"{KEPT}; UPDATE runs SET published_at = NULL WHERE run_id = 1; UPDATE corpora SET current_run = NULL", set()),
)


@pytest.mark.slow
async def test_a_refresh_is_compared_with_its_base(crawl: Crawl) -> None:
    await crawl.finish()
    await crawl.postgres.execute(REFRESH)
    expected = {SEEN, UNLIKE, OTHER_RECORDS, NOT_FAILED}
    assert expected <= set(await crawl.findings(name="refreshed"))
    assert SEEN in await crawl.findings()
    dump = "; ".join(f"CREATE TABLE kept_{name} AS TABLE {name}" for name in ("runs", "corpora", *ROWS))
    await crawl.postgres.execute(dump)
    for change, broken in (*REFRESHED, *((MERGED + change, broken) for change, broken in KEPT_RECORDS)):
        await crawl.postgres.execute(change)
        assert await crawl.broken(name="refreshed") == broken, change
        await crawl.postgres.execute(UNDO)
    await crawl.postgres.execute(KEPT)
    assert await crawl.broken(name="refreshed") == {ORPHANS}


async def test_redis_keys_changed_by_hand_are_found(crawl: Crawl) -> None:
    await crawl.finish()
    keys, redis = RunKeys(NAME), crawl.redis
    assert await crawl.broken() == set()

    await redis.set(keys.leader, "passing", ex=600)
    assert await crawl.broken() == set()
    await redis.persist(keys.leader)
    assert await crawl.broken() == {STRAY}
    await redis.rename(keys.leader, "shardcrawl:{audited2}:leader")
    assert await crawl.broken() == set(), "another run's key is none of this one's"
    await redis.set(f"shardcrawl:{{{NAME}}}:done:99999", "x")
    assert (await crawl.findings())[STRAY].note.endswith("done:99999")
    await redis.delete(f"shardcrawl:{{{NAME}}}:done:99999")

    await redis.xadd(keys.stream(0), {"b": "x"})
    assert await crawl.broken() == {STRAY, BLOCKS}
    await redis.delete(keys.stream(0))

    await redis.sadd(keys.done(0), 1)
    assert await crawl.broken() == {DONE}
    assert (await crawl.findings())[DONE].note == "not needed any more"
    await redis.delete(keys.done(0))
    await redis.copy(keys.state, "kept")

    for field, what in (("gone", COUNTERS), ("resolved", RESOLVED)):
        await redis.hincrby(keys.state, field, 1)
        assert await crawl.broken() == {what}
        await redis.copy("kept", keys.state, replace=True)
    await redis.hset(keys.state, "state", "resolved")
    assert STATE in await crawl.broken()


async def test_an_interrupted_run_that_was_changed_by_hand_is_found(crawl: Crawl) -> None:
    await crawl.interrupt()
    keys, redis, postgres = RunKeys(NAME), crawl.redis, crawl.postgres
    assert await crawl.broken() == set()

    await redis.set(f"shardcrawl:{{{NAME}}}:mystery", "x", ex=600)
    assert await crawl.broken() == {STRAY}
    await redis.delete(f"shardcrawl:{{{NAME}}}:mystery")

    await redis.copy(keys.state, "kept")
    await redis.hincrby(keys.state, "stored", KEYS)
    assert await crawl.broken() == {COUNTED}
    await redis.copy("kept", keys.state, replace=True)
    await redis.hset(keys.state, "resolved", KEYS + 1)
    assert await crawl.broken() == {RESOLVED, "keys of the source not finished yet"}
    await redis.copy("kept", keys.state, replace=True)

    await postgres.execute(ANOTHER)
    assert await crawl.broken() == {NO_KEY}
    await postgres.execute("DELETE FROM pages_r1 WHERE key = 'a stranger'")
    await postgres.execute("ALTER TABLE pages_r1 DROP CONSTRAINT pages_r1_pkey")
    await postgres.execute("INSERT INTO pages_r1 SELECT * FROM pages_r1 LIMIT 1")
    assert await crawl.broken() == {DOUBLED}
    await postgres.execute("TRUNCATE pages_r1, things_r1")
    assert await crawl.broken() == {COUNTED, DONE}


@pytest.mark.slow
async def test_a_run_that_redis_lost_is_said_to_be_lost_and_holds(crawl: Crawl) -> None:
    await crawl.interrupt()
    await crawl.postgres.execute("UPDATE runs SET epoch = 'void'")
    assert (await crawl.findings())["the run in Redis"].found == "void"
    await crawl.redis.flushall()
    (crawl.shell.folder / "keys.txt").rename(crawl.shell.folder / "moved.txt")
    found = await crawl.findings()
    assert found["the run in Redis"].found == "not there"
    assert {what for what, one in found.items() if not one.ok} == {"the source"}
    (crawl.shell.folder / "moved.txt").rename(crawl.shell.folder / "keys.txt")
    await crawl.finish()
    assert await crawl.broken() == set()
    await crawl.redis.flushall()
    place = Place(crawl.environ["REDIS_URL"], crawl.environ["DATABASE_URL"], crawl.shell.data)
    lost = await auditor.audit(place, NAME, str(crawl.shell.folder), None, 0, {})
    assert all(one.ok for one in lost)
    assert "not needed any more" in [one.expected for one in lost]


@pytest.mark.slow
async def test_a_key_that_was_requested_twice_is_found_also_in_another_request(crawl: Crawl) -> None:
    await crawl.finish()
    assert await crawl.broken(crawl.log()) == set()
    log = crawl.log("", "9.5 /batch?ids=k1%7Cmissing2&of=test", f'"GET" {crawl.upstream.url}/batch?ids=k3&of=test')
    assert await crawl.broken(log) == {AGAIN}
    assert (await crawl.findings(log))[AGAIN].found == 3
    assert (await crawl.findings(log))[AGAIN].note == "such as k1, k3, missing2"
    assert await crawl.broken(log, allowed=2) == {AGAIN}
    assert await crawl.broken(log, allowed=3) == set()
    with pytest.raises(UsageError, match="a file that can be read"):
        await crawl.findings(crawl.shell.folder)


async def test_leftover_sessions_are_found(crawl: Crawl, database: str) -> None:
    await crawl.finish()
    session = await asyncpg.connect(database)
    await session.execute("CREATE TEMP TABLE staging_1_r0 (digest bytea)")
    assert await crawl.broken() == {STAGING}
    await session.execute("DROP TABLE staging_1_r0")
    begun = await asyncpg.connect(database)  # it holds nothing
    await begun.execute("BEGIN")
    await session.execute("BEGIN; SELECT FROM runs")

    async def is_found() -> bool:
        return await crawl.broken() == {IDLE}

    await eventually(is_found, "the session idle in its transaction")
    note = (await crawl.findings())[IDLE].note
    assert f"pid {session.get_server_pid()}" in note
    assert f"pid {begun.get_server_pid()}" not in note
    await session.close()

    async def is_gone() -> bool:
        return await crawl.broken() == set()

    await eventually(is_gone, "the end of the session")
    await begun.close()
