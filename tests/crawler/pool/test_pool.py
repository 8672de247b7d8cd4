"""A pool runs any handler of a module; what it does with tasks that kill the child is tested with a parser."""

from __future__ import annotations

import asyncio

import pytest

from crawler.pool.pool import Pool, TaskFailed
from crawler.pool.process import ChildUnusable
from tests.crawler.pool.handlers import add, refuse

pytestmark = pytest.mark.anyio


async def test_each_task_gets_its_own_result_and_the_one_that_kills_the_child_an_exception() -> None:
    pool: Pool[int, int, int] = Pool(add, 100, name="adder", seconds=60)
    try:
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(pool.run(task) for task in (3, 2, 0, 1)), return_exceptions=True)
    finally:
        await pool.close()
    assert [result for result in results if isinstance(result, int)] == [103, 102, 101]
    assert isinstance(results[2], TaskFailed)
    assert str(results[2]) == "its process ended with exit code 7, 2 times"


async def test_a_handler_that_refuses_its_setup_ends_every_task_with_its_reason() -> None:
    pool: Pool[str, int, int] = Pool(refuse, "no such thing", name="refuser", seconds=60)
    try:
        async with asyncio.timeout(60):
            results = await asyncio.gather(pool.run(1), pool.run(2), return_exceptions=True)
    finally:
        await pool.close()
    assert [(type(result), str(result)) for result in results] == [(ChildUnusable, "no such thing")] * 2


async def test_a_task_that_comes_while_the_socket_is_already_closed_goes_to_the_next_child() -> None:
    """uvloop raises RuntimeError on a closed transport: that ended the worker when its parser's process had died."""
    pool: Pool[int, int, int] = Pool(add, 100, name="adder", seconds=60)
    try:
        async with asyncio.timeout(60):
            assert await pool.run(1) == 101
            assert pool._child is not None
            pool._child.abort()
            results = await asyncio.gather(*(pool.run(task) for task in (2, 3, 4, 5)))
    finally:
        await pool.close()
    assert results == [102, 103, 104, 105]
