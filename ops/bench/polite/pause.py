"""A pause that one worker is asked for stops all of them, and nobody at another upstream notices."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from ops.bench.first_light import Row
from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.scripted import Scripted, answer

WORKERS = 8
RATE = 300
ASKED = 3.0
HEARD = 0.1
PAUSES = 3
STEADY = 4.0
AFTER = 5.0
FINE = answer()
WAIT = answer(b"", f"Retry-After: {ASKED:.0f}", status="429 Too Many Requests")


class Pausing:
    """Answers well, but once after each `ask` with a 429, whose monotonic times are `asked`."""

    def __init__(self) -> None:
        self._wanted = False
        self.asked: list[float] = []

    def ask(self) -> None:
        """Let the next request be answered so."""
        self._wanted = True

    def __call__(self, _: str) -> bytes:
        """What follows a request for any path."""
        if not self._wanted:
            return FINE
        self._wanted = False
        self.asked.append(monotonic())
        return WAIT


async def pause(folder: Path) -> list[Row]:
    """Three times Retry-After: 3 to one of eight workers that ask two upstreams 300 times a second each."""
    pausing = Pausing()
    async with Scripted(pausing) as paused, Scripted(lambda _: FINE) as other:
        urls = [up.url(f"/{number}") for number in range(RATE * 90) for up in (paused, other)]
        limits = {up.authority: f"rate = {RATE}" for up in (paused, other)}
        async with Crawl(folder / "crawl", Plan(urls, limits, workers=WORKERS)) as crawl:
            await crawl.until(lambda: crawl.joined() == WORKERS, "all workers")
            due = monotonic() + 1.5 * STEADY
            for number in range(1, PAUSES + 1):
                await crawl.until(lambda: monotonic() >= due, "the next pause")  # noqa: B023
                pausing.ask()
                await crawl.until(lambda: len(pausing.asked) == number, "a request to be answered 429")  # noqa: B023
                due = pausing.asked[-1] + ASKED + AFTER
            await crawl.until(lambda: monotonic() >= due, "the end of the last pause")
    return _judged(pausing.asked, paused, other)


def _judged(asked: list[float], paused: Scripted, other: Scripted) -> list[Row]:
    late, first, last = 0, float("inf"), 0.0
    for at in asked:
        after = [one.at - at for one in paused.log if one.at > at]
        late += sum(HEARD < seconds < ASKED for seconds in after)
        last = max([last, *(seconds for seconds in after if seconds < ASKED)])
        first = min([first, *(seconds for seconds in after if seconds >= ASKED)])
    steady = other.between(asked[0] - STEADY, asked[0]) / STEADY
    during = [other.between(at, at + ASKED) / ASKED for at in asked]
    rising = [other.between(at + ASKED, at + ASKED + AFTER) / AFTER for at in asked]
    return [
        Row(
            f"Retry-After 3 to one of {WORKERS} workers, {PAUSES} times: requests from 100 ms on until it ends",
            f"{late}; last after {last * 1000:.0f} ms, next after {first:.2f} s",
            "0",
            late == 0,
        ),
        _unchanged("meanwhile at the other upstream", steady, during),
        _unchanged(f"there in the {AFTER:.0f} s after the pause", steady, rising),
    ]


def _unchanged(what: str, steady: float, rates: list[float]) -> Row:
    """Whether the rate that differs most from the steady one is near it."""
    worst = max(rates, key=lambda rate: abs(rate - steady))
    change = worst / steady - 1
    return Row(what, f"{steady:.0f}/s before, then {worst:.0f}/s: {change:+.1%}", "within 5 %", abs(change) <= 0.05)
