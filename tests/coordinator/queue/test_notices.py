"""What workers have noticed: each notice once, from all of them."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from coordinator.queue.notices import Notices, NullColumn
from coordinator.redis.keys import RunKeys

pytestmark = pytest.mark.anyio


async def test_the_notices_of_all_workers_are_there_and_the_first_moment_counts(redis: Redis) -> None:
    keys = RunKeys("test")
    matched, turned = {"a.example"}, {"facts.n": 100.5}
    one = Notices(redis, keys, matched, turned)
    other = Notices(redis, keys, frozenset({"b.example"}), {"facts.n": 200.0})
    async with asyncio.timeout(60):
        await one.record()
        await other.record()
        assert await one.without_match(["a.example", "b.example", "c.example"]) == ("c.example",)
        assert await one.turned_null() == (NullColumn("facts.n", 100),)
        turned["facts.a"] = 300.0
        await one.record()
        assert await other.turned_null() == (NullColumn("facts.a", 300), NullColumn("facts.n", 100))


def test_a_column_that_turned_null_is_said_in_words() -> None:
    words = "facts.n was filled, and is null in every record of 1,000 pages since 2026-01-01 12:00:00 UTC"
    assert NullColumn("facts.n", 1_767_268_800).summary == words
