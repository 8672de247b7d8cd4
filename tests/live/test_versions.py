"""Runs as versions of a corpus: held back, published, gone back to, cancelled and pruned, while readers read."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from coordinator.redis.keys import RUNS, RunKeys
from coordinator.tasks import cancel_and_wait
from crawler.sample.upstream import Upstream
from tests.live.shell import CommandResult, Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

READS = 1000
CANCELLED = 6
FALLS_SHORT = 4


class Corpus:
    """A corpus on the session's own servers, the runs of which have as many keys as each one is given."""

    def __init__(self, shell: Shell, upstream: Upstream, environ: dict[str, str], name: str = "c") -> None:
        self.shell = shell
        self.upstream = upstream
        self.environ = environ
        self.name = name

    def write(self, keys: int, bounds: str = "") -> str:
        """Write the job and a source of so many keys; returns the job's file."""
        self.shell.write(f"{self.name}.txt", [f"k{number}" for number in range(keys)])
        text = f"""
            [run]
            corpus = "{self.name}"
            [publish]
            {bounds}
            [source]
            path = "{self.name}.txt"
            [request]
            url = "{self.upstream.url}/item/{{key}}"
            allow_private = ["127.0.0.0/8"]
            [[tables]]
            name = "items_{self.name}"
            columns = {{ n = "bigint" }}
        """
        return str(self.shell.write(f"{self.name}.toml", text))

    async def run(self, keys: int, *options: str, bounds: str = "", code: int = 0) -> CommandResult:
        """Run the job over so many keys."""
        return await self.shell.run("run", self.write(keys, bounds), *options, environ=self.environ, code=code)

    async def command(self, *arguments: str, code: int = 0, failpoint: str = "") -> CommandResult:
        """Another command; with a failpoint it is killed there."""
        environ = self.environ | ({"FAILPOINT": failpoint} if failpoint else {})
        return await self.shell.run(*arguments, environ=environ, code=-signal.SIGKILL if failpoint else code)

    async def runs(self) -> list[dict[str, Any]]:
        """What `runs --json` lists."""
        listed: list[dict[str, Any]] = json.loads((await self.command("runs", "--json")).out)
        return listed

    async def current(self) -> str:
        """The name of the one run that readers see."""
        query = f"select name from runs join corpora on current_run = run_id where corpora.corpus = '{self.name}'"
        (row,) = await self.shell.sql(query, environ=self.environ)
        return str(row["name"])

    async def states(self) -> dict[str, str]:
        """The state of each run in Postgres."""
        rows = await self.shell.sql("select name, state from runs order by run_id", environ=self.environ)
        return {row["name"]: row["state"] for row in rows}

    async def tables(self) -> set[str]:
        """The tables into which runs have loaded."""
        query = r"select relname from pg_class where relkind = 'r' and relname ~ '_r\d+$'"
        return {row["relname"] for row in await self.shell.sql(query, environ=self.environ)}

    @asynccontextmanager
    async def read(self, query: str, check: Callable[[asyncpg.Record], bool]) -> AsyncIterator[None]:
        """Read again and again meanwhile, and at least READS times; each time what is read must be right."""
        connection = await asyncpg.connect(self.environ["DATABASE_URL"])
        reads, wrong = 0, []

        async def read_on() -> None:
            nonlocal reads
            while True:
                row = await connection.fetchrow(query)
                reads += 1
                if row is None or not check(row):
                    wrong.append(row)

        reading = asyncio.create_task(read_on())
        try:
            yield
            await eventually(lambda: reads >= READS or reading.done(), f"{READS} reads", seconds=60)
        finally:
            await cancel_and_wait([reading])
            connection.terminate()
        assert not wrong, wrong[:3]


