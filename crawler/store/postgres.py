"""Postgres: connect, check its version, turn its errors into ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg

from coordinator.errors import PostgresRefused, PostgresUnavailable, first_line, redacted

PostgresConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OLDEST_POSTGRES = 14
CONNECT_SECONDS = 10
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


async def connect_postgres(url: str) -> PostgresConnection:
    """One connection that also works behind pgbouncer in transaction mode.

    Raises PostgresUnavailable, or PostgresRefused for a wrong password, database, address or version.
    """
    where = redacted(url)
    with postgres_errors(where):
        try:
            connection = await asyncpg.connect(
                url, statement_cache_size=0, timeout=CONNECT_SECONDS, command_timeout=None
            )
        except (ValueError, asyncpg.InterfaceError) as error:
            if not isinstance(error, asyncpg.PostgresError) and urlsplit(url).scheme not in ("postgresql", "postgres"):
                raise PostgresRefused(f"Postgres address {where}: give it as postgresql://USER@HOST/DATABASE") from None
            raise PostgresRefused(f"Postgres address {where}: {first_line(error)}") from None
    version = connection.get_server_version()
    if version.major < OLDEST_POSTGRES:
        connection.terminate()
        raise PostgresRefused(
            f"Postgres at {where} is version {version.major}.{version.minor}; "
            f"shardcrawl needs {OLDEST_POSTGRES} or newer"
        )
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
        raise PostgresRefused(f"Postgres{at} refuses the user or password: {first_line(error)}") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; create the database first") from error
    except TRANSIENT_ERRORS as error:
        raise PostgresUnavailable(f"Postgres{at} does not answer: {first_line(error)}; is it running?") from error
    except asyncpg.InterfaceError as error:
        if "closed" not in str(error) and "connection" not in str(error):
            raise
        raise PostgresUnavailable(f"Postgres{at} closed the connection: {first_line(error)}") from error
    except asyncpg.InternalClientError as error:  # the server is closing the connection, and asyncpg does not know yet
        raise PostgresUnavailable(f"Postgres{at} broke the connection off: {first_line(error)}") from error
    except (asyncpg.InsufficientPrivilegeError, asyncpg.ReadOnlySQLTransactionError) as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; grant the rights or use another user") from error
    except (asyncpg.UndefinedObjectError, asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise PostgresRefused(f"Postgres{at}: {first_line(error)}; was the schema changed during the run?") from error
