"""`sql` for programs: UTF-8, and clean when the reader has enough."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from io import BytesIO

import asyncpg
import pytest

from coordinator.errors import UsageError
from crawler.cli.inspect import query_rows, write_rows
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def printed(shell: Shell, environ: Mapping[str, str], *arguments: str) -> str:
    return (await shell.run("sql", *arguments, environ=environ)).out


async def test_text_beyond_ascii_is_printed_where_the_terminal_has_only_ascii(
    shell: Shell, environ: dict[str, str]
) -> None:
    ascii_only = {**environ, "PYTHONIOENCODING": "ascii"}
    for form in ("--json", "--jsonl", "--csv"):
        assert "日本" in await printed(shell, ascii_only, form, "select U&'\\65e5\\672c' as name")
    assert "\\u65e5\\u672c" in await printed(shell, ascii_only, "select U&'\\65e5\\672c' as name")


CODE = "PERFORM pg_read_file('/etc/passwd'); EXECUTE 'COPY (SELECT 1) TO PROGRAM ''true'' '"


HOSTILE = (
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "LOAD '/tmp/anything.so'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "SELECT set_config('session_authorization', 'postgres', true)",
    f"DO $$ BEGIN RESET SESSION AUTHORIZATION; RESET ROLE; {CODE}; END $$",
    f"DO $$ BEGIN PERFORM set_config('role', 'none', true); {CODE}; END $$",
    "SELECT set_config('role', 'none', true), query_to_xml('select pg_read_file(''/etc/passwd'')', true, true, '')",
    "CREATE TABLE x (y int)",
    "INSERT INTO something VALUES (1)",
    "ALTER ROLE shardcrawl_reader SUPERUSER",
    "COMMIT; INSERT INTO something VALUES (1)",
)


async def test_a_query_can_only_read(database: str) -> None:
    """Also where the address names a superuser."""
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TABLE something AS SELECT 7 AS x")
    for statement in HOSTILE:
        for run in (query_rows(database, statement), write_rows(database, statement, "csv", BytesIO())):
            with pytest.raises(UsageError, match="^sql: "):
                await run
    assert (await query_rows(database, "TABLE something"))[1] == [(7,)]
    assert await connection.fetchval("SELECT count(*) FROM something") == 1
    assert not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = 'shardcrawl_reader'")
    await connection.close()


async def test_a_role_that_is_no_superuser_reads_as_itself(database: str) -> None:
    admin = await asyncpg.connect(database)
    owner = f"owner_{secrets.token_hex(4)}"
    await admin.execute(f"CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}")
    as_owner = database.replace("postgres@", f"{owner}@", 1)
    assert (await query_rows(as_owner, "SELECT session_user::text"))[1] == [(owner,)]
    await admin.close()


def socket_pair() -> tuple[int, int]:
    """Both ends of a socket, as asyncio and ssh give them to a child for a pipe."""
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


@pytest.mark.parametrize("form", ["--json", "--csv"])
@pytest.mark.parametrize("output", [os.pipe, socket_pair], ids=["pipe", "socket"])
async def test_a_reader_that_has_enough_ends_the_command_without_a_word(
    shell: Shell, environ: dict[str, str], form: str, output: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = output()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crawler", "sql", form, "select repeat('x', 1000) from generate_series(1, 10000000)"),
        env={**os.environ, **environ},
        cwd=shell.folder,
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    assert process.stderr is not None
    # What is not read yet makes a socket say "reset" first, and "broken pipe" after that.
    assert await asyncio.to_thread(os.read, reader, 1) != b""
    os.close(reader)
    assert await process.stderr.read() == b""
    assert await process.wait() == 128 + signal.SIGPIPE
    await _sessions(environ["DATABASE_URL"], "true", 0)


async def test_an_interrupted_query_ends_without_a_word_and_leaves_no_session(
    shell: Shell, environ: dict[str, str]
) -> None:
    running = await shell.start("sql", "--csv", "select pg_sleep(600)", environ=environ)
    await _sessions(environ["DATABASE_URL"], "query like 'COPY%pg_sleep%'", 1)
    running.interrupt()
    ended = await running.end()
    assert (ended.code, ended.err) == (130, "")
    await _sessions(environ["DATABASE_URL"], "true", 0)


async def _sessions(database: str, condition: str, wanted: int) -> None:
    """Wait until so many other sessions in the database meet the condition."""
    connection = await asyncpg.connect(database)
    count = f"select count(*) from pg_stat_activity where datname = current_database() and {condition}"

    async def reached() -> bool:
        return bool(await connection.fetchval(f"{count} and pid <> pg_backend_pid()") == wanted)

    await eventually(reached, f"{wanted} sessions with {condition}")
    await connection.close()
