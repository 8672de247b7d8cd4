"""Pages go through the stage with stand-ins for processes, which run the function when the test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.job.models import StoreSettings
from crawler.model import BasePage, Page
from crawler.pipeline.batch import Batch
from crawler.pool.pool import TaskFailed
from crawler.pool.process import ChildUnusable
from crawler.pool.protocol import pickled, unpickled
from crawler.transform.function import Made, Record
from crawler.transform.handler import BatchResult, BatchTask
from crawler.transform.stage import TransformStage
from tests.crawler.examples import a_job, a_page
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TABLES = [{"name": "given", "columns": {"n": "bigint"}}, {"name": "others", "columns": {"n": "bigint"}}]


def doubled(given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
    return {key: [(0, (2 * one["n"],)) for one in records] for key, records in given.items()}


class StandIn:
    """A process: it runs one batch after another, while `gate` is set. `seen` are the keys of each batch."""

    def __init__(self, function: Callable[[Mapping[str, Sequence[Record]]], Mapping[str, Made]] = doubled) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[Sequence[str]] = []
        self.rows: list[int] = []
        self._function = function
        self._one = asyncio.Lock()

    async def run(self, task: BatchTask) -> BatchResult:
        async with self._one:
            if task.keys:
                await self.gate.wait()
            given = {key: unpickled(content) for key, content in zip(task.keys, task.records, strict=True)}
            if task.keys:
                self.seen.append(task.keys)
                self.rows.append(sum(map(len, given.values())))
            try:
                made = self._function(given)
            except ValueError as error:
                return BatchResult((), str(error), 0.5)
            return BatchResult([one if isinstance(one, str) else pickled(one) for one in made.values()], None, 0.5)

    async def close(self) -> None:
        return


class Passage:
    """A stage before a real batch; `idle` says that no request is left."""

    def __init__(self, *processes: Sequence[StandIn], batch: int = 4, rows: int = 1000, **settings: Any) -> None:
        transforms = [
            {"python": f"f{number}:f", "batch": batch, "age": 60} | settings for number in range(len(processes))
        ]
        self.idle = False
        self.clock = 0.0
        self.batch = Batch(StoreSettings(batch_rows=rows, batch_age=60), clock=lambda: 0.0)
        job = a_job(parse={"python": "a:b"}, tables=TABLES, transform=transforms)
        self.stage = TransformStage(job, self.batch, lambda: self.idle, processes)

    def add(self, key: str, *numbers: int, table: int = 0) -> Page:
        page = a_page(key)
        page.records = [(table, {"n": number}) for number in numbers]  # type: ignore[misc]
        self.stage.add(page)
        return page

    def end(self) -> None:
        """Say that no other request is left, as the last lane does."""
        self.idle = True
        self.stage.make_due()

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[Passage]:
        task = asyncio.create_task(self.stage.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def passed(self, count: int) -> list[Page]:
        """Wait until so many pages are in the batch; returns them."""
        await eventually(lambda: len(self.batch._load.pages) >= count, f"{count} pages")
        return self.batch._load.pages


async def test_records_go_through_in_whole_batches_and_in_order() -> None:
    process = StandIn()
    async with Passage([process]).runs() as passage:
        for number in range(10):
            passage.add(str(number), number, 10 * number)
        pages = await passage.passed(10)
    assert process.seen == [[str(number), str(number + 1)] for number in range(0, 10, 2)]
    order = [int(page.item.key) for page in pages]
    assert all(order.index(number) < order.index(number + 1) for number in range(0, 10, 2)), "within a batch"
    assert [page.records for page in pages] == [[(0, (2 * n,)), (0, (20 * n,))] for n in order]
    (step,) = passage.stage.steps
    assert (step.rows_done, step.rows_waiting, step.rows_held, step.bytes_held) == (20, 0, 0, 0)
    assert (step.busy, step.processes, step.busy_seconds) == (0, 1, 0.5 * 5)


async def test_what_has_no_records_for_a_transform_goes_on_at_once_and_so_does_what_is_carried_over() -> None:
    passage = Passage([StandIn()])
    passage.add("empty")
    passage.add("other", 1, table=1)
    page = a_page("unchanged")
    page.records, page.unmodified = [(0, ())], True
    page.base = BasePage(None, None, None, 0.0, b"1")
    passage.stage.add(page)
    assert [one.item.key for one in passage.batch._load.pages] == ["empty", "other", "unchanged"]


async def test_a_part_of_a_batch_goes_when_it_is_old_or_when_nothing_more_comes() -> None:
    process = StandIn()
    async with Passage([process], age=0.01).runs() as passage:
        passage.add("old", 1)
        await passage.passed(1)
    async with Passage([process]).runs() as passage:
        passage.add("last", 1)
        passage.end()
        await passage.passed(1)
    async with Passage([process]).runs() as passage:
        passage.add("drained", 1)
        async with asyncio.timeout(5):
            await passage.stage.drain()
        assert [page.item.key for page in passage.batch._load.pages] == ["drained"]


async def test_pages_of_the_stage_count_as_the_batchs_and_a_full_one_is_shared_among_the_processes() -> None:
    processes = [StandIn(), StandIn()]
    async with Passage(processes, batch=1000, rows=40).runs() as passage:
        for process in processes:
            process.gate.clear()
        for number in range(40):
            assert not passage.batch.full
            passage.add(str(number), number)
        assert passage.batch.full
        (step,) = passage.stage.steps
        await eventually(lambda: step.rows_waiting == 0, "two batches for each process")
        for process in processes:
            process.gate.set()
        await passage.passed(40)
    assert [process.rows for process in processes] == [[10, 10], [10, 10]]
    assert passage.batch.full, "until they are committed"
    passage.batch.make_due()
    await passage.batch.due()
    passage.batch.flushed()
    assert not passage.batch.full


async def test_the_last_records_go_to_the_process_that_has_nothing_to_do_in_parts_that_become_smaller() -> None:
    """Two equal parts would let one process stand still while the other one works at the last of them."""
    ends_first, ends_last = StandIn(), StandIn()
    async with Passage([ends_first, ends_last], batch=100, rows=400).runs() as passage:
        ends_last.gate.clear()
        for number in range(400):
            passage.add(str(number), number)
        await passage.passed(200)
        passage.batch.make_due()
        await passage.batch.due()
        passage.batch.flushed()
        for number in range(400, 416):
            passage.add(str(number), number)
        passage.end()
        await passage.passed(16)
        ends_last.gate.set()
        await passage.passed(216)
    assert ends_first.rows == [100, 100, 8, 4, 2, 1, 1]
    assert ends_last.rows == [100, 100]


@pytest.mark.parametrize("failure", [ValueError("unlucky"), TaskFailed("its process hung")])
async def test_only_the_key_pays_on_which_the_function_fails(failure: Exception) -> None:
    def fails(given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        if any(record["n"] in (3, 9) for records in given.values() for record in records):
            raise failure
        return doubled(given)

    async with Passage([StandIn(fails)], batch=16).runs() as passage:
        for number in range(16):
            passage.add(str(number), number)
        pages = await passage.passed(16)
    assert [page.item.key for page in pages] == [str(number) for number in range(16)]
    failed = [page for page in pages if page.outcome is Outcome.FAILED]
    assert [page.item.key for page in failed] == ["3", "9"]
    assert all(str(failure) in str(page.reason) and not page.records for page in failed)
    assert all(page.records == [(0, (2 * int(page.item.key),))] for page in pages if page not in failed)


async def test_a_key_with_more_records_than_a_batch_fails_as_a_whole_and_else_keeps_their_order() -> None:
    def fails(given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        made = dict(doubled(given))
        return {key: "bad" if key == "bad" and (0, (0,)) in own else own for key, own in made.items()}

    process = StandIn(fails)
    async with Passage([process]).runs() as passage:
        good = passage.add("good", *range(1, 11))
        bad = passage.add("bad", *range(9, -1, -1))
        passage.end()
        await passage.passed(2)
    assert max(process.rows) == 4
    assert good.records == [(0, (2 * number,)) for number in range(1, 11)]
    assert (bad.outcome, bad.reason, bad.records) == (Outcome.FAILED, "bad", [])


async def test_pages_of_one_key_are_never_in_one_batch() -> None:
    """The function says by "_key" whose a record is, and pages of a list have one."""
    process = StandIn()
    async with Passage([process]).runs() as passage:
        first, second = passage.add("list", 1), passage.add("list", 2)
        passage.end()
        await passage.passed(2)
    assert process.seen == [["list"], ["list"]]
    assert (first.records, second.records) == ([(0, (2,))], [(0, (4,))])


async def test_a_record_that_cannot_be_pickled_fails_its_key() -> None:
    passage = Passage([StandIn()])
    page = a_page("a")
    page.records = [(0, {"n": lambda: 0})]  # type: ignore[list-item]
    passage.stage.add(page)
    assert "a record that cannot go from one process to another" in str(page.reason)
    assert passage.batch._load.pages == [page]
    assert passage.stage.steps[0].rows_held == 0


async def test_transforms_follow_each_other_and_a_page_may_need_only_one_of_them() -> None:
    def moved(given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        return {key: [(1, one) for one in records] for key, records in given.items()}

    def tripled(given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        return {
            key: "none" if not records else [(1, (3 * one["n"],)) for one in records] for key, records in given.items()
        }

    passage = Passage([StandIn(moved)], [StandIn(tripled)])
    job = a_job(
        parse={"python": "a:b"},
        tables=TABLES,
        transform=[{"python": "f:f", "batch": 4}, {"python": "g:g", "batch": 100, "table": "others", "age": 60}],
    )
    passage.stage = TransformStage(job, passage.batch, lambda: passage.idle, [[StandIn(moved)], [StandIn(tripled)]])
    async with passage.runs():
        both, one = passage.add("both", 1, 2), passage.add("one", 5, table=1)
        passage.end()
        await passage.passed(2)
    assert both.records == [(1, (3,)), (1, (6,))]
    assert one.records == [(1, (15,))]


async def test_a_function_that_cannot_be_used_ends_the_worker() -> None:
    def unusable(_: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        raise ChildUnusable("[transform] python: no such thing")

    passage = Passage([StandIn(unusable)])
    with pytest.raises(UsageError, match="no such thing"):
        async with asyncio.timeout(5):
            await passage.stage.run()
