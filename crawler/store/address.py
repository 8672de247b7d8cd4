"""Pure: Postgres' address, a URL as libpq takes it, and what is done with each of its parameters.

The measure is libpq's list (PostgreSQL documentation, chapter 32.1.2). asyncpg knows a part of it, and sends the server
every other name as a setting: that is right for one like `statement_timeout`, and for libpq's own it is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from coordinator.errors import PostgresRefused, redacted

CONNECT_SECONDS = 10.0
FORM = "give it as postgresql://USER@HOST/DATABASE"
ESCAPES = "in a user or password write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"

# With these values a parameter asks for nothing that is not so already.
_NO_CHANGE = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "keepalives": ("1",),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "latest"),
    "min_protocol_version": ("3.0",),
    "replication": ("0", "off", "no", "false"),
    "requiressl": ("0",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
_LEAVE_OUT = "leave it out"
# libpq's parameters, and some of other clients, that would change what is safe or where rows go. Each with what to do.
_NOT_TAKEN = {
    "channel_binding": "leave it out; sslmode=verify-full with sslrootcert makes sure of the server",
    "client_encoding": "only UTF8 can hold every key",
    "currentSchema": "write options=-csearch_path%3DNAME",
    "gssdelegation": _LEAVE_OUT,
    "gssencmode": "leave it out, and use sslmode",
    "hostaddr": "give the address as the host",
    "max_protocol_version": _LEAVE_OUT,
    "min_protocol_version": _LEAVE_OUT,
    "oauth_client_id": _LEAVE_OUT,
    "oauth_client_secret": _LEAVE_OUT,
    "oauth_issuer": _LEAVE_OUT,
    "oauth_scope": _LEAVE_OUT,
    "replication": _LEAVE_OUT,
    "require_auth": _LEAVE_OUT,
    "requirepeer": _LEAVE_OUT,
    "requiressl": "write sslmode=require",
    "schema": "write options=-csearch_path%3DNAME",
    "scram_client_key": "give the password",
    "scram_server_key": "give the password",
    "servicefile": "set PGSERVICEFILE",
    "ssl": "write sslmode=require",
    "sslcertmode": _LEAVE_OUT,
    "sslcrldir": "name one file with sslcrl",
    "sslkeylogfile": "set SSLKEYLOGFILE",
}
# Without these it works the same, perhaps slower: of libpq, and of the pools of other clients.
_IGNORED = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("load_balance_hosts", "sslcompression", "sslsni"),
        *(
            "connection_limit",
            "max_idle_connection_lifetime",
            "pgbouncer",
            "pool_max_conns",
            "pool_min_conns",
            "pool_size",
        ),
        *("pool_timeout", "prepareThreshold", "prepared_statements", "socket_timeout", "statement_cache_size"),
    }
)
_FILES = frozenset({"sslcert", "sslkey", "sslrootcert", "sslcrl"})
_HOST = re.compile(r"(?:\[[^\]@]*\]|[^:@\[\]]*)(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """What asyncpg connects to.

    `connect_seconds` is None when waiting has no end. `ignored` are parameters that have no effect, `files` are files
    that others name, and `system_ca` says that the system's certificates are trusted.
    """

    url: str
    connect_seconds: float | None
    ignored: tuple[str, ...]
    files: tuple[str, ...]
    system_ca: bool


def read_address(url: str) -> PostgresAddress:
    """The address in a URL. Raises PostgresRefused, without a secret, for what cannot be read or is not taken."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in ("postgresql", "postgres"):
        raise PostgresRefused(f"Postgres address {scheme}://***: {FORM}" if mark else f"Postgres address: {FORM}")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, question, query = rest[len(authority) :].partition("?")
    login, at, hosts = authority.rpartition("@")
    if "@" in login or "@" in path or "#" in rest or not all(map(_HOST.fullmatch, hosts.split(","))):
        # What is shown as host could be a part of the password.
        raise PostgresRefused(f"Postgres address {scheme}://***: {FORM}, with a number as its port; {ESCAPES}")
    where = redacted(url)
    kept: list[str] = []
    ignored: list[str] = []
    files: list[str] = []
    system_ca = False
    seconds: float | None = CONNECT_SECONDS
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise PostgresRefused(f"Postgres address {where}: a part behind ? is not NAME=VALUE; {ESCAPES}")
        value = unquote(value)
        if value in _NO_CHANGE.get(name, ()):
            continue
        if name in _IGNORED:
            ignored.append(name)
        elif name in _NOT_TAKEN:
            raise PostgresRefused(f"Postgres address {where}: parameter {name} is not taken; {_NOT_TAKEN[name]}")
        elif name == "connect_timeout":
            seconds = _seconds(value, where)
        elif (name, value) == ("sslrootcert", "system"):
            system_ca = True
        elif name == "fallback_application_name":
            kept.insert(0, part.replace("fallback_", "", 1))
        else:
            kept.append(part)
            if name in _FILES:
                files.append(value)
    # libpq does not read + as a blank, and asyncpg does.
    query = "&".join(kept).replace("+", "%2B")
    address = f"{scheme}://{login}{at}{hosts}{path}{question}{query}"
    return PostgresAddress(address, seconds, tuple(ignored), tuple(files), system_ca)


def address_warnings(url: str) -> list[str]:
    """Warnings for the user about an address that is taken. Raises PostgresRefused."""
    ignored = read_address(url).ignored
    if not ignored:
        return []
    return [f"Postgres address {redacted(url)}: {', '.join(ignored)} has no effect here; {_LEAVE_OUT}"]


def _seconds(text: str, where: str) -> float | None:
    if not re.fullmatch(r"-?[0-9]{1,6}", text):
        raise PostgresRefused(f"Postgres address {where}: connect_timeout is a number of seconds")
    return float(text) if int(text) > 0 else None
