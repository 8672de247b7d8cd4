"""A coordinator alone: how fast it plans a corpus, and how fast it rebuilds the done set from Postgres."""

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

POLL_SECONDS = 0.01
DONE = tuple(outcome.value for outcome in Outcome)


@dataclass(frozen=True, slots=True)
class Planned:
    """Keys a second that were put into the done set (`rebuilt`), and that were published or skipped (`planned`)."""

    rebuilt: float
    planned: float


async def planned(arena: Arena, job: Path, name: str, *, deadline_seconds: float) -> Planned:
    """Run `shardcrawl coordinate` until the source is exhausted. Raises ContenderFailed when that takes too long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crawler", "coordinate", str(job)),
        cwd=arena.folder,
        env=arena.environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    client = connect_redis(arena.redis)
    began = monotonic()
    done: list[tuple[float, int]] = []
    handled: list[tuple[float, int]] = []
    try:
        while process.returncode is None and monotonic() - began < deadline_seconds:
            state = {as_text(field): value for field, value in (await client.hgetall(RunKeys(name).state)).items()}
            for looks, fields in ((done, DONE), (handled, ("published", "skipped"))):
                count = sum(int(state.get(field, 0)) for field in fields)
                if count > (looks[-1][1] if looks else 0):
                    looks.append((monotonic(), count))
            if state.get("exhausted") == b"1":
                return Planned(_rate(done), _rate(handled))
            await asyncio.sleep(POLL_SECONDS)
        raise watch.ContenderFailed(f"the coordinator has not planned {job} within {deadline_seconds:.0f} s")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()
        await client.aclose()


def _rate(looks: Sequence[tuple[float, int]]) -> float:
    """Keys a second between the first and the last look that found more keys than the one before."""
    if len(looks) < 2:
        return 0.0
    (began, first), (ended, last) = looks[0], looks[-1]
    return (last - first) / (ended - began)
