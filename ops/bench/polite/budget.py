"""The upstream's budget: the limiter of nginx shows whether it was kept, and its log how much of it was used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time

from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.whole_run import Row
from ops.nginx import Nginx

RUN_SECONDS = 60


async def budget(folder: Path) -> list[Row]:
    """A minute at 49/s with a limiter of 50/s, then 20 seconds at 1,000/s without a limiter."""
    with _nginx(folder / "limited", limit=(50, 5)) as nginx:
        keys = (f"{nginx.url}/limited/{number}" for number in range(49 * (RUN_SECONDS + 2)))
        async with Crawl(folder / "slow", Plan(keys, {_host(nginx): "rate = 49"})) as crawl:
            await crawl.complete()
        responses = nginx.responses()
    refused = sum(status == 429 for _, status in responses)
    used = within(responses, 0, RUN_SECONDS) / RUN_SECONDS / 49
    with _nginx(folder / "open") as nginx:
        keys = (f"{nginx.url}/item/{number}" for number in range(20_000))
        async with Crawl(folder / "fast", Plan(keys, {_host(nginx): "rate = 1000"})) as crawl:
            await crawl.complete()
        fast = nginx.responses()
    worst = busiest([at for at, _ in fast])
    used_fast = within(fast, 1, 18) / 17 / 1000
    return [
        Row(
            "4 workers, rate 49, nginx allows 50/s, burst 5: 429s",
            f"{refused} of {len(responses):,}",
            "0",
            refused == 0,
        ),
        Row(f"the same: share of 49/s used in {RUN_SECONDS} s", f"{used:.2%}", "98 % or more", used >= 0.98),
        Row(
            "4 workers, rate 1000: worst sliding second",
            f"{worst:,} requests ({used_fast:.1%} of the rate used)",
            "1,050 or fewer",
            worst <= 1050,
        ),
    ]


async def auto(folder: Path) -> list[Row]:
    """`rate = "auto"` for a minute with a limiter of 200/s."""
    with _nginx(folder / "limited", limit=(200, 20)) as nginx:
        keys = (f"{nginx.url}/limited/{number}" for number in range(200 * (RUN_SECONDS + 20)))
        async with Crawl(folder / "crawl", Plan(keys, {_host(nginx): 'rate = "auto"'})) as crawl:
            await crawl.until(lambda: bool(nginx.responses()), "the first request")
            end = time() + RUN_SECONDS + 1
            await crawl.until(lambda: time() > end, "the end of the minute")
        responses = nginx.responses()
    refused = sum(status == 429 for _, status in responses) / len(responses)
    used = within([one for one in responses if one[1] == 200], 30, RUN_SECONDS) / (RUN_SECONDS - 30) / 200
    return [
        Row(
            'rate = "auto", nginx allows 200/s: share of it used from 30 to 60 s',
            f"{used:.1%}",
            "90 % or more",
            used >= 0.9,
        ),
        Row(
            "the same: share of all requests with 429",
            f"{refused:.2%} of {len(responses):,}",
            "below 1 %",
            refused < 0.01,
        ),
    ]


def within(responses: Sequence[tuple[float, int]], start: float, end: float) -> int:
    """How many responses came between these seconds, counted from the first one."""
    first = min(at for at, _ in responses)
    return sum(1 for at, _ in responses if start <= at - first < end)


def busiest(times: Sequence[float]) -> int:
    """The most requests in any interval of one second."""
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
