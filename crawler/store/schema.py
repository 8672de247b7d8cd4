"""The schema in a database: made by numbered migrations, each of them once, and its version recorded. And the version
of the server.
"""

from __future__ import annotations

import asyncpg

from coordinator.errors import PostgresRefused, PostgresUnavailable, first_line
from crawler.store.postgres import OWN_NAMES, PostgresConnection, connect_postgres, postgres_errors, refuse_planted
from crawler.store.queries import migrations, query

# By major version, the first minor one without holes through which a query runs code (CVE-2026-6473, of May 2026).
_REPAIRED = {14: 23, 15: 18, 16: 14, 17: 10, 18: 4}
# The schema of shardcrawl 0.1.0, which recorded no version.
_UNRECORDED_VERSION = 1


async def schema_version(connection: PostgresConnection) -> int:
    """The version of the schema in this database, 0 when there is none."""
    with postgres_errors():
        if not await connection.fetchval(query("schema-is-there")):
            return 0
        if await connection.fetchval(query("is-there"), "schema_version"):
            try:
                version = await connection.fetchval(query("schema-version"))
            except asyncpg.UndefinedColumnError:
                version = None
            if not isinstance(version, int):
                raise _other_tables("schema_version has no number")
            return version
        return _UNRECORDED_VERSION


async def migrate(connection: PostgresConnection) -> None:
    """Make the schema, or bring it up to this program's version, in one transaction.

    Raises PostgresRefused when the schema is newer, or when other tables have its names; PostgresUnavailable when a
    query that somebody runs holds it up for too long.
    """
    if not _is_older(await schema_version(connection)):  # asked without a lock: most openings end here
        return
    with postgres_errors():
        async with connection.transaction():
            await connection.execute(query("lock-schema"))
            await connection.execute(query("hide-notices"))
            version = await schema_version(connection)
            if not _is_older(version):  # another process was faster
                return
            try:
                await connection.execute(query("migration-timeout"))
                for number, statements in migrations().items():
                    if number > version:
                        await connection.execute(statements)
                if not await connection.fetchval(query("is-partitioned"), "pages"):
                    raise _other_tables("pages is not partitioned")
                await connection.execute(query("make-schema-version"))
                await connection.execute(query("record-schema-version"), max(migrations()))
                await refuse_planted(connection, OWN_NAMES)  # IF NOT EXISTS leaves what came in between
            except asyncpg.LockNotAvailableError as error:
                raise PostgresUnavailable(
                    "Postgres: the schema must be brought up to date, and a query that somebody runs on pages holds it "
                    "up; run this command again when the query has ended"
                ) from error
            except (asyncpg.WrongObjectTypeError, asyncpg.UndefinedColumnError) as error:
                raise _other_tables(first_line(error)) from error


async def refuse_older(connection: PostgresConnection) -> None:
    """Raise PostgresRefused when the schema lacks migrations. A newer one has all that this program writes to."""
    version = await schema_version(connection)
    if 0 < version < max(migrations()):
        raise PostgresRefused(
            f"Postgres: the schema has version {version}, and this shardcrawl needs {max(migrations())}: "
            "`shardcrawl run` or `shardcrawl coordinate` brings it up to date"
        )


def _is_older(version: int) -> bool:
    """Whether migrations are missing. Raises PostgresRefused when this program does not know the version."""
    newest = max(migrations())
    if version > newest:
        raise PostgresRefused(
            f"Postgres: the schema has version {version}, and this shardcrawl knows {newest} at most: "
            "install the version of shardcrawl that made it, or a newer one"
        )
    return version < newest


def _other_tables(why: str) -> PostgresRefused:
    return PostgresRefused(
        "Postgres: this database has other tables named runs or pages, corpora or schema_version "
        f"({why}); use another one"
    )


async def read_version(url: str) -> tuple[int, int]:
    """The server's major and minor version. Raises PostgresUnavailable, PostgresRefused."""
    connection = await connect_postgres(url)
    try:
        version = connection.get_server_version()
        return version.major, version.micro  # asyncpg calls the third number of old versions so
    finally:
        await connection.close()


def postgres_flaw(major: int, minor: int) -> str | None:
    """What is bad about this version and what to do, None when nothing is known."""
    if minor >= (repaired := _REPAIRED.get(major, 0)):
        return None
    return (
        f"Postgres {major}.{minor} lets a query run code (CVE-2026-6473), unless your distribution has repaired it; "
        f"change to {major}.{repaired}"
    )
