from __future__ import annotations

from random import Random

import pytest

from crawler.fetch.retry_budget import FLOOR, LONGEST_HERE, RetryBudget


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


def granted(budget: RetryBudget, asked: int) -> int:
    return sum(budget.grants(0.5) for _ in range(asked))


def test_a_few_retries_are_granted_before_anything_was_sent(budget: RetryBudget) -> None:
    assert granted(budget, 100) == FLOOR


def test_half_of_the_requests_of_the_last_minute_may_be_retries(budget: RetryBudget, clock: Clock) -> None:
    for _ in range(50):
        clock.now += 1.0
        for _ in range(4):
            budget.sent()
    assert granted(budget, 1_000) == 100
    for _ in range(20):
        budget.sent()
    assert granted(budget, 1_000) == 10


def test_what_is_older_than_a_minute_counts_no_more(budget: RetryBudget, clock: Clock) -> None:
    for _ in range(100):
        budget.sent()
    assert granted(budget, 100) == 50
    clock.now += 59.0
    assert granted(budget, 100) == 0
    clock.now += 1.0
    assert granted(budget, 100) == FLOOR


@pytest.mark.parametrize("passed", [60.0, 61.0, 119.0, 3_600.0])
def test_after_a_long_silence_everything_is_forgotten(budget: RetryBudget, clock: Clock, passed: float) -> None:
    for _ in range(1_000):
        budget.sent()
    clock.now += passed
    assert granted(budget, 100) == FLOOR


def test_a_long_wait_is_not_spent_here_and_costs_nothing(budget: RetryBudget) -> None:
    assert not any(budget.grants(LONGEST_HERE + 0.001) for _ in range(100))
    assert budget.grants(LONGEST_HERE)
    assert granted(budget, 100) == FLOOR - 1


def test_in_no_minute_are_there_more_retries_than_half_of_its_requests(budget: RetryBudget, clock: Clock) -> None:
    random = Random(1)
    sent: list[float] = []
    retries: list[float] = []
    for _ in range(5_000):
        clock.now += random.choice([0.0, 0.01, 0.1, 3.0])
        budget.sent()
        sent.append(clock.now)
        if random.random() < 0.8 and budget.grants(0.1):
            retries.append(clock.now)
            since = int(clock.now) - 59
            requests = sum(at >= since for at in sent)
            assert sum(at >= since for at in retries) <= max(FLOOR, requests // 2)
    assert len(retries) > 1_000
