"""Connecting to Postgres, and its errors."""

from __future__ import annotations

import asyncio
import socket
import ssl

import asyncpg
import pytest

from coordinator.errors import PostgresRefused, PostgresUnavailable, ShardcrawlError
from crawler.store.postgres import connect_postgres, postgres_errors
from crawler.store.schema import postgres_flaw, read_version
from tests.servers.network import Proxy

pytestmark = pytest.mark.anyio


async def test_a_database_that_cannot_hold_every_key_is_refused(database: str) -> None:
    admin = await connect_postgres(database)
    name = database.split("/")[3].split("?")[0] + "_latin"
    try:
        await admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        with pytest.raises(PostgresRefused, match="has encoding LATIN1; create one with ENCODING 'UTF8'"):
            await connect_postgres(database.replace(name.removesuffix("_latin"), name))
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


@pytest.mark.parametrize(
    ("version", "advice"), [((18, 3), "change to 18.4"), ((18, 4), None), ((15, 9), "change to 15.18"), ((19, 0), None)]
)
async def test_a_flaw_is_named_for_bad_versions_only(version: tuple[int, int], advice: str | None) -> None:
    flaw = postgres_flaw(*version)
    assert flaw is None if advice is None else flaw is not None and flaw.endswith(advice)


async def test_the_version_of_a_server(database: str) -> None:
    connection = await connect_postgres(database)
    try:
        number = int(await connection.fetchval("SHOW server_version_num"))
    finally:
        await connection.close()
    assert await read_version(database) == (number // 10_000, number % 10_000)


async def test_a_connection_by_tcp_ends_when_the_network_is_silent(database: str) -> None:
    """tests/faults/test_machines shows with a real network that it does."""
    async with Proxy(database) as proxy:
        connection = await connect_postgres(proxy.url)
        sock = connection._transport.get_extra_info("socket")
        options = [sock.getsockopt(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT)]
        assert (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *options) == (1, 10, 2)
        await connection.close()


async def test_a_postgres_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(PostgresUnavailable, match="does not answer") as caught:
        await connect_postgres("postgresql://user:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "mysql://user:s3cret@host/db"])
async def test_an_address_of_something_else_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(PostgresRefused, match="postgresql://USER@HOST/DATABASE") as caught:
        await connect_postgres(address)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        *(
            (kind("the\nwords"), PostgresUnavailable)
            for kind in (
                asyncpg.AdminShutdownError,
                asyncpg.CannotConnectNowError,
                asyncpg.ConnectionDoesNotExistError,
                asyncpg.CrashShutdownError,
                asyncpg.DeadlockDetectedError,
                asyncpg.DiskFullError,
                asyncpg.InternalClientError,
                asyncpg.LockNotAvailableError,
                asyncpg.OutOfMemoryError,
                asyncpg.QueryCanceledError,
                asyncpg.SerializationError,
                asyncpg.TooManyConnectionsError,
                ConnectionResetError,
                TimeoutError,
            )
        ),
        (asyncpg.InterfaceError("connection is closed"), PostgresUnavailable),
        *(
            (kind("the\nwords"), PostgresRefused)
            for kind in (
                asyncpg.InsufficientPrivilegeError,
                asyncpg.InvalidAuthorizationSpecificationError,
                asyncpg.InvalidCatalogNameError,
                asyncpg.InvalidPasswordError,
                asyncpg.ReadOnlySQLTransactionError,
                asyncpg.InvalidSchemaNameError,
                asyncpg.UndefinedFunctionError,
                asyncpg.UndefinedTableError,
            )
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_library_is_one_line_of_ours(error: Exception, ours: type[Exception]) -> None:
    with pytest.raises(ours) as caught, postgres_errors("host/db"):
        raise error
    assert "Postgres at host/db" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [asyncpg.DataError("row"), asyncpg.UniqueViolationError("row"), asyncpg.InterfaceError("a bug"), KeyError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_one_row_or_of_ours_goes_through_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, postgres_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            asyncpg.InvalidPasswordError('password authentication failed for user "me"'),
            "refuses the user or password: .*; correct the password",
        ),
        (asyncpg.InvalidAuthorizationSpecificationError('role "me" does not exist'), "refuses .*; create the role"),
        (asyncpg.InvalidAuthorizationSpecificationError('role "me" is not permitted to log in'), "give the role LOGIN"),
        (
            asyncpg.InvalidAuthorizationSpecificationError(
                'no pg_hba.conf entry for host "::1", user "me", no encryption'
            ),
            "or encrypt with sslmode=require",
        ),
        (
            asyncpg.InvalidAuthorizationSpecificationError(
                'no pg_hba.conf entry for host "::1", user "me", SSL encryption'
            ),
            "let its pg_hba.conf admit this user, database and host",
        ),
        (asyncpg.InvalidCatalogNameError('database "x" does not exist'), "create the database first"),
        # pgbouncer 1.18 has one code for all of these.
        (
            asyncpg.ProtocolViolationError("password authentication failed"),
            "refuses the user or password: .*; correct the password",
        ),
        (
            asyncpg.ProtocolViolationError("SASL authentication failed"),
            "refuses the user or password: .*; correct the password",
        ),
        (asyncpg.ProtocolViolationError("no such user: me"), "refuses the user .*; create the role"),
        (asyncpg.ProtocolViolationError("no such database: x"), "name a database that pgbouncer has"),
        (asyncpg.ProtocolViolationError("unsupported startup parameter: options"), "ignore_startup_parameters"),
        (asyncpg.ProtocolViolationError("SSL required"), "use sslmode=require"),
        (asyncpg.ProtocolViolationError("no more connections allowed (max_client_conn)"), "has no connection left"),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), "has no connection left: sorry"),
        (asyncpg.CannotConnectNowError("the database system is starting up"), "is not ready: .*; wait"),
        (asyncpg.DiskFullError("could not extend file"), "out of resources: .*; make room"),
        (ConnectionRefusedError("Connection refused"), "does not answer: Connection refused; is it running"),
        (socket.gaierror(-2, "Name or service not known"), "host name is not known; is the address right"),
        (TimeoutError(), "no response in time; is the address right"),
        (ConnectionError('PostgreSQL server at "h:1" rejected SSL upgrade'), "has no TLS, and sslmode asks for it"),
        (ssl.SSLCertVerificationError("certificate verify failed"), "sslrootcert=FILE"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, Exception) else "",
)
def test_each_cause_has_its_own_sentence_and_only_silence_asks_whether_it_runs(error: Exception, says: str) -> None:
    with pytest.raises(ShardcrawlError, match=f"^Postgres at host/db.*{says}") as caught, postgres_errors("host/db"):
        raise error
    assert ("is it running" in str(caught.value)) == isinstance(error, ConnectionRefusedError)
    assert len(str(caught.value).splitlines()) == 1


async def test_a_server_without_tls_is_said_to_have_none() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PostgresRefused, match="has no TLS, and sslmode asks for it; turn it on there, or"):
            await connect_postgres(f"postgresql://me:s3cret@127.0.0.1:{port}/db?sslmode=require")


async def test_connect_timeout_bounds_the_waiting() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PostgresUnavailable, match="no response in time"):
            await connect_postgres(f"postgresql://me@127.0.0.1:{port}/db?sslmode=disable&connect_timeout=1")
