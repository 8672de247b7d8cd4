"""Connections to Redis: open one, check the server, translate redis-py's errors into ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from coordinator.errors import RedisDamaged, RedisRefused, RedisUnavailable, first_line, redacted
from coordinator.redis.sockets import without_sentinels

OLDEST_REDIS = (6, 2)
# No count, time or place of ours comes near.
MAX_NUMBER = 2**53
# Errors that can pass without a change of ours, from a command or within a script ("… -OOM command not allowed …").
_PASSING_ERROR = re.compile(r"\b(OOM|MISCONF|LOADING|READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|BUSY) ")
_MISSING_RIGHT = re.compile(r"run the '([\w|]+)' command|access (?:one of the keys|a key)")
# What a command or a script says of a value that we did not write. Neither a missing right nor an old server is one.
_DAMAGE = re.compile(
    r"WRONGTYPE|NOGROUP|user_script|not an integer|not a valid float|would overflow|equal or smaller|Invalid stream ID"
)
_NO_DAMAGE = re.compile(r"Unknown Redis command|the script can't run|ACL failure|permission")
_CLUSTER = (
    "is a node of a Redis Cluster, which shardcrawl cannot use; "
    "give it one server (cluster-enabled no), which may have replicas"
)
# Parameters of a URL that are used as redis-py reads them.
_URL_PARAMETERS = frozenset(
    {
        *("client_name", "db", "health_check_interval", "password", "username"),
        *("socket_connect_timeout", "socket_keepalive", "socket_timeout"),
    }
)
_TLS_PARAMETERS = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"),
    }
)
# Parameters that other programs need and that would change what we rely on: bytes, RESP2, no repeated command. They are
# left out.
_SET_HERE = frozenset(
    {
        *("decode_responses", "encoding", "encoding_errors", "legacy_responses", "protocol"),
        *("max_connections", "retry_on_error", "retry_on_timeout", "timeout"),
    }
)


def connect_redis(url: str, *, timeout: float = 5.0) -> Redis:
    """A client for `url` (redis://, rediss://, unix://, redis+sentinel://) that never repeats a command by itself.

    With redis-py's own retries, one XADD was seen to be carried out twice; so the caller decides about each retry.
    `timeout` is in seconds, for connecting and for each response; `socket_timeout` in the URL beats it. Raises
    RedisRefused when the URL is malformed or has a parameter that is not known.
    """
    try:
        plain_url, adapt = without_sentinels(url)
        client = Redis.from_url(
            _usable(plain_url),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            max_connections=1000,
        )
    except ValueError:  # its text may contain a part of the password
        hint = " (is / ? or # in its password? write %2F, %3F or %23)" if "@" in url else ""
        shown = redacted(url) if "://" in url else "***"  # as in redis:PASSWORD, where anything may be the password
        form = "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/0" if "+sentinel:" in shown else "redis://HOST:PORT/0"
        raise RedisRefused(f"Redis address {shown}{hint} is malformed; give it as {form}") from None
    adapt(client.connection_pool)
    return client


def _usable(url: str) -> str:
    """The URL without the parameters that are set here. Raises ValueError, or RedisRefused for an unknown parameter."""
    parts = urlsplit(url)
    is_tls, is_socket = parts.scheme == "rediss", parts.scheme == "unix"
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _URL_PARAMETERS | (_TLS_PARAMETERS if is_tls else frozenset())
    unknown = sorted(parameters.keys() - known - _SET_HERE)
    place = "" if is_socket else parts.path.strip("/")
    # An @ behind the host is a part of a password with an unescaped character, which must not be shown as a parameter.
    if (place and not place.isdecimal()) or "@" in parts.fragment or (unknown and "@" in parts.query):
        raise ValueError
    if unknown:
        why = "is for rediss:// only" if unknown[0] in _TLS_PARAMETERS else "is not known"
        raise RedisRefused(f"Redis address {redacted(url)}: its parameter {unknown[0][:40]} {why}; leave it out")
    if "ssl_cert_reqs" in parameters:  # Celery and others write CERT_NONE
        parameters["ssl_cert_reqs"] = parameters["ssl_cert_reqs"].lower().removeprefix("cert_")
        if parameters["ssl_cert_reqs"] not in ("none", "optional", "required"):
            raise ValueError
    kept = {name: value for name, value in parameters.items() if name in known}
    if is_socket:
        kept.pop("socket_keepalive", None)
    return parts._replace(query=urlencode(kept)).geturl()


@contextmanager
def translate_redis_errors(where: str = "") -> Iterator[None]:
    """Raise RedisUnavailable or RedisRefused in the place of redis-py's errors; `where` names the server in them."""
    at = f" at {where}" if where else ""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        # While a connection opens, redis-py raises an error of the server as the cause of a ConnectionError.
        wrapped = isinstance(error, exceptions.ConnectionError) and isinstance(error.__cause__, exceptions.RedisError)
        cause = error.__cause__ if wrapped else error
        text = first_line(error)
        if isinstance(cause, exceptions.NoPermissionError) and (right := _MISSING_RIGHT.search(text)):
            needed = f"+{right[1]}" if right[1] else "~shardcrawl:*"
            raise RedisRefused(
                f"Redis{at} refuses the password or its rights: {text}; let the user have {needed} (ACL SETUSER)"
            ) from error
        if isinstance(cause, (exceptions.AuthenticationError, exceptions.NoPermissionError)):
            raise RedisRefused(f"Redis{at} refuses the password or its rights: {text}") from error
        if isinstance(cause, (exceptions.MovedError, exceptions.ClusterCrossSlotError)):
            raise RedisRefused(f"Redis{at} {_CLUSTER}") from error
        if isinstance(cause, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
            question = ", with TLS on that port" if where.startswith("rediss:") else ""
            raise RedisUnavailable(f"Redis{at} does not answer: {text}; is it running{question}?") from error
        code = getattr(cause, "status_code", None)  # redis-py removes the codes that it knows from the text
        if _PASSING_ERROR.search(f"{code} {text}"):
            raise RedisUnavailable(f"Redis{at} takes no writes now: {text}") from error
        if isinstance(cause, exceptions.ResponseError) and is_damage(cause):
            raise RedisDamaged(f"Redis{at} has something else in a run's place: {text}") from error
        advice = "; end the address with another number, as /0" if "DB index" in text else ""
        raise RedisRefused(f"Redis{at} refuses a command: {text}{advice}") from error


def is_damage(error: exceptions.ResponseError) -> bool:
    """Whether an error comes of a value that another program wrote in the place of ours."""
    return bool(_DAMAGE.search(str(error))) and not _NO_DAMAGE.search(str(error))


def as_text(returned: bytes | str) -> str:
    """A value that Redis returned, as text. Bytes that are no UTF-8, which none of ours has, are replaced."""
    return returned if isinstance(returned, str) else returned.decode(errors="replace")


def as_number(returned: bytes | str | float | None) -> int:
    """A whole number that Redis returned; 0 for none. Raises RedisDamaged for what is no number of ours."""
    try:
        number = int(returned or 0)
    except (ValueError, OverflowError):
        number = -1
    if 0 <= number < MAX_NUMBER:
        return number
    raise RedisDamaged(f"Redis has {returned!r:.50} in a run's place, where a number should be")


async def check_server(client: Redis, url: str) -> list[str]:
    """Check that the server is new enough, evicts nothing and is no cluster; returns warnings for the user.

    Raises RedisUnavailable or RedisRefused.
    """
    where = redacted(url)
    warnings: list[str] = []
    with translate_redis_errors(where):
        try:
            server = await client.info("server")
        except exceptions.NoPermissionError:
            unknown = "version and maxmemory-policy are unknown (+info)"
            return [f"Redis at {where} does not let this user call INFO: {unknown}"]
        if "cluster" in (server.get("redis_mode"), server.get("server_mode")):  # the second is Valkey's name for it
            raise RedisRefused(f"Redis at {where} {_CLUSTER}")
        version = str(server["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
            raise RedisRefused(f"Redis at {where} is version {version}; shardcrawl needs 6.2 or newer")
        memory = await client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise RedisRefused(
                f"Redis at {where} evicts keys (maxmemory-policy {policy}): finished work could vanish; "
                "set maxmemory-policy noeviction"
            )
        persistence = await client.info("persistence")
        if not persistence.get("aof_enabled") and persistence.get("rdb_last_save_time") is not None:
            try:
                saves = (await client.config_get("save")).get("save", "")
            except exceptions.ResponseError:
                saves = "unknown"  # a managed Redis hides CONFIG, and its operator decides about persistence
            if not saves:
                warnings.append(f"Redis at {where} keeps nothing on disk: a restart loses the queue (appendonly yes)")
    return warnings
