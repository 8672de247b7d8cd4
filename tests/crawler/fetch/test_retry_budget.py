"""Retries in place: at most half of the requests of the last minute."""

from __future__ import annotations

from random import Random

import pytest

from crawler.fetch.retry_budget import MAX_IN_PLACE_SECONDS, MIN_RETRIES, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> RetryBudget:
    return RetryBudget(clock=clock)


def granted(budget: RetryBudget, retries: int) -> int:
    return sum(budget.grant_retry(0.5) for _ in range(retries))


def test_a_few_retries_are_granted_before_anything_was_sent(budget: RetryBudget) -> None:
    assert granted(budget, 100) == MIN_RETRIES


def test_half_of_the_requests_of_the_last_minute_may_be_retries(budget: RetryBudget, clock: Clock) -> None:
    for _ in range(50):
        clock.now += 1.0
        for _ in range(4):
            budget.add_request()
    assert granted(budget, 1_000) == 100
    for _ in range(20):
        budget.add_request()
    assert granted(budget, 1_000) == 10


def test_requests_older_than_a_minute_do_not_count(budget: RetryBudget, clock: Clock) -> None:
    for _ in range(100):
        budget.add_request()
    assert granted(budget, 100) == 50
    clock.now += 59.0
    assert granted(budget, 100) == 0
    clock.now += 1.0
    assert granted(budget, 100) == MIN_RETRIES


@pytest.mark.parametrize("passed", [60.0, 61.0, 119.0, 3_600.0])
def test_after_a_long_pause_no_request_counts(budget: RetryBudget, clock: Clock, passed: float) -> None:
    for _ in range(1_000):
        budget.add_request()
    clock.now += passed
    assert granted(budget, 100) == MIN_RETRIES


def test_a_long_delay_is_never_granted_and_costs_nothing(budget: RetryBudget) -> None:
    assert not any(budget.grant_retry(MAX_IN_PLACE_SECONDS + 0.001) for _ in range(100))
    assert budget.grant_retry(MAX_IN_PLACE_SECONDS)
    assert granted(budget, 100) == MIN_RETRIES - 1


def test_in_no_minute_are_there_more_retries_than_half_of_its_requests(budget: RetryBudget, clock: Clock) -> None:
    random = Random(1)
    sent: list[float] = []
    retries: list[float] = []
    for _ in range(5_000):
        clock.now += random.choice([0.0, 0.01, 0.1, 3.0])
        budget.add_request()
        sent.append(clock.now)
        if random.random() < 0.8 and budget.grant_retry(0.1):
            retries.append(clock.now)
            since = int(clock.now) - 59
            requests = sum(at >= since for at in sent)
            assert sum(at >= since for at in retries) <= max(MIN_RETRIES, requests // 2)
    assert len(retries) > 1_000
