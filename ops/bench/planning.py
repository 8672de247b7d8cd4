"""A coordinator by itself: how fast it plans a corpus, and how fast it reads the done set back from Postgres."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from coordinator.model import Outcome
from coordinator.redis.connection import as_text, connect_redis
from coordinator.redis.keys import RunKeys
from ops.bench import watch
from ops.bench.arena import Arena

LOOK_EVERY = 0.01
DONE = tuple(outcome.value for outcome in Outcome)


@dataclass(frozen=True, slots=True)
class Planned:
    """Keys a second that were remembered from Postgres, and planned (published or skipped), once each had begun."""

    remembered: float
    planned: float


async def planned(ground: Arena, job: Path, name: str, *, most_seconds: float) -> Planned:
    """Run `shardcrawl coordinate` until the source is exhausted. Raises ContenderFailed when that takes too long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crawler", "coordinate", str(job)),
        cwd=ground.folder,
        env=ground.environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    client = connect_redis(ground.redis)
    began = monotonic()
    done: list[tuple[float, int]] = []
    gone: list[tuple[float, int]] = []
    try:
        while process.returncode is None and monotonic() - began < most_seconds:
            state = {as_text(field): value for field, value in (await client.hgetall(RunKeys(name).state)).items()}
            for seen, fields in ((done, DONE), (gone, ("published", "skipped"))):
                count = sum(int(state.get(field, 0)) for field in fields)
                if count > (seen[-1][1] if seen else 0):
                    seen.append((monotonic(), count))
            if state.get("exhausted") == b"1":
                return Planned(_rate(done), _rate(gone))
            await asyncio.sleep(LOOK_EVERY)
        raise watch.ContenderFailed(f"the coordinator has not planned {job} within {most_seconds:.0f} s")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()
        await client.aclose()


def _rate(seen: Sequence[tuple[float, int]]) -> float:
    """What came a second between the first and the last look that saw something new."""
    if len(seen) < 2:
        return 0.0
    (began, first), (ended, last) = seen[0], seen[-1]
    return (last - first) / (ended - began)