@pytest.fixture
def corpus(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> Corpus:
    return Corpus(shell, upstream, environ)


def one_line(ended: CommandResult) -> str:
    """The only line of an error."""
    (line,) = ended.err.strip().splitlines()
    return line


async def test_a_refresh_that_falls_short_waits_for_its_user(corpus: Corpus) -> None:
    bounds = "max_gone = 0.1\nmin_keys = 0.9\nmax_failed = 0.5"
    await corpus.run(300, "--name", "first", bounds=bounds)
    ended = await corpus.run(100, "--name", "second", bounds=bounds, code=FALLS_SHORT)
    words = "max_gone is 10 %, and 200 of 300 keys with rows are gone or no longer in the source (66.67 %)"
    assert words in ended.out
    assert "100 keys have rows, after 300 in the current run" in ended.out
    assert "shardcrawl publish second --force" in ended.out
    again = json.loads((await corpus.run(100, "--name", "second", "--json", bounds=bounds, code=FALLS_SHORT)).out)
    assert (again["state"], again["published"]) == ("complete", False)
    assert words in again["shortfall"]
    assert words in (await corpus.command("status", "second")).out
    assert words in json.loads((await corpus.command("status", "second", "--json")).out)["shortfall"]
    first, second = await corpus.runs()
    assert (first["current"], first["shortfall"], second["current"], second["published_at"]) == (True, "", False, None)
    assert words in second["shortfall"]
    assert min(first["size"], second["size"]) > 8192

    assert words in (await corpus.command("publish", "second", code=FALLS_SHORT)).out
    assert await corpus.current() == "first"
    await corpus.command("publish", "second", "--force")
    assert await corpus.current() == "second"
    assert "see run first now" in (await corpus.command("rollback", "c")).out
    assert await corpus.current() == "first"
    assert "no complete run that was published before first" in one_line(await corpus.command("rollback", "c", code=2))
    assert "no corpus nothing; known corpora: c" in one_line(await corpus.command("rollback", "nothing", code=2))
    await corpus.command("audit", "second")


async def test_a_job_that_publishes_by_hand(corpus: Corpus) -> None:
    ended = await corpus.run(20, "--name", "first", bounds='mode = "manual"')
    assert "shardcrawl publish first" in ended.out
    assert await corpus.shell.sql("select * from pages_current", environ=corpus.environ) == []
    await corpus.command("publish", "first")
    assert await corpus.current() == "first"
    assert "not in Postgres" in one_line(await corpus.command("publish", "nothing", code=2))


@pytest.mark.slow
async def test_readers_never_see_a_part_of_a_version(corpus: Corpus) -> None:
    """While runs are published, gone back to and pruned, also by commands that die at a step."""
    await corpus.run(300, "--name", "first")

    def is_whole(row: asyncpg.Record) -> bool:
        return row["pages"] == row["items"] == row["joined"] in (300, 280, 260)

    query = """
        SELECT (SELECT count(*) FROM pages_current) AS pages, (SELECT count(*) FROM items_c_current) AS items,
               (SELECT count(*) FROM pages_current JOIN items_c_current USING (run_id, digest)) AS joined
    """
    async with corpus.read(query, is_whole):
        await corpus.run(280, "--name", "second")
        await corpus.run(260, "--name", "third", bounds='mode = "manual"')
        await corpus.command("publish", "third", failpoint="publish:attached")
        assert await corpus.current() == "second"
        await corpus.command("publish", "third")
        await corpus.command("rollback", "c")
        await corpus.command("publish", "third")
        before = await corpus.tables()
        for number, step in enumerate(("unlisted", "detached", "dropped")):
            keep = ("--keep", "2" if number == 0 else "1")
            await corpus.command("prune", "c", *keep, failpoint=f"prune:{step}")
        assert "would be deleted" in (await corpus.command("prune", "c", "--keep", "1", "--dry-run")).out
        await corpus.command("prune", "c", "--keep", "1")
    assert before == {f"{name}_r{number}" for name in ("pages", "items_c") for number in (1, 2, 3)}
    assert await corpus.tables() == {"pages_r3", "items_c_r3"}
    assert await corpus.states() == {"third": "complete"}


@pytest.mark.slow
async def test_a_reader_in_a_transaction_holds_prune_up_and_nobody_else(corpus: Corpus) -> None:
    for keys, name in ((30, "first"), (20, "second")):
        await corpus.run(keys, "--name", name)
    reader = await asyncpg.connect(corpus.environ["DATABASE_URL"])
    transaction = reader.transaction()
    await transaction.start()
    assert [tuple(row) for row in await reader.fetch("SELECT count(*) FROM items_c_current")] == [(20,)]
    await reader.execute("SELECT 1")  # so that no cursor of the query before is open
    held_up = asyncio.create_task(corpus.command("prune", "c", "--keep", "1", code=1))
    while not held_up.done():
        other = await asyncpg.connect(corpus.environ["DATABASE_URL"])
        async with asyncio.timeout(5):
            assert await other.fetchval("SELECT count(*) FROM items_c_current") == 20
        await other.close()
    assert "items_c" in one_line(await held_up)
    await transaction.rollback()
    await reader.close()
    assert "left by deleted runs: items_c_r1" in (await corpus.command("prune", "c", "--keep", "1")).out
    assert await corpus.tables() == {"pages_r2", "items_c_r2"}


@pytest.mark.slow
async def test_two_corpora_are_published_at_once_in_one_database(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    corpora = [Corpus(shell, upstream, environ, name) for name in ("one", "two")]
    sizes: Sequence[Sequence[int]] = ((100, 90, 80), (200, 190, 180))
    for corpus, (first, *_) in zip(corpora, sizes, strict=True):
        await corpus.run(first)

    def is_whole(row: asyncpg.Record) -> bool:
        found: dict[str, int] = json.loads(row["found"])
        return found.keys() == {"one", "two"} and found["one"] in sizes[0] and found["two"] in sizes[1]

    query = """
        SELECT json_object_agg(corpus, keys) AS found
        FROM (SELECT corpus, count(*) AS keys FROM pages_current JOIN runs USING (run_id) GROUP BY run_id, corpus) AS f
    """
    async with corpora[0].read(query, is_whole):
        for number in (1, 2):
            await asyncio.gather(*(corpus.run(sizes[which][number]) for which, corpus in enumerate(corpora)))
        await asyncio.gather(*(corpus.command("rollback", corpus.name) for corpus in corpora))
        await asyncio.gather(*(corpus.command("prune", corpus.name, "--keep", "2") for corpus in corpora))
    assert len(await corpora[0].states()) == 4


@pytest.mark.slow
async def test_a_run_is_cancelled_on_all_machines(corpus: Corpus, redis: Redis) -> None:
    job = corpus.write(3000)
    shell, environ = corpus.shell, corpus.environ
    machine = await shell.start("work", "--workers", "1", "--allow-private", "127.0.0.0/8", environ=environ)
    second = await shell.start("coordinate", job, "--name", "doomed", "--rate", "100", environ=environ)
    running = await shell.start("run", job, "--name", "doomed", "--rate", "100", environ=environ)
    await eventually(lambda: corpus.upstream.requests > 100, "100 requests")
    ended = await corpus.command("cancel", "doomed")
    sent = corpus.upstream.requests
    assert "run doomed is cancelled" in ended.out
    for command in (running, second):
        result = await command.end()
        assert result.code == CANCELLED, result.err
        assert "error: run doomed was cancelled" in result.err
        assert len([line for line in result.err.splitlines() if line.startswith("error:")]) == 1
    assert [key async for key in redis.scan_iter("*doomed*")] == []
    assert await redis.smembers(RUNS) == set()

    (run,) = await corpus.runs()
    stored = await shell.sql("select count(*) as n from pages_r1", environ=environ)
    assert (run["state"], run["current"], run["shortfall"]) == ("cancelled", False, None)
    assert stored == [{"n": run["stored"]}]
    assert run["stored"] == sent, "what was in flight is stored"
    for again in (("run", job, "--name", "doomed"), ("retry", "doomed"), ("limit", "doomed", "*", "--rate", "1")):
        assert "was cancelled" in one_line(await corpus.command(*again, code=CANCELLED))
    assert "was cancelled" in one_line(await corpus.command("diff", "doomed", "doomed", code=CANCELLED))
    await corpus.command("audit", "doomed")

    # The corpus' next run is another one, on which the same machine works.
    await corpus.run(50)
    assert (await corpus.current()) != "doomed"
    assert await redis.smembers(RUNS) == set()
    await corpus.command("prune", "c", "--keep", "1")
    machine.interrupt()
    result = await machine.end()
    assert result.code == 0
    assert "ERROR" not in result.err, result.err
    assert "doomed" not in await corpus.states()


@pytest.mark.slow
async def test_an_embedded_run_is_cancelled_from_another_terminal(shell: Shell, upstream: Upstream) -> None:
    """Its servers stop with it, before everything is deleted there."""
    corpus = Corpus(shell, upstream, {})
    running = await shell.start("run", corpus.write(3000), "--name", "doomed", "--rate", "100")
    await eventually(lambda: upstream.requests > 50, "50 requests")
    ended = await corpus.command("cancel", "doomed", "--drop")
    assert (await running.end()).code == CANCELLED
    assert "its rows are deleted" in ended.out
    assert await corpus.states() == {}
    assert await corpus.tables() == set()


@pytest.mark.slow
async def test_a_cancelling_that_dies_at_a_step_is_finished_by_the_next_one(corpus: Corpus, redis: Redis) -> None:
    running = await corpus.shell.start("run", corpus.write(3000), "--name", "doomed", environ=corpus.environ)
    await eventually(lambda: corpus.upstream.requests > 100, "100 requests")
    running.interrupt()
    assert (await running.end()).code == 130
    for step in ("cancelled", "drained", "erased"):
        await corpus.command("cancel", "doomed", failpoint=f"cancel:{step}")
        assert await corpus.states() == {"doomed": "cancelled"}
    await corpus.command("cancel", "doomed")
    assert [key async for key in redis.scan_iter("*doomed*")] == []
    await corpus.command("cancel", "doomed", "--drop", failpoint="cancel:unlisted")
    assert await corpus.tables() == {"pages_r1", "items_c_r1"}
    await corpus.command("cancel", "doomed", "--drop", failpoint="cancel:dropped")
    assert await corpus.tables() == set()
    assert "is not known" in one_line(await corpus.command("cancel", "doomed", "--drop", code=2))


@pytest.mark.slow
async def test_a_complete_run_is_not_cancelled(corpus: Corpus) -> None:
    await corpus.run(20, "--name", "first")
    assert "is complete" in one_line(await corpus.command("cancel", "first", code=2))
    assert "--keep N or --older-than" in one_line(await corpus.command("prune", "c", code=2))
    assert "no corpus nothing" in one_line(await corpus.command("prune", "nothing", "--older-than", "1d", code=2))
    assert "90d" in one_line(await corpus.command("prune", "c", "--older-than", "soon", code=2))
    assert "0 runs" in (await corpus.command("prune", "c", "--older-than", "999999999.9d")).out


@pytest.mark.slow
async def test_a_run_that_somebody_deleted_is_said_once_by_those_who_work(corpus: Corpus, redis: Redis) -> None:
    running = await corpus.shell.start("run", corpus.write(3000), "--name", "lost", environ=corpus.environ)
    await eventually(lambda: corpus.upstream.requests > 100, "100 requests")
    running.interrupt()
    assert (await running.end()).code == 130
    connection = await asyncpg.connect(corpus.environ["DATABASE_URL"])
    await connection.execute("DELETE FROM runs")
    await connection.close()
    machine = await corpus.shell.start("work", "--workers", "1", environ=corpus.environ)
    other = Corpus(corpus.shell, corpus.upstream, corpus.environ, "d")
    for keys in (200, 210):
        await other.run(keys)
    machine.interrupt()
    ended = await machine.end()
    assert ended.err.count("Postgres does not have") == 1, ended.err
    assert await redis.exists(RunKeys("lost").state)
    await other.command("prune", "d", "--keep", "3")
    assert [key async for key in redis.scan_iter("*lost*")] == []
    assert {name for name in await corpus.tables() if "items_c" in name or name == "pages_r1"} == set()
