"""Samples of a shardcrawl command while it works: keys, memory of its processes, memory of Redis."""

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

STUCK_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, `at` seconds after the start: keys done, keys queued, bytes of Redis, and MB of each process."""

    at: float
    done: int
    queued: int
    redis: int
    resident: dict[str, float]


async def sampled(
    arena: Arena,
    arguments: Sequence[str],
    name: str,
    *,
    every: float,
    until: Callable[[Sample], bool] = lambda _: False,
) -> list[Sample]:
    """Run `shardcrawl ARGUMENTS` to its end, with a sample every so many seconds, or interrupt it when `until` is true.

    Raises ContenderFailed when it ends with an error, or when no more keys are done for a minute.
    """
    began = monotonic()
    with (arena.folder / "output.txt").open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "crawler", *arguments),
            cwd=arena.folder,
            env=arena.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    ending = asyncio.create_task(process.wait())
    client = connect_redis(arena.redis)
    samples: list[Sample] = []
    progressed = began
    try:
        while not (await asyncio.wait([ending], timeout=every))[0]:
            found = await Runs(client).find(name)
            if found is not None:
                now, memory = await read_counts(client, name), await client.info("memory")
                at, resident = monotonic() - began, _resident(process.pid)
                if not samples or now.done > samples[-1].done:
                    progressed = monotonic()
                samples.append(Sample(at, now.done, now.queued, int(memory["used_memory"]), resident))
                if until(samples[-1]):
                    process.send_signal(signal.SIGINT)
                    await ending
            if monotonic() - progressed > STUCK_AFTER_SECONDS:
                raise watch.ContenderFailed(
                    f"shardcrawl {arguments[0]}: nothing was done for {STUCK_AFTER_SECONDS:.0f} s"
                )
        if process.returncode not in (0, 130):
            last = " ".join((arena.folder / "output.txt").read_text().split())[-300:]
            raise watch.ContenderFailed(f"shardcrawl {arguments[0]} ended with {process.returncode}; it said: {last}")
    finally:
        if process.returncode is None:
            watch.end(psutil.Process(process.pid))
            await ending
        await client.aclose()
    return samples


def rates(samples: Sequence[Sample], keys: int) -> list[float]:
    """Keys a second between neighbouring samples, without those before the first key or after the last one."""
    steady = [sample for sample in samples if 0 < sample.done < keys]
    return [(after.done - before.done) / (after.at - before.at) for before, after in pairwise(steady)]


def tenth(values: Sequence[float], number: int) -> float:
    """The median of the first (1), second (2), … or last (10) tenth of the values. There must be one at least."""
    size = max(1, len(values) // 10)
    begin = len(values) - size if number == 10 else min((number - 1) * size, len(values) - 1)
    return median(values[begin : begin + size])


def slope(values: Sequence[float]) -> float:
    """How much the regression line of the values rises from the first to the last, as a share of their mean."""
    if len(values) < 3:
        return 0.0
    return linear_regression(range(len(values)), values).slope * (len(values) - 1) / fmean(values)


def spread(samples: Sequence[Sample], who: str) -> tuple[float, float, float]:
    """MB of a process: the median of the second tenth of its samples, and the least and the most from there on."""
    values = [sample.resident[who] for sample in samples if who in sample.resident]
    rest = values[len(values) // 10 :]
    return tenth(values, 2), min(rest), max(rest)


def back_at(samples: Sequence[Sample], rate: float) -> float | None:
    """When the first second with at least that rate began; None when there is none."""
    for place, first in enumerate(samples):
        end = next((sample for sample in samples[place:] if sample.at >= first.at + 1.0), None)
        if end is not None and (end.done - first.done) / (end.at - first.at) >= rate:
            return first.at
    return None


def _resident(pid: int) -> dict[str, float]:
    """MB of each worker and of the coordinator."""
    found: dict[str, float] = {}
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                line = child.cmdline()
                if "crawler.local.child" in line:
                    found[line[-1]] = child.memory_info().rss / 1e6
    return found
