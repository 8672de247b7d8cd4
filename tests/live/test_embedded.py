"""The embedded services on real servers: restarts, kills, other programs in their way, and unusual folders."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coordinator.errors import DataInUse, ShardcrawlError
from crawler.local.embedded import Embedded, Services, folder, lock, running

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]
AS_ORDINARY_USER = pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
BUSY_MINUTE = """DO $$ DECLARE finish timestamptz := clock_timestamp() + interval '1 min';
BEGIN WHILE clock_timestamp() < finish LOOP END LOOP; END $$"""
# Written by Redis 6.2.14, with a beginning in RDB format: kept, st and two.
OF_REDIS_6 = (
    "UkVESVMwMDA5+glyZWRpcy12ZXIGNi4yLjE0+gpyZWRpcy1iaXRzwED6BWN0aW1lwm5ACGv6CHVzZWQtbWVtwqBiDgD6DGFv"
    "Zi1wcmVhbWJsZcAB/gD7AgAPAnN0ARAAAAGiGDuwTwAAAAAAAAAAHR0AAAAKAAEBAAEBAYFhAgABAgEAAQABgWICBAH/AYEA"
    "AAGiGDuwTwAAAARrZXB0A3llc/9yi1hQe1os3yoyDQokNg0KU0VMRUNUDQokMQ0KMA0KKjMNCiQzDQpTRVQNCiQzDQp0d28N"
    "CiQxDQp4DQo="
)
OWNER = """
import asyncio, json, pathlib, sys
from crawler.local.embedded import Embedded

async def own() -> None:
    async with Embedded(pathlib.Path(sys.argv[1]), grace_seconds=float(sys.argv[2])) as embedded:
        print(json.dumps(dict(embedded.pids)), flush=True)
        await asyncio.Event().wait()

asyncio.run(own())
"""


class Owner:
    """Another process that runs the services, to be killed."""

    def __init__(self, data: Path, grace_seconds: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(data), str(grace_seconds)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def pids(self) -> dict[str, int]:
        assert self.process.stdout
        found: dict[str, int] = json.loads(await asyncio.to_thread(self.process.stdout.readline))
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def no_server_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test ends without a process on its folders; a failed one is cleaned up after."""
    yield
    left = [process for process in psutil.process_iter() if _mentions(process, tmp_path)]
    for process in left:
        process.kill()
    assert not left


