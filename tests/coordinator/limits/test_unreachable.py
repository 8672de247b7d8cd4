"""Upstreams that cannot be reached: how many keys wait, what the log says, and what a heartbeat sends."""

from __future__ import annotations

import logging

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.limits import unreachable
from coordinator.limits.unreachable import (
    MAX_LISTED,
    LoggedUpstreams,
    UnreachableUpstream,
    UnreachableUpstreams,
    decode_waits,
    encode_waits,
    merged,
)
from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys

pytestmark = pytest.mark.anyio

KEYS = RunKeys("unreachable")


def counts(upstreams: UnreachableUpstreams) -> dict[str, int]:
    return {one.upstream: one.keys for one in upstreams.listed()}


async def test_keys_of_requests_that_were_in_flight_together_are_added_and_those_of_the_next_attempt_count_anew(
    redis: Redis,
) -> None:
    upstreams = UnreachableUpstreams(LoggedUpstreams(redis, KEYS))
    await upstreams.add("dead", "refused", 3, 60.0)
    await upstreams.add("dead", "refused", 4, 90.0)
    assert counts(upstreams) == {"dead": 7}
    assert upstreams.listed()[0].next_attempt <= 60.0
    await upstreams.put("dead", "refused", 2, 0.0)
    await upstreams.add("dead", "refused", 5, 8.0)
    assert counts(upstreams) == {"dead": 5}
    await upstreams.put("dead", "refused", 0, 0.0)
    assert counts(upstreams) == {}
    assert "dead" in upstreams


async def test_an_attempt_that_is_long_overdue_is_of_keys_that_another_worker_has_now(redis: Redis) -> None:
    upstreams = UnreachableUpstreams(LoggedUpstreams(redis, KEYS))
    await upstreams.put("gone", "refused", 3, -100.0)
    await upstreams.put("now", "refused", 3, -1.0)
    assert counts(upstreams) == {"now": 3}


async def test_the_log_of_a_fleet_has_a_line_for_each_upstream_and_not_for_each_key(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two = (UnreachableUpstreams(LoggedUpstreams(redis, KEYS)) for _ in range(2))
    for worker in (one, two, one):
        for name in ("a", "b"):
            await worker.put(name, "no such host", 1, 1.0)
    for worker in (one, two, one):
        await worker.remove("a")
        await worker.remove("never")
    await two.put("a", "no such host", 1, 1.0)
    assert caplog.messages == [
        "a cannot be reached: no such host",
        "b cannot be reached: no such host",
        "a is reached again",
        "a cannot be reached: no such host",
    ]


async def test_the_log_has_its_lines_without_redis_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    upstreams = UnreachableUpstreams(LoggedUpstreams(connect_redis("redis://127.0.0.1:1/0"), KEYS))
    await upstreams.put("a", "no such host", 1, 1.0)
    await upstreams.remove("a")
    assert caplog.messages == ["a cannot be reached: no such host", "a is reached again"]


async def test_what_is_kept_and_sent_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreachable, "MAX_REMEMBERED", 1_000)
    upstreams = UnreachableUpstreams(LoggedUpstreams(redis, KEYS))
    for number in range(1_000 + 10):
        await upstreams.put(f"host{number}", "x", 1 + number % 7, 1.0)
    listed = upstreams.listed()
    assert [one.keys for one in listed] == [7] * MAX_LISTED
    assert "host0" not in upstreams


def test_a_heartbeat_says_what_a_worker_waits_for() -> None:
    assert encode_waits("", []) == b""
    assert decode_waits(encode_waits("Redis is full", []), 3.0) == ("Redis is full", [])
    dead = [UnreachableUpstream("dead", 3, "refused", 8.0), UnreachableUpstream("other", 1, "refused", 1.0)]
    assert decode_waits(encode_waits("", dead), 3.0)[1] == [
        UnreachableUpstream("dead", 3, "refused", 5.0),
        UnreachableUpstream("other", 1, "refused", 0.0),
    ]


@pytest.mark.parametrize("listed", [["a", "x", "b", 1.0], [1, 1, "b", 1.0], ["a", None, "b", 1], ["a", 1, b"b", 1]])
def test_what_another_program_wrote_is_no_wait(listed: list[object]) -> None:
    assert decode_waits(msgpack.packb(["Redis is full", [listed]]), 3.0) == ("", [])


def test_the_keys_of_all_workers_wait_for_the_attempt_that_comes_first() -> None:
    found = merged(
        [
            UnreachableUpstream("a", 1, "refused", 1.0),
            UnreachableUpstream("b", 2, "refused", 5.0),
            UnreachableUpstream("b", 3, "no such host", 9.0),
        ]
    )
    assert found == (UnreachableUpstream("b", 5, "no such host", 5.0), UnreachableUpstream("a", 1, "refused", 1.0))
