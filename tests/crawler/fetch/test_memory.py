"""The memory of large bodies in virtual time: it is never exceeded, nobody waits for ever, and all of it comes back."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from crawler.fetch.memory import BodyMemory, HeldBody
from tests.simulation.virtual_loop import BACKEND

pytestmark = pytest.mark.anyio

LARGEST = 100


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return BACKEND


@pytest.mark.parametrize("size", [LARGEST, 150, 1_000, 100_000])
@pytest.mark.parametrize("seed", range(5))
async def test_bodies_that_grow_together_all_end_and_never_have_more_than_there_is(size: int, seed: int) -> None:
    random, memory, alive = Random(seed), BodyMemory(size, LARGEST), dict[HeldBody, int]()
    most = 0

    async def one(final: int) -> None:
        nonlocal most
        body = HeldBody(memory)
        for length in range(0, final + 1, random.choice((1, 10, 50))):
            await body.hold(min(length + 10, LARGEST))
            alive[body] = length
            body.shrink(length)
            most = max(most, sum(alive.values()))
            await asyncio.sleep(random.random())
        await asyncio.sleep(random.random())
        del alive[body]
        body.release()
        body.release()

    async with asyncio.timeout(10_000):
        await asyncio.gather(*(one(random.randint(0, LARGEST)) for _ in range(64)))
    assert most <= size
    assert memory.has(size - LARGEST)
    assert not memory.short


async def test_while_a_body_waits_no_other_request_begins() -> None:
    memory = BodyMemory(100, 50)
    first, second, third = (HeldBody(memory) for _ in range(3))
    await first.hold(50)
    await second.hold(50)  # the bytes that are kept for one
    waiting = asyncio.create_task(third.hold(10))
    beginning = asyncio.create_task(memory.until_free())
    await asyncio.sleep(1)
    assert memory.short
    assert not memory.has(0)
    assert not waiting.done()
    assert not beginning.done()
    first.release()
    await asyncio.gather(waiting, beginning)
    assert (third.waited, second.waited, memory.short) == (True, False, False)


async def test_a_body_whose_request_was_cancelled_gives_its_memory_back() -> None:
    memory = BodyMemory(100, 50)

    async def read() -> None:
        taken, kept = HeldBody(memory), HeldBody(memory)
        await taken.hold(40)
        await kept.hold(40)
        assert kept.has_kept
        await asyncio.sleep(1_000)

    reading = asyncio.create_task(read())
    await asyncio.sleep(1)
    assert not memory.has(50)
    reading.cancel()
    await asyncio.wait([reading])
    del reading
    assert memory.has(50)
    await HeldBody(memory).hold(100)
