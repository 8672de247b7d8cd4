"""What another role has put into a shared database: nothing of it runs with our rights."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest

from coordinator.errors import PostgresRefused
from coordinator.model import Epoch
from crawler.cli.inspect import query_rows
from crawler.job.tables import TableSettings
from crawler.store.catalogue import open_catalogue
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page

pytestmark = pytest.mark.anyio

OUTSIDER = f"outsider_{secrets.token_hex(4)}"
FACTS = TableSettings(name="facts", column_settings={"n": "bigint"})
# It makes its owner a superuser when a superuser runs it, as a trigger or otherwise.
PROMOTE = f"""
    CREATE FUNCTION promote() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN ALTER ROLE {OUTSIDER} SUPERUSER; RETURN NEW; END $$
"""
RUNS = """
    CREATE TABLE runs (
        run_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, spec jsonb NOT NULL,
        epoch text NOT NULL, state text NOT NULL DEFAULT 'running', counts jsonb,
        created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz, published_at timestamptz, reasons jsonb
    )
"""


@pytest.fixture
async def outsider(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of a role that may create objects, as all roles may in Postgres 14."""
    admin = await asyncpg.connect(database)
    if not await admin.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", OUTSIDER):
        await admin.execute(f"CREATE ROLE {OUTSIDER} LOGIN PASSWORD 'x'")
    await admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    await admin.execute(f"SET SESSION AUTHORIZATION {OUTSIDER}")
    yield admin
    await admin.execute("RESET SESSION AUTHORIZATION")
    assert not await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = $1", OUTSIDER)
    await admin.close()


async def make_a_run(database: str) -> None:
    async with open_catalogue(database) as catalogue:
        await catalogue.prepare(upgrade=True)
        await catalogue.make("test", a_document(tables=[{"name": FACTS.name}]), Epoch("first"), [FACTS])


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        pytest.param(
            f"{PROMOTE}; {RUNS}; CREATE TRIGGER t BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION promote()",
            "table or view runs",
            id="a trigger",
        ),
        pytest.param("CREATE VIEW runs AS SELECT 1 AS run_id", "table or view runs", id="a view"),
        pytest.param("CREATE TABLE pages (a int)", "table or view pages", id="another table"),
        pytest.param("CREATE TABLE schema_version (version int)", "table or view schema_version", id="the version"),
        pytest.param(
            "CREATE TABLE facts (run_id integer NOT NULL, digest bytea NOT NULL, n bigint) PARTITION BY LIST (run_id)",
            "table or view facts",
            id="a table of the job",
        ),
        pytest.param(
            "CREATE FUNCTION to_regclass(varchar) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass'",
            "function to_regclass",
            id="a function",
        ),
        pytest.param(
            "CREATE FUNCTION f(text, integer) RETURNS text LANGUAGE sql AS 'SELECT $1'; "
            "CREATE OPERATOR || (FUNCTION = f, LEFTARG = text, RIGHTARG = integer)",
            "operator ||",
            id="an operator",
        ),
    ],
)
async def test_what_another_role_made_is_refused(
    database: str, outsider: asyncpg.Connection[asyncpg.Record], planted: str, named: str
) -> None:
    await outsider.execute(planted)
    with pytest.raises(PostgresRefused) as caught:
        await make_a_run(database)
    assert str(caught.value).startswith(f"Postgres: {named} belongs to role {OUTSIDER}, and what it runs would have")


async def test_what_others_have_under_other_names_is_none_of_ours(
    database: str, outsider: asyncpg.Connection[asyncpg.Record]
) -> None:
    await outsider.execute(f"{PROMOTE}; CREATE TABLE invoices (a int); CREATE VIEW runs_of_mine AS SELECT 1 AS a")
    await make_a_run(database)


async def test_a_schema_of_ones_own_is_safe_from_what_is_elsewhere(
    database: str, outsider: asyncpg.Connection[asyncpg.Record]
) -> None:
    await outsider.execute(RUNS)
    await outsider.execute("RESET SESSION AUTHORIZATION")
    await outsider.execute("CREATE SCHEMA own")
    await make_a_run(f"{database}&options=-csearch_path%3Down")
    assert await outsider.fetchval("SELECT count(*) FROM own.runs") == 1


async def test_functions_before_those_of_postgres_are_refused(
    database: str, outsider: asyncpg.Connection[asyncpg.Record]
) -> None:
    with pytest.raises(PostgresRefused, match="leave pg_catalog out of it"):
        await make_a_run(f"{database}&options=-csearch_path%3Dpublic,pg_catalog")


@pytest.mark.parametrize(
    "function",
    [
        "format(text, timestamptz) RETURNS text",
        "pg_has_role(oid, text, text) RETURNS boolean",
        "lower(name) RETURNS text",
    ],
)
async def test_sql_calls_no_function_of_others_before_those_of_postgres(
    database: str, outsider: asyncpg.Connection[asyncpg.Record], function: str
) -> None:
    """The first two ran while `sql` logged in, as its superuser or as its reader; the third in the user's query."""
    body = f"BEGIN ALTER ROLE {OUTSIDER} SUPERUSER; RETURN NULL; END"
    await outsider.execute(f"CREATE FUNCTION {function} LANGUAGE plpgsql AS '{body}'")
    with pytest.raises(PostgresRefused, match=rf"function \w+ belongs to role {OUTSIDER}"):
        await query_rows(database, "SELECT lower(relname) FROM pg_class")


async def test_sql_reads_where_its_address_does_also_as_another_role(
    database: str, outsider: asyncpg.Connection[asyncpg.Record]
) -> None:
    """A role's own schema comes before `public`: one that has the name of the reader was looked at first."""
    await outsider.execute("CREATE TABLE things AS SELECT 'planted' AS what; GRANT SELECT ON things TO PUBLIC")
    await outsider.execute("RESET SESSION AUTHORIZATION")
    await outsider.execute(f"CREATE SCHEMA shardcrawl_reader AUTHORIZATION {OUTSIDER}")
    await outsider.execute("ALTER TABLE things SET SCHEMA shardcrawl_reader")
    await outsider.execute("GRANT USAGE ON SCHEMA shardcrawl_reader TO PUBLIC")
    await outsider.execute("CREATE SCHEMA postgres; CREATE TABLE postgres.things AS SELECT 'ours' AS what")
    assert (await query_rows(database, "TABLE things"))[1] == [("ours",)]


@pytest.mark.parametrize("table", ["pages", "facts"])
async def test_a_table_that_takes_the_place_of_a_runs_own_is_refused(
    database: str, outsider: asyncpg.Connection[asyncpg.Record], table: str
) -> None:
    """The schema that has the name of the role comes before `public`, also when it is made while the run is on."""
    await make_a_run(database)
    await outsider.execute("RESET SESSION AUTHORIZATION")
    await outsider.execute(f"CREATE SCHEMA postgres AUTHORIZATION {OUTSIDER}")
    await outsider.execute(f"SET SESSION AUTHORIZATION {OUTSIDER}")
    await outsider.execute(f"CREATE TABLE postgres.{table}_r1 (a int)")
    writer = Writer(database, RunTables(1), Epoch("first"), [FACTS])
    planted = pytest.raises(PostgresRefused, match=f"table or view {table}_r1 belongs to role {OUTSIDER}")
    with planted:
        await writer.write([a_page("a")])
    async with open_catalogue(database) as catalogue:
        with planted:
            await catalogue.find("test")
