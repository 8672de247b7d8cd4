"""Connections to Redis: open one, check the server, translate redis-py's errors into ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from coordinator.errors import RedisRefused, RedisUnavailable, first_line, redacted

OLDEST_REDIS = (6, 2)
# Errors that can pass without a change of ours, from a command or within a script ("… -OOM command not allowed …").
_PASSING_ERROR = re.compile(r"\b(OOM|MISCONF|LOADING|READONLY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|BUSY) ")


def connect_redis(url: str, *, timeout: float = 5.0) -> Redis:
    """A client for `url` (redis://, rediss://, unix://) that never repeats a command by itself.

    With redis-py's own retries, one XADD was seen to be carried out twice; so the caller decides about each retry.
    `timeout` is in seconds, for connecting and for each response. Raises RedisRefused when the URL is malformed.
    """
    try:
        return Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            max_connections=1000,
        )
    except ValueError:  # its text may contain a part of the password
        raise RedisRefused(f"Redis address {redacted(url)} is malformed; give it as redis://HOST:PORT/0") from None


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
        if isinstance(cause, (exceptions.AuthenticationError, exceptions.NoPermissionError)):
            raise RedisRefused(f"Redis{at} refuses the password or its rights: {text}") from error
        if isinstance(cause, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
            raise RedisUnavailable(f"Redis{at} does not answer: {text}; is it running?") from error
        code = getattr(cause, "status_code", None)  # redis-py removes the codes that it knows from the text
        if _PASSING_ERROR.search(f"{code} {text}"):
            raise RedisUnavailable(f"Redis{at} takes no writes now: {text}") from error
        raise RedisRefused(f"Redis{at} refuses a command: {text}") from error


def as_text(returned: bytes | str) -> str:
    """A value that Redis returned, as text."""
    return returned if isinstance(returned, str) else returned.decode()


async def check_server(client: Redis, url: str) -> list[str]:
    """Check that the server is new enough and evicts nothing; returns warnings for the user.

    Raises RedisUnavailable or RedisRefused.
    """
    where = redacted(url)
    warnings: list[str] = []
    with translate_redis_errors(where):
        server = await client.info("server")
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
