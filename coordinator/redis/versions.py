"""Which Redis or Valkey a server is, and whether this version is known to be bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from coordinator.redis.connection import translate_redis_errors

# By branch, the first version without the hole through which a Lua script runs code (CVE-2025-49844); None: there is
# none. Newer branches never had it.
_REPAIRED: Mapping[str, Mapping[tuple[int, ...], tuple[int, ...] | None]] = {
    "Redis": {
        (6, 2): (6, 2, 20),
        (7, 0): None,
        (7, 2): (7, 2, 11),
        (7, 4): (7, 4, 6),
        (8, 0): (8, 0, 4),
        (8, 2): (8, 2, 2),
    },
    "Valkey": {(7, 2): (7, 2, 11), (8, 0): (8, 0, 6), (8, 1): (8, 1, 4)},
}


async def read_server_kind(client: Redis) -> tuple[str, str] | None:
    """Name and version: ("Valkey", "9.1.2"); None where this user may not ask.

    Raises RedisUnavailable, RedisRefused.
    """
    with translate_redis_errors():
        try:
            server: Mapping[str, Any] = await client.info("server")
        except exceptions.NoPermissionError:
            return None
    if server.get("server_name") == "valkey":
        return "Valkey", str(server.get("valkey_version", "?"))
    return "Redis", str(server.get("redis_version", "?"))


def redis_flaw(name: str, version: str) -> str | None:
    """What is bad about this version and what to do, None when nothing is known."""
    number = tuple(int(part) for part in version.split(".") if part.isdecimal())
    branches = _REPAIRED[name]
    if number[:2] not in branches:
        return None
    repaired = branches[number[:2]]
    if repaired is not None and number >= repaired:
        return None
    wanted = "a branch that is maintained" if repaired is None else ".".join(map(str, repaired))
    return (
        f"{name} {version} lets a Lua script run code (CVE-2025-49844), unless your distribution has repaired it; "
        f"change to {wanted}"
    )