def _mentions(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(word.startswith(str(folder)) for word in process.cmdline())
    except psutil.Error:
        return False


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


async def ask_redis(services: Services, *command: str) -> Any:
    assert services.redis_url
    client: Any = Redis.from_url(services.redis_url, decode_responses=True)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def ask_postgres(services: Services, query: str) -> Any:
    connection = await asyncpg.connect(services.database_url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def put_something(services: Services) -> None:
    await ask_redis(services, "SET", "kept", "yes")
    await ask_postgres(services, "CREATE TABLE kept AS SELECT 'yes' AS word")


async def assert_kept(services: Services) -> None:
    assert await ask_redis(services, "GET", "kept") == "yes"
    assert await ask_postgres(services, "SELECT word FROM kept") == "yes"


async def test_both_are_reached_on_private_sockets_only_and_nothing_runs_afterwards(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "postgres.new-killed").mkdir(mode=0o700, parents=True)
    async with Embedded(data) as embedded:
        pids = dict(embedded.pids)
        assert running(data) == embedded.services
        assert (await ask_redis(embedded.services, "INFO", "server"))["tcp_port"] == 0
        assert (await ask_redis(embedded.services, "INFO", "persistence"))["aof_enabled"] == 1
        assert (await ask_redis(embedded.services, "INFO", "memory"))["maxmemory_policy"] == "noeviction"
        for command in (("MODULE", "LIST"), ("CONFIG", "GET", "dir"), ("DEBUG", "JMAP"), ("REPLICAOF", "NO", "ONE")):
            with pytest.raises(ResponseError, match="unknown command"):
                await ask_redis(embedded.services, *command)
        for setting, value in {"listen_addresses": "", "fsync": "on", "synchronous_commit": "on", "jit": "off"}.items():
            assert await ask_postgres(embedded.services, f"SHOW {setting}") == value
        assert await ask_postgres(embedded.services, "SELECT current_database() || ' ' || current_user") == (
            "shardcrawl postgres"
        )
        assert all(os.getsid(pid) == pid for pid in pids.values()), "a terminal's Ctrl-C would reach them"
    assert pids.keys() == {"redis", "postgres"}
    assert not any(map(psutil.pid_exists, pids.values())), "a server or its zombie is left"
    assert running(data) is None
    assert not list(data.glob("postgres.new-*"))


async def test_data_is_kept_over_a_restart_at_the_same_urls(tmp_path: Path) -> None:
    async with Embedded(tmp_path) as embedded:
        before = embedded.services
        await put_something(before)
    async with Embedded(tmp_path) as embedded:
        assert embedded.services == before
        await assert_kept(embedded.services)


async def test_one_service_alone_leaves_the_other_url_empty(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres=False) as embedded:
        assert embedded.services.database_url is None
        assert embedded.pids.keys() == {"redis"}
        assert running(tmp_path) == embedded.services
        assert await ask_redis(embedded.services, "PING")


async def test_a_kill_of_everything_loses_nothing_and_a_torn_append_only_file_loads(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    pids = await owner.pids()
    services = running(tmp_path)
    assert services
    await put_something(services)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    owner.kill()
    assert running(tmp_path) is None
    logs = list((tmp_path / "redis").rglob("*.incr.aof")) or [tmp_path / "redis" / "appendonly.aof"]  # of Redis 6.2
    with logs[0].open("ab") as log:
        log.write(b"*3\r\n$3\r\nSET\r\n$4\r\nke")
    async with Embedded(tmp_path) as embedded:
        await assert_kept(embedded.services)


async def test_servers_left_by_a_killed_owner_are_stopped_and_their_data_is_kept(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    pids = await owner.pids()
    services = running(tmp_path)
    assert services
    await put_something(services)
    owner.kill()
    assert all(map(alive, pids.values()))
    assert running(tmp_path) is None, "their owner is dead"
    async with Embedded(tmp_path) as embedded:
        assert not any(map(alive, pids.values()))
        await assert_kept(embedded.services)


async def test_servers_end_by_themselves_when_their_owner_is_killed(tmp_path: Path) -> None:
    owner = Owner(tmp_path, grace_seconds=0.1)
    pids = await owner.pids()
    services = running(tmp_path)
    assert services
    await put_something(services)
    owner.kill()
    await until(lambda: not any(map(alive, pids.values())))
    assert "database system is shut down" in (tmp_path / "postgres.log").read_text(), "not killed: asked to stop"
    async with Embedded(tmp_path) as embedded:
        await assert_kept(embedded.services)


async def test_a_command_that_only_looks_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` starts the servers for itself when nobody has; a run that is started meanwhile must not end over it."""
    data = folder.open_folder(tmp_path)
    looking = await lock.lock(data)
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        if sum(naps) >= 3.0:
            os.close(looking)
            naps.clear()

    monkeypatch.setattr(lock.asyncio, "sleep", nap)
    os.close(await lock.lock(data))
    data.close()


async def test_a_program_that_has_the_folder_itself_learns_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_WAIT_SECONDS", lock.LOCK_POLL_SECONDS)
    data = folder.open_folder(tmp_path)
    held = await lock.lock(data)
    with pytest.raises(DataInUse, match=r"this program uses .* already: read what crawler\.read returned"):
        await lock.lock(data)
    os.close(held)
    data.close()


async def test_a_frozen_owner_keeps_the_folder_to_itself(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    pids = await owner.pids()
    try:
        owner.process.send_signal(signal.SIGSTOP)
        with pytest.raises(DataInUse, match=rf"pid {owner.process.pid}\) is using .*--data"):
            async with Embedded(tmp_path):
                pass
        assert all(map(alive, pids.values()))
        assert running(tmp_path)
    finally:
        owner.kill()
    async with Embedded(tmp_path, postgres=False):  # also ends the leftovers
        assert not any(map(alive, pids.values()))


async def test_a_stranger_with_the_pid_of_a_killed_postgres_lives_and_is_no_obstacle(tmp_path: Path) -> None:
    async with Embedded(tmp_path, redis=False) as embedded:
        os.kill(embedded.pids["postgres"], signal.SIGKILL)
    # Of the user that Postgres runs as: only such a process looks like a live predecessor to it.
    owner = (tmp_path / "postgres").stat().st_uid
    stranger = _sleeper(owner)
    try:
        file = tmp_path / "postgres" / "postmaster.pid"
        file.write_text("\n".join([str(stranger.pid), *file.read_text().splitlines()[1:], ""]))
        async with Embedded(tmp_path, redis=False) as embedded:
            assert await ask_postgres(embedded.services, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def _sleeper(uid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], user=uid if os.geteuid() == 0 else None)


async def test_watch_restarts_a_killed_redis_and_a_killed_postgres(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Embedded(tmp_path) as embedded:
        watch = asyncio.create_task(embedded.watch())
        await put_something(embedded.services)
        for name in ("redis", "postgres"):
            before = embedded.pids[name]
            os.kill(before, signal.SIGKILL)
            await until(_says(caplog, f"restarted {name} "))
            assert embedded.pids[name] != before
        await assert_kept(embedded.services)
        assert running(tmp_path) == embedded.services
        assert {r.levelno for r in caplog.records if r.message.startswith("restarted")} == {logging.WARNING}
    await watch


def _says(caplog: pytest.LogCaptureFixture, words: str) -> Callable[[], bool]:
    return lambda: words in caplog.text


async def test_a_query_that_outlives_its_killed_postgres_does_not_keep_the_next_one_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Embedded(tmp_path, redis=False) as embedded:
        watch = asyncio.create_task(embedded.watch())
        connection = await asyncpg.connect(embedded.services.database_url)
        backend = connection.get_server_pid()
        busy = asyncio.create_task(connection.execute(BUSY_MINUTE))
        await until(lambda: psutil.Process(backend).cpu_times().user > 0.1)
        os.kill(embedded.pids["postgres"], signal.SIGKILL)
        await until(_says(caplog, "restarted postgres "))
        assert not alive(backend)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        assert await ask_postgres(embedded.services, "SELECT 1") == 1
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def test_watch_gives_up_on_a_server_that_dies_over_and_over(tmp_path: Path) -> None:
    async with Embedded(tmp_path, postgres=False) as embedded:
        watch = asyncio.create_task(embedded.watch())
        killed: set[int] = set()
        while len(killed) < 5:
            await until(lambda: watch.done() or embedded.pids.get("redis", 0) not in killed | {0})
            assert not watch.done()
            killed.add(pid := embedded.pids["redis"])
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            ShardcrawlError, match=r"redis died 5 times within 10 s, last by signal 9; see .*redis\.log"
        ):
            await watch


async def test_a_server_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(mode=0o700)
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"no such format\r\n" * 10)
    with pytest.raises(ShardcrawlError, match=r"redis does not start \(exit code 1\): .*(AOF|Bad file).*redis\.log"):
        async with Embedded(tmp_path):
            pass
    assert running(tmp_path) is None


async def test_an_append_only_file_that_loads_a_module_loads_none(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(mode=0o700)
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"*3\r\n$6\r\nMODULE\r\n$4\r\nLOAD\r\n$5\r\n/x.so\r\n")
    with pytest.raises(ShardcrawlError, match=r"redis does not start \(exit code 1\): .*[uU]nknown command 'MODULE'"):
        async with Embedded(tmp_path, postgres=False):
            pass


async def test_the_append_only_file_of_redis_6_is_read(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(mode=0o700)
    (tmp_path / "redis" / "appendonly.aof").write_bytes(base64.b64decode(OF_REDIS_6))
    async with Embedded(tmp_path, postgres=False) as embedded:
        assert await ask_redis(embedded.services, "GET", "kept") == "yes"
        assert await ask_redis(embedded.services, "GET", "two") == "x"
        assert await ask_redis(embedded.services, "XLEN", "st") == 1


async def test_a_cancelled_start_leaves_no_process_and_frees_the_folder(tmp_path: Path) -> None:
    task = asyncio.create_task(Embedded(tmp_path).__aenter__())
    await until(lambda: any(_mentions(process, tmp_path) for process in psutil.process_iter()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(_mentions(process, tmp_path) for process in psutil.process_iter())
    async with Embedded(tmp_path, postgres=False):
        pass


@pytest.mark.parametrize("name", ["deep/" * 30 + "data", "a b%20c?d=e&f#g:h", "one,two", "größe 大"])
async def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    async with Embedded(tmp_path / name) as embedded:
        assert await ask_redis(embedded.services, "PING")
        assert await ask_postgres(embedded.services, "SELECT 1") == 1


async def test_a_socket_folder_that_somebody_could_have_planted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Names of sockets are short of the limit here, and the data folder's are not.
    with tempfile.TemporaryDirectory() as short:
        Path(short).chmod(0o711)  # root's servers may have their programs there
        monkeypatch.setattr(tempfile, "tempdir", short)
        data = tmp_path / ("long" * 30)
        async with Embedded(data, postgres=False) as embedded:
            folder = Path(str(embedded.services.redis_url).removeprefix("unix://")).parents[1]
            assert folder.parent == Path(short)
            assert folder.stat().st_mode & 0o022 == 0
        assert not folder.exists()
        folder.mkdir()
        folder.chmod(0o777)
        with pytest.raises(ShardcrawlError, match="is not a folder of this user alone"):
            async with Embedded(data, postgres=False):
                pass
        assert folder.exists(), "what is refused is left alone"


async def test_a_data_folder_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(ShardcrawlError, match=r"cannot use .*file.*--data") as refusal:
            async with Embedded(data):
                pass
        assert "\n" not in str(refusal.value)


@AS_ORDINARY_USER
async def test_a_data_folder_without_write_permission_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for data in (tmp_path / "closed", tmp_path / "closed" / "data"):
        with pytest.raises(ShardcrawlError, match=r"cannot use .*closed.*Permission denied.*--data"):
            async with Embedded(data):
                pass
