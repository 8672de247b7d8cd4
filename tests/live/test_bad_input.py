"""Bad input of every kind ends with one clear line and the right exit code, and no request is sent."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio


async def refused(shell: Shell, *arguments: str | Path, code: int = 1, says: str, **environ: str) -> str:
    """Run a command that must fail with one error line that contains `says`; return this line."""
    ended = await shell.run(*arguments, environ=environ, code=code)
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    assert says in lines[0], lines[0]
    assert "Traceback" not in ended.err
    assert "s3cret" not in ended.err + ended.out
    return lines[0]


@pytest.fixture
def urls(shell: Shell) -> Path:
    return shell.write("urls.txt", ["http://127.0.0.1:9/item/1"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_redis_that_does_not_respond(shell: Shell, urls: Path, database: str) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    await refused(shell, "run", urls, says="does not answer", REDIS_URL=url, DATABASE_URL=database)


async def test_redis_address_that_is_no_address(shell: Shell, urls: Path, database: str) -> None:
    await refused(shell, "run", urls, says="redis://HOST", REDIS_URL="localhost:6379", DATABASE_URL=database)


async def test_redis_with_another_password(
    shell: Shell, urls: Path, redis: Redis, redis_url: str, database: str
) -> None:
    await redis.config_set("requirepass", "right")
    try:
        wrong = redis_url.replace("unix://", "unix://:s3cret@")
        await refused(shell, "run", urls, says="refuses the password", REDIS_URL=wrong, DATABASE_URL=database)
    finally:
        await redis.execute_command("AUTH", "right")
        await redis.config_set("requirepass", "")


async def test_status_and_runs_ask_redis_also_when_there_is_no_run(
    shell: Shell, redis: Redis, redis_url: str, database: str
) -> None:
    await redis.config_set("requirepass", "right")
    try:
        wrong = redis_url.replace("unix://", "unix://:s3cret@")
        for command in ("status", "runs"):
            await refused(shell, command, says="refuses the password", REDIS_URL=wrong, DATABASE_URL=database)
    finally:
        await redis.execute_command("AUTH", "right")
        await redis.config_set("requirepass", "")


async def test_check_names_what_a_run_would_be_refused_for(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    urls = shell.write("a.txt", [f"{upstream.url}/item/1"])
    shell.write("parse.py", "def parse(response): return {}")

    def job(name: str, kind: str, *, keys: Path = urls) -> Path:
        text = f"""
            [run]
            {f'name = "{name}"' if name else ""}
            [source]
            path = "{keys}"
            [parse]
            python = "parse:parse"
            [[tables]]
            name = "things"
            columns = {{ n = "{kind}" }}
        """
        return shell.write("job.toml", text)

    await shell.run("run", job("first", "bigint"), environ=environ)
    checked = await shell.run("check", job("first", "bigint"), environ=environ)
    assert "complete already" in checked.out
    assert "redis version" in checked.out
    assert "postgres version" in checked.out
    await refused(
        shell, "check", job("second", "text"), says="column n is bigint there, and text in the job", **environ
    )
    says = "run first was begun with another [source]"
    await refused(shell, "check", job("first", "bigint", keys=shell.write("b.txt", [])), code=2, says=says, **environ)
    await refused(shell, "check", job("second", "xmin"), code=2, says="known types are", **environ)
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    await connection.execute("UPDATE runs SET state = 'running'")
    await connection.close()
    says = "run first was begun with another [tables] things"  # which is the one that goes on without a name
    await refused(shell, "check", job("", "text"), code=2, says=says, **environ)


async def test_redis_that_evicts(shell: Shell, urls: Path, redis: Redis, redis_url: str, database: str) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await refused(shell, "run", urls, says="noeviction", REDIS_URL=redis_url, DATABASE_URL=database)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_postgres_that_does_not_respond(shell: Shell, urls: Path, redis: Redis, redis_url: str) -> None:
    url = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db"
    await refused(shell, "run", urls, says="does not answer", REDIS_URL=redis_url, DATABASE_URL=url)


async def test_postgres_address_that_is_no_address(shell: Shell, urls: Path, redis: Redis, redis_url: str) -> None:
    says = "postgresql://USER@HOST/DATABASE"
    await refused(shell, "run", urls, says=says, REDIS_URL=redis_url, DATABASE_URL="mysql://me@host/db")


async def test_postgres_without_the_database(
    shell: Shell, urls: Path, redis: Redis, redis_url: str, database: str
) -> None:
    missing = database.replace("/test_", "/missing_")
    await refused(shell, "run", urls, says="create the database", REDIS_URL=redis_url, DATABASE_URL=missing)


async def test_postgres_without_the_rights(
    shell: Shell, urls: Path, redis: Redis, redis_url: str, database: str
) -> None:
    admin = await asyncpg.connect(database)
    await admin.execute("DROP ROLE IF EXISTS reader")
    await admin.execute("CREATE ROLE reader LOGIN")
    await admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    await admin.close()
    as_reader = database.replace("postgres@", "reader@")
    await refused(shell, "run", urls, says="permission denied", REDIS_URL=redis_url, DATABASE_URL=as_reader)


@asynccontextmanager
async def scripted_postgres(*, version: str | None) -> AsyncIterator[str]:
    """A server that knows of Postgres' protocol how to say its version, or without one how to refuse a password."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">i", len(body) + 4) + body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        if version is None:
            fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
            writer.write(message(b"E", fields))
        else:
            writer.write(message(b"R", struct.pack(">i", 0)))
            writer.write(message(b"S", b"server_version\0" + version.encode() + b"\0"))
            writer.write(message(b"Z", b"I"))
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield f"postgresql://me:s3cret@127.0.0.1:{port}/db?sslmode=disable"
    server.close()


