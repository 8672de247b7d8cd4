"""A pause that an upstream asks one worker for stops all workers there, and changes nothing at another upstream."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.scripted import Scripted, response
from ops.bench.whole_run import Row

WORKERS = 8
RATE = 300
PAUSE_SECONDS = 3.0
STOPPED_WITHIN_SECONDS = 0.1
PAUSES = 3
STEADY_SECONDS = 4.0
RISE_SECONDS = 5.0
FINE = response()
WAIT = response(b"", f"Retry-After: {PAUSE_SECONDS:.0f}", status="429 Too Many Requests")


class Pausing:
    """The script: 200, and once after each `throttle_next` a 429. `throttled` has the monotonic times of the 429s."""

    def __init__(self) -> None:
        self._throttles = False
        self.throttled: list[float] = []

    def throttle_next(self) -> None:
        """Respond to the next request with 429."""
        self._throttles = True

    def __call__(self, _: str) -> bytes:
        """The response for any path."""
        if not self._throttles:
            return FINE
        self._throttles = False
        self.throttled.append(monotonic())
        return WAIT


async def pause(folder: Path) -> list[Row]:
    """Three times Retry-After: 3 to one of eight workers, which send 300 requests a second to each of two upstreams."""
    pausing = Pausing()
    async with Scripted(pausing) as paused, Scripted(lambda _: FINE) as other:
        urls = [up.url(f"/{number}") for number in range(RATE * 90) for up in (paused, other)]
        limits = {up.authority: f"rate = {RATE}" for up in (paused, other)}
        async with Crawl(folder / "crawl", Plan(urls, limits, workers=WORKERS)) as crawl:
            await crawl.until(lambda: crawl.joined() == WORKERS, "all workers")
            due = monotonic() + 1.5 * STEADY_SECONDS
            for number in range(1, PAUSES + 1):
                await crawl.until(lambda: monotonic() >= due, "the next pause")  # noqa: B023
                pausing.throttle_next()
                await crawl.until(lambda: len(pausing.throttled) == number, "a response with 429")  # noqa: B023
                due = pausing.throttled[-1] + PAUSE_SECONDS + RISE_SECONDS
            await crawl.until(lambda: monotonic() >= due, "the end of the last pause")
    return _rows(pausing.throttled, paused, other)


def _rows(throttled: list[float], paused: Scripted, other: Scripted) -> list[Row]:
    late, first, last = 0, float("inf"), 0.0
    for at in throttled:
        after = [one.at - at for one in paused.log if one.at > at]
        late += sum(STOPPED_WITHIN_SECONDS < seconds < PAUSE_SECONDS for seconds in after)
        last = max([last, *(seconds for seconds in after if seconds < PAUSE_SECONDS)])
        first = min([first, *(seconds for seconds in after if seconds >= PAUSE_SECONDS)])
    steady = other.between(throttled[0] - STEADY_SECONDS, throttled[0]) / STEADY_SECONDS
    during = [other.between(at, at + PAUSE_SECONDS) / PAUSE_SECONDS for at in throttled]
    rising = [other.between(at + PAUSE_SECONDS, at + PAUSE_SECONDS + RISE_SECONDS) / RISE_SECONDS for at in throttled]
    return [
        Row(
            f"Retry-After 3 to one of {WORKERS} workers, {PAUSES} times: requests from 100 ms on until it ends",
            f"{late}; last after {last * 1000:.0f} ms, next after {first:.2f} s",
            "0",
            late == 0,
        ),
        _unchanged("meanwhile at the other upstream", steady, during),
        _unchanged(f"there in the {RISE_SECONDS:.0f} s after the pause", steady, rising),
    ]


def _unchanged(what: str, steady: float, rates: list[float]) -> Row:
    """Whether the rate that differs most from the steady rate is within 5 % of it."""
    worst = max(rates, key=lambda rate: abs(rate - steady))
    change = worst / steady - 1
    return Row(what, f"{steady:.0f}/s before, then {worst:.0f}/s: {change:+.1%}", "within 5 %", abs(change) <= 0.05)
