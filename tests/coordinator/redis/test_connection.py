"""Connections to Redis, with servers of these tests: their errors become ours, in one line and without a secret."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis, UnixDomainSocketConnection

from coordinator.errors import RedisDamaged, RedisRefused, RedisUnavailable, ShardcrawlError, first_line, redacted
from coordinator.model import Outcome
from coordinator.queue.registry import RunInRedis
from coordinator.redis.connection import as_text, check_server, connect_redis, translate_redis_errors
from coordinator.redis.scripts import Script
from crawler.local.embedded.redis import redis_program
from tests.coordinator.parts import Run, record_of
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

SECRET = "geheim"


class Server:
    """A redis-server for one test, on a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "r.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, *settings: str) -> None:
        words = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        words += [] if "--save" in settings else ["--save", ""]
        program = str(redis_program())
        self.process = run([program, *words, *settings])
        await eventually(self.responds, "a redis-server to start")

    async def responds(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
            writer.write(b"PING\r\n")
            returned = await reader.readline()
            writer.close()
        except OSError:
            return False
        return returned != b"" and not returned.startswith(b"-LOADING")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def run(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@asynccontextmanager
async def client_of(url: str, timeout: float = 5.0) -> AsyncIterator[Redis]:
    client = connect_redis(url, timeout=timeout)
    try:
        yield client
    finally:
        await client.aclose()


async def said(call: Callable[[], Awaitable[object]], kind: type[ShardcrawlError]) -> str:
    """The text of the error that the call raises; it has one line."""
    with pytest.raises(kind) as caught:
        await call()
    text = str(caught.value)
    assert caught.type is kind
    assert len(text.splitlines()) == 1
    assert SECRET not in text
    return text


async def check(url: str) -> list[str]:
    async with client_of(url) as client:
        return await check_server(client, url)


@asynccontextmanager
async def user_with(server: Server, *rights: str) -> AsyncIterator[Redis]:
    """A client of a server that is started here, as a user with these rights."""
    await server.start()
    async with client_of(server.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "limited", "on", f">{SECRET}", *rights)
    async with client_of(f"unix://limited:{SECRET}@{server.socket}") as client:
        yield client


async def ping(client: Redis) -> None:
    with translate_redis_errors():
        await client.ping()


# -- addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:geheim@localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://user:geheim@example.org/2?ssl_cert_reqs=none", "rediss://example.org/2"),
        ("redis://example.org?password=geheim", "redis://example.org"),
        ("redis://example.org?username=u&password=geheim@", "redis://***"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock"),
        ("unix://:geheim@/run/redis.sock?password=geheim", "unix:///run/redis.sock"),
        ("redis://:geh/geheim@example.org/0", "redis://example.org/0"),
        ("redis://:geheim#geheim@example.org/0", "redis://***"),
        ("redis://:geheim?geheim@example.org/0", "redis://***"),
        ("redis://:geh@geheim@example.org/0", "redis://example.org/0"),
        ("redis://:geheim://geheim@example.org/0", "redis://example.org/0"),
        ("redis://[::1", "redis://[::1"),
        (":geheim@example.org", "example.org"),
        ("example.org", "example.org"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost:6379",
        "redis://[::1",
        "redis://:geheim@localhost:port/0",
        "redis://:geheim/more@localhost:6379/0",
        "redis://:geheim#more@localhost:6379/0",
        "redis://:geheim@localhost:99999/0",
        "redis://:geheim@localhost?socket_timeout=long",
        "redis://:geheim@localhost/database",
        "rediss://:geheim@localhost?ssl_cert_reqs=never",
        "redis://:12/geheim@localhost/0",
        "redis://:12?geheim@localhost/0",
        "redis://:12?geheim=1&more=2@localhost/0",
        "redis://:12#geheim@localhost/0",
        "redis:geheim",
    ],
)
def test_a_malformed_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(
        RedisRefused, match=r"\ARedis address .* is malformed; give it as redis://HOST:PORT/0\Z"
    ) as caught:
        connect_redis(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "nor does a traceback show it"


def test_an_unescaped_character_in_a_password_is_named() -> None:
    with pytest.raises(RedisRefused, match=r"\(is / \? or # in its password\? write %2F, %3F or %23\)"):
        connect_redis("redis://:12/geheim@localhost/0")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h/0?tls=true", "its parameter tls is not known; leave it out"),
        ("redis://:geheim@h/0?ssl_cert_reqs=none", "its parameter ssl_cert_reqs is for rediss:// only; leave it out"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(url: str, says: str) -> None:
    with pytest.raises(RedisRefused, match=rf"\ARedis address redis://h/0: {says}\Z"):
        connect_redis(url)


@pytest.mark.parametrize(
    "query",
    [
        "decode_responses=True&encoding=latin-1",
        "protocol=3",
        "max_connections=1&retry_on_timeout=true&timeout=1",
        "client_name=ours&health_check_interval=30",
        "socket_timeout=3&socket_connect_timeout=3&socket_keepalive=true",
    ],
)
async def test_parameters_of_other_programs_change_nothing(server: Server, query: str) -> None:
    await server.start("--appendonly", "yes")
    url = f"{server.url}?db=3&{query}"
    assert await check(url) == []
    async with client_of(url) as client, client_of(f"{server.url}?db=3") as other:
        await client.hset("hash", "field", "ä")
        assert await client.hgetall("hash") == {b"field": "ä".encode()}
        assert await Script(client, "run/election")(["leader"], ["coordinator", 1000, "lead"]) == 1
        assert await asyncio.gather(*(client.get("key") for _ in range(5))) == [None] * 5
        assert await other.exists("hash")


@pytest.mark.parametrize("written", ["none", "CERT_NONE", "required"])
def test_parameters_of_tls_are_taken(written: str) -> None:
    client = connect_redis(f"rediss://localhost/0?ssl_cert_reqs={written}&ssl_check_hostname=false")
    assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == written.lower().removeprefix("cert_")


# -- a server that does not respond


async def test_a_socket_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    url = f"unix://:{SECRET}@{tmp_path}/missing.sock"
    text = await said(lambda: check(url), RedisUnavailable)
    assert text.startswith(f"Redis at unix://{tmp_path}/missing.sock does not answer: ")
    assert text.endswith("; is it running?")


async def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as taken:  # bound and not listening: no other program can listen there
        taken.bind(("127.0.0.1", 0))
        url = f"redis://:{SECRET}@127.0.0.1:{taken.getsockname()[1]}/0"
        text = await said(lambda: check(url), RedisUnavailable)
    assert text.startswith(f"Redis at {redacted(url)} does not answer: ")


async def test_a_frozen_server_is_unavailable(server: Server) -> None:
    await server.start()
    assert server.process
    async with client_of(server.url, timeout=0.2) as client:
        await ping(client)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            await said(lambda: ping(client), RedisUnavailable)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


async def test_a_command_whose_result_is_lost_is_not_repeated(server: Server) -> None:
    await server.start()

    async def relay(client: asyncio.StreamReader, responses: asyncio.StreamWriter) -> None:
        """Carry commands and results, but not the result of INCR: then the connection is cut."""
        found, asking = await asyncio.open_unix_connection(str(server.socket))
        while command := await client.read(65_536):
            asking.write(command)
            returned = await found.read(65_536)
            if b"INCR" in command:
                break
            responses.write(returned)
        asking.close()
        responses.close()

    async def increment() -> None:
        with translate_redis_errors():
            await client.incr("count")

    path = server.folder / "relay.sock"
    async with await asyncio.start_unix_server(relay, path), client_of(f"unix://{path}") as client:
        await ping(client)
        await said(increment, RedisUnavailable)
    async with client_of(server.url) as client:
        assert await client.get("count") == b"1"


async def test_a_server_that_dies_is_unavailable_and_its_successor_is_used(server: Server) -> None:
    await server.start()
    async with client_of(server.url) as client:
        await ping(client)
        server.stop()
        await said(lambda: ping(client), RedisUnavailable)
        await server.start()
        await ping(client)


async def test_a_call_swallows_no_cancellation_whenever_it_comes(server: Server) -> None:
    await server.start()
    async with client_of(server.url) as client:
        for turns in range(50):
            call = asyncio.ensure_future(client.ping())
            for _ in range(turns):
                await asyncio.sleep(0)
            was_running = call.cancel()
            await asyncio.wait([call])
            assert call.cancelled() is was_running, f"cancelled after {turns} turns of the loop"


async def test_what_is_no_redis_is_refused(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    path = tmp_path / "http.sock"
    async with await asyncio.start_unix_server(serve, path):
        await said(lambda: check(f"unix://{path}"), RedisRefused)


# -- a server that refuses


@pytest.mark.parametrize("given", ["", ":falsch@", "nobody:geheim@"])
async def test_a_wrong_password_is_refused(server: Server, given: str) -> None:
    await server.start("--requirepass", SECRET)
    url = f"unix://{given}{server.socket}"
    text = await said(lambda: check(url), RedisRefused)
    assert text.startswith(f"Redis at {server.url} refuses the password or its rights: ")
    assert "falsch" not in text


async def test_the_right_password_is_taken(server: Server) -> None:
    await server.start("--requirepass", SECRET, "--appendonly", "yes")
    assert await check(f"unix://:{SECRET}@{server.socket}") == []


async def test_missing_rights_are_refused(server: Server) -> None:
    await server.start()
    async with client_of(server.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "+@read", "+@connection")
    async with client_of(f"unix://reader:{SECRET}@{server.socket}") as client:

        async def write() -> None:
            with translate_redis_errors():
                await client.set("key", 1)

        text = await said(write, RedisRefused)
    assert text.startswith("Redis refuses the password or its rights: ")
    assert text.endswith("; let the user have +set (ACL SETUSER)")


async def test_keys_that_a_user_may_not_touch_are_named(server: Server) -> None:
    async with user_with(server, "~other:*", "+@all") as client:

        async def read() -> None:
            with translate_redis_errors():
                await client.get("shardcrawl:runs")

        assert (await said(read, RedisRefused)).endswith("; let the user have ~shardcrawl:* (ACL SETUSER)")


async def test_a_user_that_may_not_call_info_is_warned_about_and_can_work(server: Server) -> None:
    async with user_with(server, "~shardcrawl:*", "+@all", "-@dangerous") as client:
        (warning,) = await check_server(client, server.url)
        assert warning.endswith("does not let this user call INFO: version and maxmemory-policy are unknown (+info)")
        assert await Script(client, "run/election")(["shardcrawl:leader"], ["coordinator", 1000, "lead"]) == 1


async def test_a_node_of_a_cluster_is_refused(server: Server) -> None:
    await server.start("--cluster-enabled", "yes", "--port", "0")
    assert (await said(lambda: check(server.url), RedisRefused)).startswith(
        f"Redis at {server.url} is a node of a Redis Cluster, which shardcrawl cannot use; give it one server"
    )


@pytest.mark.parametrize(
    "error", [exceptions.MovedError("866 127.0.0.1:7001"), exceptions.ClusterCrossSlotError("slot")]
)
def test_what_a_cluster_says_is_called_so(error: exceptions.RedisError) -> None:
    with (
        pytest.raises(RedisRefused, match="Redis at here is a node of a Redis Cluster"),
        translate_redis_errors("here"),
    ):
        raise error


async def test_a_database_that_is_not_there_is_refused(server: Server) -> None:
    await server.start()
    assert "DB index is out of range; end the address with another number" in await said(
        lambda: check(f"{server.url}?db=99"), RedisRefused
    )


async def test_tls_on_a_port_without_it_is_a_question(server: Server) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as plain:
        url = f"rediss://127.0.0.1:{plain.sockets[0].getsockname()[1]}/0"
        assert (await said(lambda: check(url), RedisUnavailable)).endswith("; is it running, with TLS on that port?")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_keys_is_refused(server: Server, policy: str) -> None:
    await server.start("--maxmemory-policy", policy)
    text = await said(lambda: check(server.url), RedisRefused)
    assert f"evicts keys (maxmemory-policy {policy})" in text
    assert text.endswith("set maxmemory-policy noeviction")


async def test_a_server_that_is_too_old_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.start()
    async with client_of(server.url) as client:
        version = (await client.info("server"))["redis_version"]
    monkeypatch.setattr("coordinator.redis.connection.OLDEST_REDIS", (99, 0))
    text = await said(lambda: check(server.url), RedisRefused)
    assert f"Redis at {server.url} is version {version}; " in text


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (("--appendonly", "yes"), True),
        (("--save", "3600", "1"), True),
        ((), False),
    ],
)
async def test_a_server_that_keeps_nothing_on_disk_is_warned_about(
    server: Server, settings: tuple[str, ...], kept: bool
) -> None:
    await server.start(*settings)
    warnings = await check(server.url)
    if kept:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith(f"Redis at {server.url} keeps nothing on disk")


async def test_a_server_that_hides_its_settings_is_not_refused_for_them(server: Server) -> None:
    await server.start("--rename-command", "CONFIG", "")
    assert await check(server.url) == []


# -- a server that takes no writes for a while


async def test_a_full_server_takes_no_writes_now(server: Server) -> None:
    await server.start("--maxmemory", "1")
    async with client_of(server.url) as client:
        await takes_no_writes_now(client, "maxmemory")


async def test_a_replica_takes_no_writes_now(server: Server) -> None:
    await server.start("--replicaof", "127.0.0.1", "1")
    async with client_of(server.url) as client:
        await takes_no_writes_now(client, "read only replica")


async def test_a_replica_that_lost_its_primary_returns_nothing_now(server: Server) -> None:
    await server.start("--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no")
    async with client_of(server.url) as client:

        async def read() -> None:
            with translate_redis_errors():
                await client.get("key")

        await said(read, RedisUnavailable)


async def test_a_server_whose_disk_fails_takes_no_writes_now(server: Server) -> None:
    await server.start("--save", "3600", "1")
    (server.folder / "dump.rdb").mkdir()  # no file can take that name any more
    async with client_of(server.url) as client:
        await client.set("key", 1)
        await client.bgsave()

        async def failed() -> bool:
            return (await client.info("persistence"))["rdb_last_bgsave_status"] == "err"

        await eventually(failed, "the snapshot to fail")
        await takes_no_writes_now(client, "MISCONF")


async def test_a_server_that_is_busy_with_a_script_is_waited_for(server: Server) -> None:
    await server.start("--lua-time-limit", "1")
    async with client_of(server.url) as client, client_of(server.url) as other:
        running = asyncio.create_task(client.eval("while true do end", 0))
        await eventually(lambda: said_busy(other), "Redis to be busy")
        await said(lambda: ping(other), RedisUnavailable)
        await other.script_kill()
        with pytest.raises(exceptions.ResponseError):
            await running
        await ping(other)


async def said_busy(client: Redis) -> bool:
    try:
        await client.ping()
    except exceptions.ResponseError:
        return True
    return False


async def takes_no_writes_now(client: Redis, why: str) -> None:
    """A command, a transaction and a script all raise RedisUnavailable."""

    async def command() -> None:
        with translate_redis_errors("here"):
            await client.hset("key", "field", 1)

    async def transaction() -> None:
        with translate_redis_errors("here"):
            async with client.pipeline(transaction=True) as pipe:
                pipe.hset("key", "field", 1)
                pipe.hset("key", "field", 2)
                await pipe.execute()

    async def script() -> None:
        with translate_redis_errors("here"):
            await Script(client, "run/election")(["leader"], ["coordinator", 1000, "lead"])

    for call in (command, transaction, script):
        text = await said(call, RedisUnavailable)
        assert text.startswith("Redis at here takes no writes now: ")
        assert why in text


# -- words


async def test_a_command_in_the_wrong_place_tells_that_redis_is_damaged(redis: Redis) -> None:
    run = Run(redis, record_of())
    await redis.set(run.keys.state, "a string")
    text = await said(run.counts, RedisDamaged)
    assert text.startswith("Redis has something else in a run's place: WRONGTYPE")
    assert await run.runs.find("run") == RunInRedis("", None)


def test_the_first_line_of_an_error_is_its_text_or_its_class() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert (as_text(b"\xc3\xa4"), as_text("ä")) == ("ä", "ä")


def test_other_errors_pass_untouched() -> None:
    with pytest.raises(LookupError), translate_redis_errors():
        raise LookupError
    with pytest.raises(RedisRefused, match="ours"), translate_redis_errors():
        raise RedisRefused("ours")


def test_commands_are_encoded_as_redis_py_does_it() -> None:
    ours, its = connect_redis("unix:///nowhere").connection_pool.make_connection(), UnixDomainSocketConnection(path="")
    commands: list[tuple[Any, ...]] = [
        ("XGROUP CREATE", "a", b"\0\r\n", "\xe9", "", 0, -(2**63), 0.1, 1e22, Outcome.STORED),
        (b"SET", "a", HTTPStatus.OK),
        ("EVALSHA", "sha", 5_000, *map(str, range(5_000)), b"x" * 100_000),
    ]
    for command in commands:
        assert b"".join(ours.pack_command(*command)) == b"".join(its.pack_command(*command))
    with pytest.raises(exceptions.DataError):
        ours.pack_command("SET", "a", None)
