from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler.fetch.gate import Gate, share

pytestmark = pytest.mark.anyio


@given(limit=st.integers(0, 10_000), size=st.integers(1, 300))
def test_the_shares_of_all_workers_add_up_to_the_limit_and_are_even(limit: int, size: int) -> None:
    shares = [share(limit, rank, size) for rank in range(size)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


class Visitors:
    """Tasks that enter one gate; each stays until it is told to leave."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.inside: list[str] = []
        self.most = 0

    async def come(self, *names: str) -> None:
        for name in names:
            self._leave[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._visit(name))
        await settled()

    async def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
        await settled()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _visit(self, name: str) -> None:
        async with self._gate:
            self.inside.append(name)
            self.most = max(self.most, len(self.inside))
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def visitors(gate: Gate) -> AsyncIterator[Visitors]:
    guests = Visitors(gate)
    yield guests
    await guests.end()
    assert gate._inside == 0


async def test_no_more_than_the_share_are_inside_and_the_rest_come_in_order() -> None:
    async with visitors(Gate(2)) as guests:
        await guests.come("a", "b", "c", "d")
        assert guests.inside == ["a", "b"]
        await guests.leave("b")
        assert guests.inside == ["a", "c"]
        await guests.leave("a")
        assert guests.inside == ["c", "d"]


async def test_without_a_limit_everybody_is_let_in() -> None:
    gate = Gate(None)
    gate.resize(3, 4)
    async with visitors(gate) as guests:
        await guests.come(*"abcdefgh")
        assert len(guests.inside) == 8


async def test_a_larger_share_wakes_those_who_wait() -> None:
    gate = Gate(4)
    gate.resize(0, 4)
    async with visitors(gate) as guests:
        await guests.come(*"abcde")
        assert guests.inside == ["a"]
        gate.resize(0, 2)
        await settled()
        assert guests.inside == ["a", "b"]
        gate.resize(0, 1)
        await settled()
        assert guests.inside == ["a", "b", "c", "d"]


async def test_a_smaller_share_holds_until_enough_have_left() -> None:
    gate = Gate(3)
    async with visitors(gate) as guests:
        await guests.come(*"abcd")
        gate.resize(0, 3)
        for name in "ab":
            await guests.leave(name)
            assert "d" not in guests.inside
        await guests.leave("c")
        assert guests.inside == ["d"]


async def test_a_share_of_nothing_lets_nobody_in_until_it_grows() -> None:
    gate = Gate(1)
    gate.resize(1, 2)
    async with visitors(gate) as guests:
        await guests.come("a")
        assert guests.inside == []
        gate.resize(0, 1)
        await settled()
        assert guests.inside == ["a"]


async def test_one_that_waits_and_is_cancelled_costs_nobody_a_turn() -> None:
    async with visitors(Gate(1)) as guests:
        await guests.come("a", "b", "c")
        guests.cancel("b")
        await guests.leave("a")
        assert guests.inside == ["c"]


async def test_one_that_is_cancelled_after_it_was_called_passes_its_turn_on() -> None:
    async with visitors(Gate(1)) as guests:
        await guests.come("a", "b", "c")
        guests._leave["a"].set()
        while guests.inside == ["a"]:
            await asyncio.sleep(0)
        guests.cancel("b")  # the gate has called it, and it has not run yet
        await settled()
        assert guests.inside == ["c"]


async def test_an_error_inside_gives_the_place_back() -> None:
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(5), gate:
                raise ZeroDivisionError
    async with visitors(gate) as guests:
        await guests.come("a")
        assert guests.inside == ["a"]


async def test_a_crowd_passes_whatever_share_it_is_given_meanwhile() -> None:
    gate = Gate(5)
    passed = 0

    async def pass_through() -> None:
        nonlocal passed
        async with gate:
            await asyncio.sleep(0)
            passed += 1

    crowd = [asyncio.create_task(pass_through()) for _ in range(200)]
    async with asyncio.timeout(10):
        for size in (3, 1, 5, 2, 4) * 10:
            gate.resize(0, size)
            await asyncio.sleep(0)
        crowd[-1].cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    assert passed >= 199
    assert gate._inside == 0
