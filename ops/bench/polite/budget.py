"""The upstream's budget: nginx' own limiter says whether it was kept, and nginx' own log how much of it was used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time

from ops.bench.first_light import Row
from ops.bench.polite.crawl import Crawl, Plan
from ops.nginx import Nginx

SECONDS = 60


async def budget(folder: Path) -> list[Row]:
    """A minute at 49/s under a limiter of 50/s, then 20 seconds at 1,000/s where nothing limits."""
    with _nginx(folder / "limited", limit=(50, 5)) as nginx:
        keys = (f"{nginx.url}/limited/{number}" for number in range(49 * (SECONDS + 2)))
        async with Crawl(folder / "slow", Plan(keys, {_host(nginx): "rate = 49"})) as crawl:
            await crawl.complete()
        answers = nginx.answers()
    refused = sum(status == 429 for _, status in answers)
    used = within(answers, 0, SECONDS) / SECONDS / 49
    with _nginx(folder / "open") as nginx:
        keys = (f"{nginx.url}/item/{number}" for number in range(20_000))
        async with Crawl(folder / "fast", Plan(keys, {_host(nginx): "rate = 1000"})) as crawl:
            await crawl.complete()
        fast = nginx.answers()
    worst = busiest([at for at, _ in fast])
    used_fast = within(fast, 1, 18) / 17 / 1000
    return [
        Row(
            "4 workers, rate 49, nginx allows 50/s, burst 5: 429s", f"{refused} of {len(answers):,}", "0", refused == 0
        ),
        Row(f"the same: share of 49/s used in {SECONDS} s", f"{used:.2%}", "98 % or more", used >= 0.98),
        Row(
            "4 workers, rate 1000: worst sliding second",
            f"{worst:,} requests ({used_fast:.1%} of the rate used)",
            "1,050 or fewer",
            worst <= 1050,
        ),
    ]


async def auto(folder: Path) -> list[Row]:
    """`rate = "auto"` for a minute under a limiter of 200/s."""
    with _nginx(folder / "limited", limit=(200, 20)) as nginx:
        keys = (f"{nginx.url}/limited/{number}" for number in range(200 * (SECONDS + 20)))
        async with Crawl(folder / "crawl", Plan(keys, {_host(nginx): 'rate = "auto"'})) as crawl:
            await crawl.until(lambda: bool(nginx.answers()), "the first request")
            end = time() + SECONDS + 1
            await crawl.until(lambda: time() > end, "the end of the minute")
        answers = nginx.answers()
    refused = sum(status == 429 for _, status in answers) / len(answers)
    used = within([one for one in answers if one[1] == 200], 30, SECONDS) / (SECONDS - 30) / 200
    return [
        Row(
            'rate = "auto", nginx allows 200/s: share of it used from 30 to 60 s',
            f"{used:.1%}",
            "90 % or more",
            used >= 0.9,
        ),
        Row(
            "the same: share of all requests answered 429",
            f"{refused:.2%} of {len(answers):,}",
            "below 1 %",
            refused < 0.01,
        ),
    ]


def within(answers: Sequence[tuple[float, int]], start: float, end: float) -> int:
    """How many came between these seconds after the first one."""
    first = min(at for at, _ in answers)
    return sum(1 for at, _ in answers if start <= at - first < end)


def busiest(times: Sequence[float]) -> int:
    """The most requests in any second."""
    window: deque[float] = deque()
    most = 0
    for at in sorted(times):
        window.append(at)
        while window[0] <= at - 1.0:
            window.popleft()
        most = max(most, len(window))
    return most


@contextmanager
def _nginx(folder: Path, limit: tuple[int, int] | None = None) -> Iterator[Nginx]:
    folder.mkdir(parents=True)
    with Nginx(folder, size=1000, log=True, limit=limit) as nginx:
        yield nginx


def _host(nginx: Nginx) -> str:
    return nginx.url.removeprefix("http://")
