"""Connecting to Postgres, and its errors."""

from __future__ import annotations

import asyncpg
import pytest

from coordinator.errors import PostgresRefused, PostgresUnavailable
from crawler.store.postgres import connect_postgres, postgres_errors

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
