"""A shardcrawl command that is looked at while it works: keys, the memory of its processes, the memory of Redis."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression, median
from time import monotonic

import psutil

from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_counts
from ops.bench import watch
from ops.bench.arena import Arena

STUCK_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look, `at` seconds after the command's start: keys done, those queued, Redis' bytes, each process's MB."""

    at: float
    done: int
    queued: int
    redis: int
    resident: dict[str, float]


async def sampled(
    ground: Arena,
    arguments: Sequence[str],
    name: str,
    *,
    every: float,
    until: Callable[[Sample], bool] = lambda _: False,
) -> list[Sample]:
    """Run `shardcrawl ARGUMENTS` to its end, or interrupt it once a sample is as `until` says.

    Raises ContenderFailed when it ends in error, or when nothing more was done for a minute.
    """
    began = monotonic()
    with (ground.folder / "said.txt").open("w") as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "crawler", *arguments),
            cwd=ground.folder,
            env=ground.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    ending = asyncio.create_task(process.wait())
    client = connect_redis(ground.redis)
    samples: list[Sample] = []
    moved = began
    try:
        while not (await asyncio.wait([ending], timeout=every))[0]:
            record = await Runs(client).find(name)
            if record is not None:
                now, memory = await read_counts(client, record), await client.info("memory")
                at, resident = monotonic() - began, _resident(process.pid)
                if not samples or now.done > samples[-1].done:
                    moved = monotonic()
                samples.append(Sample(at, now.done, now.queued, int(memory["used_memory"]), resident))
                if until(samples[-1]):
                    process.send_signal(signal.SIGINT)
                    await ending
            if monotonic() - moved > STUCK_AFTER:
                raise watch.ContenderFailed(f"shardcrawl {arguments[0]}: nothing was done for {STUCK_AFTER:.0f} s")
        if process.returncode not in (0, 130):
            last = " ".join((ground.folder / "said.txt").read_text().split())[-300:]
            raise watch.ContenderFailed(f"shardcrawl {arguments[0]} ended with {process.returncode}; it said: {last}")
    finally:
        if process.returncode is None:
            watch.end(psutil.Process(process.pid))
            await ending
        await client.aclose()
    return samples


def rates(samples: Sequence[Sample], keys: int) -> list[float]:
    """Keys a second between neighbouring samples, from the first key that was done until before the last."""
    steady = [sample for sample in samples if 0 < sample.done < keys]
    return [(after.done - before.done) / (after.at - before.at) for before, after in pairwise(steady)]


def tenth(values: Sequence[float], number: int) -> float:
    """The median of the first (1), second (2), … or last (10) tenth of the values, which are one at least."""
    size = max(1, len(values) // 10)
    begin = len(values) - size if number == 10 else min((number - 1) * size, len(values) - 1)
    return median(values[begin : begin + size])


def slope(values: Sequence[float]) -> float:
    """How much a line through the values rises from their first to their last, as a share of their mean."""
    if len(values) < 3:
        return 0.0
    return linear_regression(range(len(values)), values).slope * (len(values) - 1) / fmean(values)


def spread(samples: Sequence[Sample], who: str) -> tuple[float, float, float]:
    """A process's MB in the second tenth of its samples, and the least and most of them from there on."""
    values = [sample.resident[who] for sample in samples if who in sample.resident]
    later = values[len(values) // 10 :]
    return tenth(values, 2), min(later), max(later)


def back_at(samples: Sequence[Sample], rate: float) -> float | None:
    """When the first second began in which that rate was reached, None when there is none."""
    for place, first in enumerate(samples):
        later = next((sample for sample in samples[place:] if sample.at >= first.at + 1.0), None)
        if later is not None and (later.done - first.done) / (later.at - first.at) >= rate:
            return first.at
    return None


def _resident(pid: int) -> dict[str, float]:
    """MB of each of the command's workers and its coordinator."""
    found: dict[str, float] = {}
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                line = child.cmdline()
                if "crawler.local.child" in line:
                    found[line[-1]] = child.memory_info().rss / 1e6
    return found
