"""Postgres' address: what is done with each parameter of libpq, and that no part of a password is ever shown."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from coordinator.errors import PostgresRefused
from crawler.store.address import address_warnings, read_address
from crawler.store.postgres import PostgresConnection, connect_postgres

pytestmark = pytest.mark.anyio

HERE = "postgresql://me:s3cret@db.example:5432/data"

# libpq's parameters (PostgreSQL 18, 32.1.2) and some of other clients: what becomes of each.
TAKEN = {
    **dict.fromkeys(("host=a", "port=1", "dbname=a", "user=a", "password=a", "passfile=a", "service=a"), "by asyncpg"),
    **dict.fromkeys(
        ("sslmode=verify-full", "sslcert=a", "sslkey=a", "sslrootcert=a", "sslcrl=a", "sslpassword=a"), "by asyncpg"
    ),
    **dict.fromkeys(
        ("ssl_min_protocol_version=TLSv1.3", "ssl_max_protocol_version=TLSv1.3", "sslnegotiation=direct"), "by asyncpg"
    ),
    **dict.fromkeys(("target_session_attrs=read-write", "krbsrvname=a", "gsslib=gssapi"), "by asyncpg"),
    **dict.fromkeys(("application_name=a", "options=-csearch_path%3Da", "statement_timeout=5000"), "by the server"),
    **dict.fromkeys(("connect_timeout=3", "sslrootcert=system", "fallback_application_name=a"), "by us"),
    **dict.fromkeys(
        ("channel_binding=prefer", "channel_binding=disable", "gssencmode=prefer", "client_encoding=utf8"),
        "as it is anyway",
    ),
    **dict.fromkeys(
        ("sslcertmode=allow", "sslsni=1", "keepalives=1", "requiressl=0", "min_protocol_version=3.0"), "as it is anyway"
    ),
    **dict.fromkeys(
        ("replication=0", "gssdelegation=0", "load_balance_hosts=disable", "sslcompression=0"), "as it is anyway"
    ),
    **dict.fromkeys(("keepalives=0", "keepalives_idle=1", "keepalives_interval=1", "keepalives_count=1"), "named"),
    **dict.fromkeys(("tcp_user_timeout=1", "load_balance_hosts=random", "pool_timeout=1", "pgbouncer=true"), "named"),
    **dict.fromkeys(("connection_limit=1", "sslsni=0", "sslcompression=1"), "named"),
}
REFUSED = [
    *(
        "channel_binding=require",
        "gssencmode=require",
        "require_auth=scram-sha-256",
        "hostaddr=127.0.0.1",
        "replication=database",
    ),
    *("requiressl=1", "sslcertmode=require", "sslcrldir=a", "sslkeylogfile=a", "requirepeer=a", "scram_client_key=a"),
    *(
        "scram_server_key=a",
        "oauth_issuer=a",
        "client_encoding=latin1",
        "min_protocol_version=3.2",
        "max_protocol_version=3.2",
    ),
    *("schema=a", "currentSchema=a", "ssl=true", "gssdelegation=1"),
]


@pytest.mark.parametrize("parameter", TAKEN)
def test_a_parameter_is_taken_or_named(parameter: str) -> None:
    name = parameter.partition("=")[0]
    address = read_address(f"{HERE}?{parameter}")
    sent = set(parse_qs(urlsplit(address.url).query))
    expected = {"by asyncpg": {name}, "by the server": {name}}.get(TAKEN[parameter], set())
    assert sent == ({"application_name"} if name == "fallback_application_name" else expected)
    assert address.ignored == ((name,) if TAKEN[parameter] == "named" else ())
    warnings = address_warnings(f"{HERE}?{parameter}")
    assert [name in warning for warning in warnings] == ([True] if TAKEN[parameter] == "named" else [])
    assert "s3cret" not in "".join(warnings)


@pytest.mark.parametrize("parameter", REFUSED)
def test_a_parameter_that_would_change_what_is_safe_or_where_rows_go_is_refused_by_name(parameter: str) -> None:
    name = parameter.partition("=")[0]
    with pytest.raises(PostgresRefused, match=f"{name} is not taken; |only UTF8") as caught:
        read_address(f"{HERE}?sslmode=require&{parameter}")
    assert "s3cret" not in str(caught.value)


def test_the_parameters_of_ours_mean_what_libpq_means() -> None:
    assert [read_address(f"{HERE}?connect_timeout={text}").connect_seconds for text in ("3", "0", "-1")] == [
        3,
        None,
        None,
    ]
    assert read_address(HERE).connect_seconds == 10
    both = read_address(f"{HERE}?application_name=first&fallback_application_name=second").url
    assert parse_qs(urlsplit(both).query)["application_name"][-1] == "first"
    assert parse_qs(urlsplit(read_address(f"{HERE}?password=a+b").url).query) == {"password": ["a+b"]}
    assert read_address(f"{HERE}?sslmode=verify-full&sslrootcert=system").system_ca


@pytest.mark.parametrize(
    "login",
    [
        "me:s3cret@x",
        "me:s3/cret",
        "me:s3?cret",
        "me:s3#cret",
        "me:p@s3/word#1",
        "me@s3:pw",
        "me:s3?x=y&z",
        "m/e:s3",
        "me:s3@?x",
    ],
)
async def test_a_password_that_is_not_escaped_is_said_and_not_shown(login: str) -> None:
    with pytest.raises(PostgresRefused, match="write @ as %40") as caught:
        await connect_postgres(f"postgresql://{login}@db.invalid/data")
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:s3cret",
        "mysql://me:s3cr@et/x",
        "host=db password=s3cret",
        "postgresql://db:s3cret/x",
        "postgresql://me:s3cret@db:x/y",
        "postgresql://me:s3cret@[::1/x",
        "postgresql://me:s3cret\u2100@h/x",
        f"{HERE}?s3cret",
        f"{HERE}?connect_timeout=s3cret",
    ],
)
async def test_what_is_no_address_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(PostgresRefused) as caught:
        await connect_postgres(address)
    assert "s3cr" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://",
        "postgres:///data",
        "postgresql://me@/data?host=/tmp",
        "postgresql://[::1]:5432/x",
        "postgresql://a:1,b:2/x",
        "postgresql://me:a:b@h/x",
        "postgresql://%2Ftmp/x",
        "postgresql://me%40corp:p%2F%23@h",
    ],
)
def test_an_address_that_libpq_takes_stays_as_it_is(address: str) -> None:
    assert read_address(address).url == address


async def test_the_server_takes_settings_and_names_those_that_it_does_not_know(database: str) -> None:
    connection: PostgresConnection = await connect_postgres(
        f"{database}&options=-csearch_path%3Dother&statement_timeout=5s"
    )
    try:
        assert await connection.fetchval("SHOW search_path") == "other"
        assert await connection.fetchval("SHOW statement_timeout") == "5s"
    finally:
        await connection.close()
    with pytest.raises(PostgresRefused, match='parameter "no_such_thing"; correct the address'):
        await connect_postgres(f"{database}&no_such_thing=1")
    with pytest.raises(PostgresRefused, match='invalid value for parameter "statement_timeout": "x"; correct'):
        await connect_postgres(f"{database}&statement_timeout=x")
    with pytest.raises(PostgresRefused, match="there is no file /no/such.pem; correct its path"):
        await connect_postgres(f"{database}&sslcert=/no/such.pem")