async def test_postgres_older_than_14(shell: Shell, urls: Path, redis: Redis, redis_url: str) -> None:
    async with scripted_postgres(version="13.14") as url:
        await refused(shell, "run", urls, says="needs 14 or newer", REDIS_URL=redis_url, DATABASE_URL=url)


async def test_postgres_with_another_password(shell: Shell, urls: Path, redis: Redis, redis_url: str) -> None:
    async with scripted_postgres(version=None) as url:
        await refused(shell, "run", urls, says="refuses the user or password", REDIS_URL=redis_url, DATABASE_URL=url)


async def test_port_in_use(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        await refused(shell, "demo", "--port", str(taken.getsockname()[1]), says="in use")


@pytest.mark.parametrize(
    ("command", "source", "says"),
    [
        ("run", "missing.txt", "missing.txt"),
        ("check", "none", "is a folder without files"),
        ("run", "*.csv", "matches no file"),
        ("check", "broken.gz", "broken.gz"),
        ("run", "archive", "archive is a zip archive: unpack it"),
        ("check", "ids.txt", "ids.txt: its first 1,000 keys are all refused; line 1 (id-0) does not start with http"),
        ("run", "/dev/fd/99", "source /dev/fd/99: Bad file descriptor"),
    ],
)
async def test_source_that_cannot_be_read(shell: Shell, command: str, source: str, says: str) -> None:
    shell.write("broken.gz", "this is no gzip")
    shell.write("archive", "PK\x03\x04")
    shell.write("ids.txt", [f"id-{number}" for number in range(2_000)])
    (shell.folder / "none").mkdir()
    await refused(shell, command, source, says=says, code=2 if "/fd/" in source else 1)


@pytest.mark.slow
async def test_damaged_source_ends_the_run_and_no_key_is_lost(shell: Shell, upstream: Upstream) -> None:
    lines = "".join(f"{upstream.url}/item/{os.urandom(8).hex()}\n" for _ in range(4000)).encode()
    packed = gzip.compress(lines)
    (shell.folder / "urls.gz").write_bytes(packed[: len(packed) // 2])
    await refused(shell, "run", "urls.gz", says="urls.gz")
    (shell.folder / "urls.gz").write_bytes(packed)
    await shell.run("run", "urls.gz", "--name", "whole")
    assert (await shell.sql("select counts->>'stored' as n from runs where name = 'whole'")) == [{"n": "4000"}]


async def test_job_file_that_is_wrong(shell: Shell) -> None:
    """More of them stand in tests/crawler/cli/test_main.py."""
    await refused(shell, "run", shell.write("job.toml", '[run]\nnmae = "x"\n'), code=2, says="did you mean name?")


async def test_parser_that_cannot_be_imported(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", ["a"])
    path = shell.write("job.toml", job(upstream, '\n[parse]\npython = "missing:parse"'))
    await refused(shell, "run", path, code=2, says="cannot import missing")
    assert upstream.requests == 0


async def test_body_that_is_not_json(shell: Shell, upstream: Upstream) -> None:
    paths = ["/notjson/1", *(f"/item/{number}" for number in range(99))]
    await shell.run("run", shell.write("urls.txt", [upstream.url + path for path in paths]))
    rows = await shell.sql("select key, reason from pages where outcome = 'failed'")
    assert [row["key"] for row in rows] == [f"{upstream.url}/notjson/1"]
    assert "json" in rows[0]["reason"].lower()
    assert await shell.sql("select count(*) as n from pages where outcome = 'stored'") == [{"n": 99}]


async def test_no_right_to_write_the_data_folder(shell: Shell, urls: Path) -> None:
    blocker = shell.write("blocker", "a file, and no folder")
    await refused(shell, "run", urls, "--data", str(blocker / "data"), says="--data")


async def test_unknown_run(shell: Shell) -> None:
    await refused(shell, "status", "nobody", code=2, says="no run nobody")


async def test_sql_that_writes(shell: Shell) -> None:
    await refused(shell, "sql", "create table t (a int)", code=2, says="only reads")


@pytest.mark.slow
async def test_another_source_under_the_same_name(shell: Shell, upstream: Upstream) -> None:
    first = shell.write("a.txt", [f"{upstream.url}/item/1"])
    second = shell.write("b.txt", [f"{upstream.url}/item/2"])
    await shell.run("run", first, "--name", "same")
    await refused(shell, "run", second, "--name", "same", code=2, says="another --name")


async def test_work_and_coordinate_need_shared_services(shell: Shell, urls: Path) -> None:
    await refused(shell, "work", code=2, says="REDIS_URL")
    await refused(shell, "coordinate", urls, code=2, says="REDIS_URL")
