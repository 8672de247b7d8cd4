"""Postgres restarts, dies, is full, has its schema changed, and is behind a pooler or a bad network."""

from __future__ import annotations

import signal

import asyncpg
import pytest

from tests.faults.crawl import IN_HAND, KEYS, Crawl, lasting
from tests.servers.network import Proxy
from tests.servers.own_servers import NoPgbouncer, SmallDisk, pgbouncer
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

COMMIT = b"COMMIT;"


@pytest.mark.parametrize("responded", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"])
async def test_the_connection_is_cut_during_commit(crawl: Crawl, responded: bool) -> None:
    """The worker does not know whether Postgres committed. No page is lost or doubled, and no key is fetched again."""
    async with Proxy(crawl.environ["DATABASE_URL"]) as proxy:
        running = await crawl.start(environ={"DATABASE_URL": proxy.url})
        await crawl.requested(KEYS // 4)
        proxy.cut_at(COMMIT, times=3, responded=responded)
        await eventually(lambda: proxy.cuts == 3, "three cuts", seconds=30)
        await crawl.recovered()
        await crawl.complete(running)
    what = "after Postgres committed" if responded else "before Postgres saw it"
    await crawl.audited("5 cut during COMMIT", f"3 cuts {what}")


@pytest.mark.slow
async def test_the_connection_is_cut_in_the_middle_of_a_copy(crawl: Crawl) -> None:
    """Postgres rolls back what it got of the COPY; the worker keeps the batch and sends it again."""
    async with Proxy(crawl.environ["DATABASE_URL"]) as proxy:
        running = await crawl.start(environ={"DATABASE_URL": proxy.url})
        await crawl.requested(KEYS // 4)
        for count in (1, 700, 20_000):
            cuts = proxy.cuts
            proxy.cut_after(count)
            await eventually(lambda: proxy.cuts > cuts, "the cut")  # noqa: B023
        await crawl.recovered()
        await crawl.complete(running)
    await crawl.audited("2 cut in the middle of a COPY", "after 1, 700 and 20,000 bytes")


@pytest.mark.slow
async def test_the_network_to_postgres_is_silent_and_then_reset(crawl: Crawl) -> None:
    """Fetching stops when the batch is full. After the reset the batch is committed, and no key is fetched again."""
    async with Proxy(crawl.environ["DATABASE_URL"]) as proxy:
        running = await crawl.start(environ={"DATABASE_URL": proxy.url})
        await crawl.requested(KEYS // 4)
        proxy.stall()
        before = crawl.upstream.requests
        await lasting(8.0)
        assert crawl.upstream.requests <= before + 2 * IN_HAND
        proxy.cut(reset=True)
        proxy.flow()
        await crawl.recovered()
        await crawl.complete(running)
    await crawl.audited("13 Postgres not reachable", "silent for 8 s, then reset")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_postgres_stops_and_starts_again(embedded_crawl: Crawl, number: signal.Signals) -> None:
    """After a fast shutdown, an immediate shutdown or kill -9, workers keep their batch, wait, and go on."""
    crawl = embedded_crawl
    running = await crawl.start()
    await crawl.requested(KEYS // 4)
    before = await crawl.pages()
    (await running.child("postgres")).send_signal(number)
    await crawl.recovered(before)
    await crawl.complete(running)
    await crawl.audited("13 Postgres restarts", number.name)


@pytest.mark.slow
async def test_a_backend_is_killed(embedded_crawl: Crawl) -> None:
    """After kill -9 of one session's process, Postgres ends all sessions and recovers. The run goes on."""
    crawl = embedded_crawl
    running = await crawl.start()
    await crawl.requested(KEYS // 4)
    server = await running.child("postgres")
    backend = next(child for child in server.children() if "idle" in child.cmdline()[0] or "COPY" in child.cmdline()[0])
    before = await crawl.pages()
    backend.kill()
    await crawl.recovered(before)
    await crawl.complete(running)
    await crawl.audited("13 Postgres recovers", "SIGKILL to a backend")


@pytest.mark.slow
async def test_the_disk_of_postgres_is_full(crawl: Crawl, small_disk: SmallDisk) -> None:
    """53100: fetching stops when the batch is full, `status` has the reason, and the run goes on when there is room."""
    database = await small_disk.database(crawl.environ["DATABASE_URL"])
    crawl.environ["DATABASE_URL"] = database
    running = await crawl.start()
    await crawl.requested(KEYS // 4)
    small_disk.fill()
    before = crawl.upstream.requests
    await lasting(8.0)
    assert crawl.upstream.requests < KEYS
    assert crawl.upstream.requests <= before + 3 * IN_HAND
    status = await crawl.shell.run("status", "urls", "--json", environ=crawl.environ)
    assert "No space left on device" in status.out
    small_disk.empty()
    await crawl.recovered()
    await crawl.complete(running)
    await crawl.audited("13 disk of Postgres full", "53100 for 8 s")


CHANGES = {
    "a column of pages is dropped": ("ALTER TABLE pages_r1 DROP COLUMN etag", "ALTER TABLE pages_r1 ADD etag text"),
    "a column of pages is renamed": (
        "ALTER TABLE pages_r1 RENAME etag TO label",
        "ALTER TABLE pages_r1 RENAME label TO etag",
    ),
    "a column of pages has another type": (
        "ALTER TABLE pages_r1 ALTER status TYPE text USING status::text",
        "ALTER TABLE pages_r1 ALTER status TYPE smallint USING status::smallint",
    ),
    "body has another type": (
        "ALTER TABLE pages_r1 ALTER body TYPE text USING body::text",
        "ALTER TABLE pages_r1 ALTER body TYPE jsonb USING body::jsonb",
    ),
    "a constraint is added": (
        "ALTER TABLE pages_r1 ADD CONSTRAINT short_keys CHECK (length(key) < 5) NOT VALID",
        "ALTER TABLE pages_r1 DROP CONSTRAINT short_keys",
    ),
    "the table of pages is gone": ("ALTER TABLE pages_r1 RENAME TO gone", "ALTER TABLE gone RENAME TO pages_r1"),
    "a right is revoked": ("REVOKE INSERT ON pages_r1 FROM crawler", "GRANT INSERT ON pages_r1 TO crawler"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
async def test_the_schema_changes_under_the_run(crawl: Crawl, change: str) -> None:
    """The run ends with one error line. No block is acknowledged and no key failed. With the old schema it goes on."""
    change_sql, undo_sql = CHANGES[change]
    connection = await asyncpg.connect(crawl.environ["DATABASE_URL"])
    # `audit` too: to a superuser these tables would be somebody else's.
    crawl.environ = crawl.environ | await as_an_ordinary_user(crawl, connection)
    running = await crawl.start()
    await crawl.requested(KEYS // 4)
    await connection.execute(change_sql)
    ended = await running.end()
    assert ended.code == 1, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.err
    assert "Traceback" not in ended.err
    await connection.execute(undo_sql)
    assert await connection.fetchval("SELECT count(*) FROM pages_r1 WHERE outcome <> 'stored'") == 0
    running = await crawl.start()
    await crawl.recovered()
    ended = await crawl.complete(running)
    assert "goes on" in ended.err
    await connection.close()
    await crawl.audited("18 schema changed", change, again=2 * IN_HAND)


async def as_an_ordinary_user(crawl: Crawl, connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, str]:
    """Settings with a role that may make the run's tables. Unlike a superuser, it can lose a right."""
    url = crawl.environ["DATABASE_URL"]
    if not await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'crawler'"):
        await connection.execute("CREATE ROLE crawler LOGIN")
    await connection.execute(
        f'GRANT ALL ON DATABASE "{await connection.fetchval("SELECT current_database()")}" TO crawler'
    )
    await connection.execute("GRANT ALL ON SCHEMA public TO crawler")
    return {"DATABASE_URL": url.replace("postgres@", "crawler@")}


@pytest.mark.slow
async def test_pgbouncer_in_transaction_mode(crawl: Crawl) -> None:
    """A whole run behind a pooler that may give each transaction another of its two sessions."""
    try:
        async with Proxy(crawl.environ["DATABASE_URL"]) as proxy, pgbouncer(proxy) as url:
            running = await crawl.start(environ={"DATABASE_URL": url}, workers=4)
            await crawl.complete(running)
    except NoPgbouncer as error:
        pytest.skip(str(error))
    await crawl.audited("19 pgbouncer, transaction mode, by TLS", "2 sessions for 4 workers")
