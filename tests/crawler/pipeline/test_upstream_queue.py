"""Which request of one queue may leave now, and why none may. Slots and lanes are in the scheduler's tests."""

from __future__ import annotations

from typing import Any

import pytest

from crawler.pipeline.upstream_queue import Hold, UpstreamQueue
from tests.crawler.examples import a_request
from tests.servers.scripted import ScriptedLimiter
from tests.simulation.virtual_loop import BACKEND, now

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return BACKEND


def a_queue(limiter: ScriptedLimiter, *, requests: int = 3) -> UpstreamQueue:
    double: Any = limiter
    queue = UpstreamQueue(
        "a",
        double,
        lanes=100,
        speed="quick",
        room_at=limiter.concurrency,
        free_lanes=lambda: 1,
        on_reserved=lambda queue, error: None,
    )
    queue.waiting.extend(a_request(str(number), "a") for number in range(requests))
    return queue


async def test_the_first_request_leaves_without_a_slot_when_nothing_bounds_the_upstream() -> None:
    queue = a_queue(ScriptedLimiter())
    first, second, _ = queue.waiting
    assert queue.pick() == (first, None)
    assert queue.pick() == (second, None)
    assert (queue.in_flight, len(queue.waiting)) == (2, 1)


@pytest.mark.parametrize(
    ("limits", "requests", "hold"),
    [
        ({}, 0, "empty"),
        ({"paused_until": {"a": 1e9}}, 3, "paused"),
        ({"concurrencies": {"a": 0}}, 3, "full"),
        ({"rates": {"a": 5.0}}, 3, "no slot"),
        ({"paused_until": {"a": 1e9}, "concurrencies": {"a": 0}, "rates": {"a": 5.0}}, 0, "empty"),
        ({"paused_until": {"a": 1e9}, "concurrencies": {"a": 0}, "rates": {"a": 5.0}}, 3, "paused"),
    ],
)
async def test_a_hold_says_why_nothing_leaves_and_changes_nothing(
    limits: dict[str, Any], requests: int, hold: Hold
) -> None:
    limiter = ScriptedLimiter(**limits)
    queue = a_queue(limiter, requests=requests)
    assert queue.pick() == hold
    assert (queue.in_flight, len(queue.waiting), limiter.calls) == (0, requests, [])
    assert queue.forgettable is (requests == 0)


async def test_a_pause_that_has_ended_holds_nothing() -> None:
    assert a_queue(ScriptedLimiter(paused_until={"a": now()})).pick() != "paused"


async def test_a_full_queue_has_room_again_when_a_request_is_given_back() -> None:
    queue = a_queue(ScriptedLimiter(concurrencies={"a": 1}))
    picked = queue.pick()
    assert isinstance(picked, tuple)
    assert queue.pick() == "full"
    queue.give_back(picked[0])
    assert queue.pick() == picked


async def test_limits_are_read_again_only_after_a_change() -> None:
    limiter = ScriptedLimiter(concurrencies={"a": 1})
    queue = a_queue(limiter)
    queue.pick()
    limiter.concurrencies["a"] = 2
    assert queue.pick() == "full"
    queue.limits_changed()
    assert isinstance(queue.pick(), tuple)


async def test_recount_returns_the_change_of_what_is_at_hand() -> None:
    limiter = ScriptedLimiter(rates={"a": 5.0})
    queue = a_queue(limiter, requests=30)
    assert (queue.recount(), queue.at_hand) == (10, 10)
    assert queue.recount() == 0
    limiter.rates["a"] = 1.0
    queue.limits_changed()
    assert (queue.recount(), queue.at_hand) == (-8, 2)
