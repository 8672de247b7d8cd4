"""Connections of redis-py that are cancelled at once, and those to the server that sentinels call the master now."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import hiredis
from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

SENTINEL_PORT = 26379
_SENTINEL_URL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?P<login>[^/?#]*@)?(?P<places>[^@/?#]+)"
    r"/(?P<master>[\w.-]*[^\W\d][\w.-]*)(?P<db>/[0-9]*)?(?:\?(?P<query>[^#]*))?"
)
_OF_ANY_SERVER = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry")


class _PromptlyCancelled(AbstractConnection):
    """A connection that sends without `asyncio.wait_for`, with which redis-py does.

    In Python 3.11 it swallows a cancellation that arrives as the sending ends, and it makes a task for each command.
    And commands are encoded in C: of the names of 4,000 buckets redis-py's own encoding took half of a call's time.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """The bytes of a command, whose name may be of several words."""
        name = args[0] if isinstance(args[0], bytes) else args[0].encode()
        command: Any = (*name.split(), *args[1:])
        try:
            return [hiredis.pack_command(command)]
        except TypeError:  # an argument of another type than text, bytes and numbers, like an enumeration's number
            return super().pack_command(*args)

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        timeout, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout):
                await super().send_packed_command(command, check_health)
        finally:
            self.socket_timeout = timeout


class _Tcp(_PromptlyCancelled, Connection):
    pass


class _Tls(_PromptlyCancelled, SSLConnection):
    pass


class _UnixSocket(_PromptlyCancelled, UnixDomainSocketConnection):
    pass


class Sentinels:
    """The sentinels that know which server is the master `name`. `connection` makes a connection to one of them."""

    def __init__(self, places: Sequence[tuple[str, int]], name: str, connection: Callable[..., Connection]) -> None:
        self._places = places
        self._name = name
        self._connection = connection

    async def master(self) -> tuple[str, int]:
        """Host and port of the master, from the first sentinel that knows it. Raises ConnectionError."""
        why = ""
        for host, port in self._places:
            connection = self._connection(host=host, port=port)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
                found: Any = await connection.read_response()
            except (exceptions.RedisError, OSError) as error:
                why = f"sentinel {host}:{port}: {error}"
                continue
            finally:
                await connection.disconnect()
            if found:
                return found[0].decode(), int(found[1])
            why = f"sentinel {host}:{port} knows no master {self._name}"
        raise exceptions.ConnectionError(why)


class _OfMaster(Connection):
    """A connection to the master, wherever that is when it opens."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.master()
        await super()._connect()  # type: ignore[no-untyped-call]


class _MasterTcp(_OfMaster, _Tcp):
    pass


class _MasterTls(_OfMaster, _Tls):
    pass


_PROMPT: dict[type[Any], type[Any]] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _UnixSocket}
_OF_MASTER: dict[type[Any], type[Any]] = {Connection: _MasterTcp, SSLConnection: _MasterTls}


def without_sentinels(url: str) -> tuple[str, Callable[[ConnectionPool], None]]:
    """An address for redis-py, and what then makes its pool open our connections, those of sentinels to their master.

    Raises ValueError for a malformed address of sentinels: redis+sentinel://HOST:26379,HOST:26379/MASTER/0.
    """
    if not re.match(r"rediss?\+", url):
        return url, _with_prompt_connections
    match = _SENTINEL_URL.fullmatch(url)
    if match is None:
        raise ValueError
    parts = [urlsplit(f"//{place}") for place in match["places"].split(",")]
    places = [(part.hostname or "localhost", part.port or SENTINEL_PORT) for part in parts]
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    password = query.pop("sentinel_password", None)

    def adapt(pool: ConnectionPool) -> None:
        given = pool.connection_kwargs
        common = {name: value for name, value in given.items() if name in _OF_ANY_SERVER or name.startswith("ssl_")}
        plain = _PROMPT[pool.connection_class]
        given["sentinels"] = Sentinels(
            places, match["master"], lambda **place: plain(**place, **common, password=password)
        )
        pool.connection_class = _OF_MASTER[pool.connection_class]

    first = match["places"].partition(",")[0]
    return f"{match['scheme']}://{match['login'] or ''}{first}{match['db'] or ''}?{urlencode(query)}", adapt


def _with_prompt_connections(pool: ConnectionPool) -> None:
    pool.connection_class = _PROMPT[pool.connection_class]
