"""Which versions of Redis and Valkey are known to be bad."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from coordinator.redis.versions import read_server_kind, redis_flaw


@pytest.mark.parametrize(
    ("name", "version", "advice"),
    [
        ("Redis", "6.2.14", "change to 6.2.20"),
        ("Redis", "6.2.20", None),
        ("Redis", "7.0.15", "change to a branch that is maintained"),
        ("Redis", "8.2.1", "change to 8.2.2"),
        ("Redis", "8.4.0", None),
        ("Redis", "?", None),
        ("Valkey", "8.1.3", "change to 8.1.4"),
        ("Valkey", "9.1.2", None),
    ],
)
def test_a_flaw_is_named_for_bad_versions_only(name: str, version: str, advice: str | None) -> None:
    flaw = redis_flaw(name, version)
    assert flaw is None if advice is None else flaw is not None and flaw.endswith(advice)


@pytest.mark.anyio
async def test_a_running_server_says_what_it_is(redis: Redis) -> None:
    kind = await read_server_kind(redis)
    assert kind is not None
    name, version = kind
    assert name in ("Redis", "Valkey")
    assert version[0].isdigit()
