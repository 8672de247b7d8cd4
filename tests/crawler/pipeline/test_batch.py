from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from coordinator.model import NO_ATTEMPTS, Attempts, EntryId, ShardId
from coordinator.url import parse
from crawler.job.models import StoreSettings
from crawler.model import OpenBlock, Page, Request
from crawler.pipeline.batch import Batch, DeferredItem, Load
from tests.crawler.examples import a_page, a_request
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

NEVER = 3600.0


class Clock:
    """A clock that moves only when a test moves it; `looks` counts how often it was read."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def a_batch(clock: Clock | None = None, *, rows: int = 10, size: int = 2**30, age: float = NEVER) -> Batch:
    return Batch(StoreSettings(batch_rows=rows, batch_bytes=size, batch_age=age), clock=clock or Clock())


def filled(batch: Batch, count: int, *, body: int = 0) -> list[Page]:
    pages = [a_page(str(number), body=b"x" * body) for number in range(count)]
    for page in pages:
        batch.add(page)
    return pages


async def run_ready_tasks() -> None:
    """Let every task go as far as it can without a timer."""
    for _ in range(10):
        await asyncio.sleep(0)


async def ended(call: Awaitable[Any]) -> Any:
    async with asyncio.timeout(5):
        return await call


async def taken(batch: Batch) -> Load:
    load = await ended(batch.due())
    assert isinstance(load, Load)
    return load


class Waiting:
    """A task that waits for `call`; cancelled at the end."""

    def __init__(self, call: Any) -> None:
        self.task = asyncio.create_task(call)

    async def __aenter__(self) -> asyncio.Task[Any]:
        await run_ready_tasks()
        return self.task

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_half_the_rows_are_due_and_less_are_not() -> None:
    batch = a_batch(rows=10)
    first = filled(batch, 4)
    async with Waiting(batch.due()) as due:
        assert not due.done()
        fifth = a_page("fifth")
        batch.add(fifth)
        assert (await ended(due)).pages == [*first, fifth]


async def test_half_the_bytes_are_due_and_less_are_not() -> None:
    batch = a_batch(rows=1000, size=100_000)
    filled(batch, 4, body=10_000)
    async with Waiting(batch.due()) as due:
        assert not due.done()
        filled(batch, 1, body=10_000)
        assert len((await ended(due)).pages) == 5


async def test_the_weight_of_records_counts_too() -> None:
    batch = a_batch(rows=1000, size=20_000)
    page = a_page("a", records=[(1,)] * 40)
    batch.add(page)
    assert (await taken(batch)).pages == [page]


async def test_a_page_is_due_when_it_is_old_enough() -> None:
    clock = Clock()
    batch = a_batch(clock, age=0.01)
    filled(batch, 1)
    async with Waiting(batch.due()) as due:
        clock.now = 0.0099
        looks = clock.looks
        await eventually(lambda: clock.looks > looks + 4, "the clock to be read again")
        assert not due.done()
        clock.now = 0.01
        assert len((await ended(due)).pages) == 1


async def test_age_counts_from_the_oldest_page_of_each_load() -> None:
    clock = Clock()
    batch = a_batch(clock, rows=10, age=0.01)
    filled(batch, 5)
    await taken(batch)
    clock.now = 50.0
    filled(batch, 1)
    async with Waiting(batch.due()) as due:
        looks = clock.looks
        await eventually(lambda: clock.looks > looks + 4, "the clock to be read again")
        assert not due.done()


async def test_make_due_makes_the_present_load_due_at_once_and_not_the_next_one() -> None:
    batch = a_batch(age=NEVER)
    batch.make_due()  # nothing is there
    async with Waiting(batch.due()) as due:
        pages = filled(batch, 2)
        await run_ready_tasks()
        assert not due.done()
        batch.make_due()
        assert (await ended(due)).pages == pages
    batch.flushed()
    async with Waiting(batch.due()) as due:
        filled(batch, 1)
        await run_ready_tasks()
        assert not due.done()


async def test_an_empty_batch_is_never_due() -> None:
    clock = Clock()
    batch = a_batch(clock, age=0.01)
    async with Waiting(batch.due()) as due:
        clock.now = 1000.0
        await run_ready_tasks()
        assert not due.done()


async def test_blocks_without_work_are_due_by_age() -> None:
    clock = Clock()
    batch = a_batch(clock, age=0.01)
    block = OpenBlock(ShardId(1), EntryId("1-0"), 5, 0)
    batch.add_done_block(block)
    clock.now = 1.0
    load = await taken(batch)
    assert (load.pages, load.done_blocks) == ([], [block])


async def test_every_key_of_a_request_is_deferred_with_its_attempts_and_its_delay() -> None:
    batch = a_batch()
    items = [item for key in "abc" for item in a_request(key).items]
    attempts = Attempts(2, 1, ("a line",))
    batch.defer(Request(parse("https://upstream.example/?ids=a,b,c"), items, "upstream.example", attempts), 7.5)
    batch.defer(a_request("d"), 30.0)
    batch.close()
    load = await taken(batch)
    assert load.deferred[:3] == [DeferredItem(item, attempts, 7.5) for item in items]
    assert [(one.item.key, one.attempts, one.delay) for one in load.deferred[3:]] == [("d", NO_ATTEMPTS, 30.0)]
    assert (load.pages, load.done_blocks) == ([], [])


async def test_deferred_keys_are_due_by_age_and_keep_no_lane_waiting() -> None:
    clock = Clock()
    batch = a_batch(clock, rows=4, age=0.01)
    for number in range(100):
        batch.defer(a_request(str(number)), 1.0)
    assert not batch.full
    async with Waiting(batch.due()) as due:
        looks = clock.looks
        await eventually(lambda: clock.looks > looks + 4, "the clock to be read again")
        assert not due.done()
        clock.now = 0.01
        assert len((await ended(due)).deferred) == 100
    assert len(batch) == 0
    batch.close()
    assert await ended(batch.due()) is None


async def test_closing_makes_the_rest_due_and_then_ends() -> None:
    batch = a_batch()
    filled(batch, 1)
    async with Waiting(batch.due()) as due:
        assert not due.done()
        batch.close()
        assert len((await ended(due)).pages) == 1
    batch.flushed()
    assert await ended(batch.due()) is None
    assert await ended(batch.due()) is None


async def test_closing_an_empty_batch_ends_a_flush_that_waits() -> None:
    batch = a_batch()
    async with Waiting(batch.due()) as due:
        assert not due.done()
        batch.close()
        assert await ended(due) is None


async def test_pages_that_come_after_the_close_are_still_due() -> None:
    batch = a_batch()
    batch.close()
    filled(batch, 1)
    assert len((await taken(batch)).pages) == 1
    assert await ended(batch.due()) is None


async def test_it_is_full_by_rows_until_they_are_flushed_and_not_just_taken() -> None:
    batch = a_batch(rows=4)
    filled(batch, 3)
    assert not batch.full
    filled(batch, 1)
    assert batch.full
    await taken(batch)
    assert len(batch) == 4
    assert batch.full
    batch.flushed()
    assert len(batch) == 0
    assert not batch.full


async def test_it_is_full_by_bytes_until_they_are_flushed() -> None:
    batch = a_batch(rows=1000, size=30_000)
    filled(batch, 3, body=9_000)
    assert not batch.full
    filled(batch, 1, body=9_000)
    assert batch.full
    await taken(batch)
    assert batch.full
    batch.flushed()
    assert not batch.full


async def test_all_who_wait_for_room_go_on_after_the_flush() -> None:
    batch = a_batch(rows=2)
    filled(batch, 2)
    async with Waiting(asyncio.wait([asyncio.create_task(batch.until_room()) for _ in range(3)])) as rooms:
        await taken(batch)
        await run_ready_tasks()
        assert not rooms.done()
        batch.flushed()
        done, pending = await ended(rooms)
        assert (len(done), len(pending)) == (3, 0)


async def test_there_is_no_room_when_a_flush_leaves_it_full() -> None:
    batch = a_batch(rows=2)
    filled(batch, 2)
    await taken(batch)
    filled(batch, 2)
    async with Waiting(batch.until_room()) as room:
        batch.flushed()
        await run_ready_tasks()
        assert not room.done()
        await taken(batch)
        batch.flushed()
        await ended(room)


async def test_room_is_there_at_once_when_it_is_not_full() -> None:
    await ended(a_batch().until_room())


async def test_no_page_is_due_twice() -> None:
    batch = a_batch(rows=10)
    flushed: list[Page] = []
    added: list[Page] = []
    for _ in range(20):
        added += filled(batch, 5)
        flushed += (await taken(batch)).pages
        batch.flushed()
    batch.close()
    assert await ended(batch.due()) is None
    assert [id(page) for page in flushed] == [id(page) for page in added]
