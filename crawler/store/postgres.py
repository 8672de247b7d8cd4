"""Postgres: connect, check its version, turn its errors into ours."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from coordinator.errors import PostgresRefused, PostgresUnavailable, ShardcrawlError, first_line, redacted
from crawler.store.address import ESCAPES, PostgresAddress, read_address
from crawler.store.queries import query, used_functions

PostgresConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OLDEST_POSTGRES = 14
# A connection is given up when the network was silent for so long, though something was sent. Longer than lock_timeout
# of a batch, in which Postgres may take nothing more from us.
SILENCE_SECONDS = 20
_TCP_OPTIONS = {
    "TCP_KEEPIDLE": SILENCE_SECONDS // 2,
    "TCP_KEEPINTVL": SILENCE_SECONDS // 4,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 1000 * SILENCE_SECONDS,
}
# The tables and views that every database of ours has.
OWN_NAMES = ("runs", "corpora", "pages", "pages_current", "schema_version")
READER = "shardcrawl_reader"
READER_ATTEMPTS = 3
NOT_THERE_ERRORS = (
    *(asyncpg.UndefinedObjectError, asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError),
    *(asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError),
)
_DROPPED = "was it dropped, or the run pruned? Restore it, or let readers see another run (`rollback`, `publish`)"
# Errors after which a later attempt may succeed: the server starts, stops, restarts, is full, has too many clients, or
# was asked to cancel the statement.
TRANSIENT_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    OSError,
    asyncio.TimeoutError,
)


# What a server, or pgbouncer in its place, says of a connection that it does not open, and what to do about it.
_REFUSALS = (
    (r"pg_hba\.conf.*(no encryption|SSL off)", "let its pg_hba.conf admit this, or encrypt with sslmode=require"),
    (r"pg_hba\.conf", "let its pg_hba.conf admit this user, database and host"),
    (r"role .* does not exist|no such user", "create the role, or name another user in the address"),
    (r"not permitted to log in", "give the role LOGIN, or name another user in the address"),
    (r"password|SASL|SCRAM|authentication", f"correct the password in the address; {ESCAPES}"),
)
_POOLER_LOGIN = re.compile(r"password authentication failed|SASL|SCRAM|no such user|^auth failed")
_POOLER_DATABASE = re.compile(r"no such database")
_PARAMETER = re.compile(r"startup parameter")
_TLS_REQUIRED = re.compile(r"(?:SSL|TLS)(?: connection| client certificate)? required")
_FULL = re.compile(r"no more connections|too many")


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that ends when the network to the server is gone, and not only hours later, as TCP's own ones do."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_OPTIONS.items():
                if hasattr(socket, name):  # macOS has not all of them
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def connect_postgres(url: str) -> PostgresConnection:
    """One connection that also works behind pgbouncer in transaction mode.

    Raises PostgresUnavailable, or PostgresRefused for a wrong password, database, address or version, and where another
    role has put something that our statements would run.
    """
    connection = await _connect(url)
    try:
        await refuse_planted(connection, OWN_NAMES)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def connect_reader(url: str) -> tuple[PostgresConnection, str]:
    """A connection for statements that others wrote, of a role that can neither start programs nor reach files.

    Where the role of the address could, another one is made there, which can only read. Returns also the search_path to
    read with: that of the address, also where another role is used, which could have a schema of its own name. Raises
    PostgresUnavailable, PostgresRefused.
    """
    connection = await _connect(url)
    try:
        schemas = await refuse_planted(connection, (), all_functions=True)
        path = ", ".join('"{}"'.format(name.replace('"', '""')) for name in schemas)
        with postgres_errors():
            if not await connection.fetchval(query("could-do-more")):
                return connection, path
        reader = await _log_reader_in(url, connection)
        connection.terminate()
        connection = reader
        if await connection.fetchval(query("could-do-more")):
            raise PostgresRefused(f"Postgres: role {READER} could do more than read; drop it, it is made anew")
    except BaseException:
        connection.terminate()
        raise
    return connection, path


async def refuse_planted(
    connection: PostgresConnection, tables: Sequence[str], *, all_functions: bool = False
) -> Sequence[str]:
    """Raise PostgresRefused where another role has put tables of these names, or functions that hide Postgres' own.

    What is in them, like a trigger, would run with the rights of this connection's role. The functions are those that
    our statements call, or all that Postgres has: then `changes` may be another role's, as the tables may be. Returns
    the schemas that were looked at, in the order of the search_path.
    """
    with postgres_errors():
        path = [name for name in await connection.fetchval(query("search-path")) if not name.startswith("pg_temp")]
        if path[:1] != ["pg_catalog"]:
            raise PostgresRefused(f"Postgres: search_path is {', '.join(path)}; leave pg_catalog out of it")
        functions = () if all_functions else used_functions()
        found = await connection.fetchrow(query("planted"), tables, functions, all_functions)
    if found is not None:
        raise PostgresRefused(
            f"Postgres: {found['kind']} {found['name']} belongs to role {found['owner']}, and what it runs would have "
            f"the rights of {found['me']}; use the role that made it, another database, or a schema of your own "
            "(options=-csearch_path%3DNAME)"
        )
    return path


async def _log_reader_in(url: str, connection: PostgresConnection) -> PostgresConnection:
    for attempt in range(READER_ATTEMPTS):
        password = secrets.token_hex(16)
        try:
            await connection.execute(query("make-reader", reader=READER, password=password))
            return await _connect(url, (READER, password))
        # Another `sql` has given it another password at the same moment.
        except (asyncpg.InternalServerError, asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError):
            continue
        except (asyncpg.PostgresError, PostgresRefused) as error:
            if attempt + 1 < READER_ATTEMPTS and isinstance(error, PostgresRefused):
                continue
            raise PostgresRefused(
                f"Postgres at {redacted(url)}: its role could do more than read, and {READER}, which cannot, does not "
                f"get in: {first_line(error)}; name another user in the address"
            ) from error
    raise PostgresUnavailable(f"Postgres at {redacted(url)}: role {READER} is being changed; try again")


async def _connect(url: str, login: tuple[str, str] | None = None) -> PostgresConnection:
    """A connection to a server that can be used; `login` are another user and password than those in the address."""
    user, password = login or (None, None)
    where = redacted(url)
    address = read_address(url)
    _check_files(address, where)
    with postgres_errors(where):
        try:
            connection = await asyncpg.connect(
                address.url,
                user=user,
                password=password,
                connection_class=_Connection,
                statement_cache_size=0,
                timeout=address.connect_seconds,
                command_timeout=None,
                ssl=ssl.create_default_context() if address.system_ca else None,
            )
        except asyncpg.TargetServerAttributeNotMatched:
            raise PostgresUnavailable(
                f"Postgres at {where}: no host is of the kind that target_session_attrs asks for; wait, or change it"
            ) from None
        except (asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError, asyncpg.DataError) as error:
            raise PostgresRefused(
                f"Postgres at {where}: {first_line(error)}; correct the address, or leave the parameter out"
            ) from error
        except (ValueError, asyncpg.InterfaceError) as error:
            if not isinstance(error, asyncpg.InterfaceError):  # its text may have a part of the password
                raise PostgresRefused(f"Postgres address {where} cannot be read; {ESCAPES}") from None
            raise PostgresRefused(f"Postgres address {where}: {first_line(error)}") from None
    version = connection.get_server_version()
    if version.major < OLDEST_POSTGRES:
        connection.terminate()
        found = f"{version.major}.{version.minor}"
        raise PostgresRefused(f"Postgres at {where} is version {found}; shardcrawl needs {OLDEST_POSTGRES} or newer")
    with postgres_errors(where):
        await connection.execute(query("end-when-silent"))
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":  # no other can hold every key
        connection.terminate()
        raise PostgresRefused(f"the database at {where} has encoding {encoding}; create one with ENCODING 'UTF8'")
    return connection


@contextmanager
def postgres_errors(where: str = "") -> Iterator[None]:
    """Turn asyncpg's exceptions into PostgresUnavailable and PostgresRefused.

    Errors about one row (row_errors.ROW_ERRORS) and all others are raised as they are.
    """
    at = f" at {where}" if where else ""
    try:
        yield
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise _login_refused(at, error) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; create the database first") from error
    except asyncpg.ProtocolViolationError as error:
        raise _pooler_error(at, error) from error
    except TRANSIENT_ERRORS as error:
        raise (_no_connection if isinstance(error, OSError | asyncio.TimeoutError) else _not_now)(at, error) from error
    except asyncpg.InterfaceError as error:
        if "closed" not in str(error) and "connection" not in str(error):
            raise
        raise PostgresUnavailable(f"Postgres{at} closed the connection: {first_line(error)}") from error
    except asyncpg.InternalClientError as error:  # the server is closing the connection, and asyncpg does not know yet
        raise PostgresUnavailable(f"Postgres{at} broke the connection off: {first_line(error)}") from error
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; grant the rights or use another user") from error
    except NOT_THERE_ERRORS as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; {_DROPPED}") from error


def _check_files(address: PostgresAddress, where: str) -> None:
    for file in address.files:
        if not Path(file).is_file():
            raise PostgresRefused(f"Postgres address {where}: there is no file {file}; correct its path")


def _login_refused(at: str, error: Exception) -> ShardcrawlError:
    text = first_line(error)
    advice = next((advice for pattern, advice in _REFUSALS if re.search(pattern, text)), "correct it in the address")
    return PostgresRefused(f"Postgres{at} refuses the user or password: {text}; {advice}")


def _pooler_error(at: str, error: Exception) -> ShardcrawlError:
    """pgbouncer has one code, 08P01, for all that it says, so only its words tell."""
    text = first_line(error)
    if _POOLER_LOGIN.search(text):
        return _login_refused(at, error)
    if _POOLER_DATABASE.search(text):
        return PostgresRefused(f"Postgres{at}: {text}; name a database that pgbouncer has")
    if _PARAMETER.search(text):
        return PostgresRefused(
            f"Postgres{at}: {text}; leave it out of the address, or name it in pgbouncer's ignore_startup_parameters"
        )
    if _TLS_REQUIRED.search(text):
        return PostgresRefused(f"Postgres{at}: {text}; use sslmode=require")
    return _not_now(at, error)


def _not_now(at: str, error: Exception) -> ShardcrawlError:
    """The server responds, and cannot do it at this moment."""
    text = first_line(error)
    if isinstance(error, asyncpg.TooManyConnectionsError) or _FULL.search(text):
        return PostgresUnavailable(f"Postgres{at} has no connection left: {text}; allow more, or use fewer workers")
    if isinstance(error, asyncpg.CannotConnectNowError):
        return PostgresUnavailable(f"Postgres{at} is not ready: {text}; wait until it is")
    if isinstance(error, asyncpg.InsufficientResourcesError):
        return PostgresUnavailable(f"Postgres{at} is out of resources: {text}; make room there")
    return PostgresUnavailable(f"Postgres{at} breaks off: {text}; see its log")


def _no_connection(at: str, error: Exception) -> ShardcrawlError:
    """Nothing came back, or no connection could be made."""
    text = first_line(error)
    if "rejected SSL upgrade" in text:
        return PostgresRefused(
            f"Postgres{at} has no TLS, and sslmode asks for it; turn it on there, or use sslmode=disable"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return PostgresRefused(f"Postgres{at}: {text}; name the CA of its certificate with sslrootcert=FILE")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return PostgresRefused(f"Postgres{at}: TLS fails: {text}; check the files and versions that the address names")
    if isinstance(error, socket.gaierror):
        return PostgresUnavailable(f"Postgres{at} does not answer: its host name is not known; is the address right?")
    if isinstance(error, asyncio.TimeoutError):
        return PostgresUnavailable(f"Postgres{at} does not answer: no response in time; is the address right?")
    return PostgresUnavailable(f"Postgres{at} does not answer: {text}; is it running?")
