"""Waiting for a service that is away."""

from __future__ import annotations

import logging

import pytest

from coordinator.errors import EpochLost, PostgresUnavailable, RedisUnavailable
from coordinator.redis.retrying import retry_unavailable

pytestmark = pytest.mark.anyio


class Service:
    """Is away for the first calls."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def call(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "result"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, which take no time here."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("coordinator.redis.retrying.asyncio.sleep", sleep)
    return slept


async def test_a_service_that_responds_is_called_once_and_nothing_is_logged(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    with caplog.at_level(logging.DEBUG, "coordinator.redis.retrying"):
        assert await retry_unavailable(service.call, "worker") == "result"
    assert (service.calls, waits, caplog.messages) == (1, [], [])


async def test_a_service_that_is_away_is_called_again_ever_more_slowly_and_logged_once(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(*[RedisUnavailable("Redis does not answer")] * 4, *[PostgresUnavailable("nor Postgres")] * 4)
    with caplog.at_level(logging.DEBUG, "coordinator.redis.retrying"):
        assert await retry_unavailable(service.call, "worker") == "result"
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert caplog.messages == ["worker waits: Redis does not answer", "worker goes on"]


async def test_what_waiting_does_not_heal_is_raised(waits: list[float]) -> None:
    service = Service(RedisUnavailable("away"), EpochLost("another"))
    with pytest.raises(EpochLost):
        await retry_unavailable(service.call, "worker")
    assert len(waits) == 1
