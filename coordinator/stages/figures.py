"""What a worker's stages do now: what its heartbeat sends to Redis, and what is read there of all living workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgpack
from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.redis.connection import MAX_NUMBER, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.stages.constraint import Constraint, Held

# A worker sends what held it up the most, and no more of it.
MAX_HELD = 5
MAX_LIST = 100
MAX_NAME_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage: `size` can work at the same time, `busy` of them did on average over the last seconds; what waits."""

    name: str
    busy: float
    size: int
    waiting: int = 0

    @property
    def utilisation(self) -> float:
        """The share of the stage that is busy, from 0 to 1."""
        return min(1.0, self.busy / self.size) if self.size else 0.0

    @property
    def busy_words(self) -> str:
        """How much of it is busy, as "2 of 2 busy"."""
        busy = min(self.size, round(self.busy))
        return f"{busy or 'less than 1'} of {self.size:,} busy"


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """What one worker does, or all together: keys a second lately, its stages in order, and what held it up."""

    rate: float = 0.0
    stages: tuple[StageFigures, ...] = ()
    held: tuple[Held, ...] = ()

    def encode(self) -> bytes:
        """The figures as a heartbeat sends them."""
        stages = [(one.name, round(one.busy, 3), one.size, one.waiting) for one in self.stages]
        most = sorted(self.held, key=lambda one: -one.weight)[:MAX_HELD]
        held = [(one.constraint.value, one.name[:MAX_NAME_CHARACTERS], round(one.weight, 3)) for one in most]
        return bytes(msgpack.packb((round(self.rate, 3), stages, held)))

    @classmethod
    def decode(cls, packed: bytes) -> WorkerFigures:
        """What `encode` has made; nothing of what is not ours. What a newer version adds at the end is passed over."""
        try:
            parts: Any = msgpack.unpackb(packed, max_array_len=MAX_LIST, max_str_len=4 * MAX_NAME_CHARACTERS)
            rate, stages, held = parts[:3]
            figures = cls(
                _bounded(rate),
                tuple(
                    StageFigures(_text(name), _bounded(busy), int(_bounded(size)), int(_bounded(waiting)))
                    for name, busy, size, waiting in stages
                ),
                tuple(Held(Constraint(constraint), _text(name), _bounded(weight)) for constraint, name, weight in held),
            )
        except (msgpack.UnpackException, ValueError, TypeError):
            return cls()
        return figures


NO_FIGURES = WorkerFigures()


async def read_figures(client: Redis, keys: RunKeys, workers: Sequence[str]) -> WorkerFigures:
    """The figures of these workers together; nothing where something else is there. Raises RedisUnavailable."""
    if not workers:
        return NO_FIGURES
    try:
        with translate_redis_errors():
            found = await client.mget([keys.figures(worker) for worker in workers])
    except RedisDamaged:
        return NO_FIGURES
    return together(WorkerFigures.decode(cast("bytes", packed)) for packed in found if packed is not None)


def together(workers: Iterable[WorkerFigures]) -> WorkerFigures:
    """The sum of several workers' figures, stage by stage."""
    rate = 0.0
    stages: dict[str, StageFigures] = {}
    held: dict[tuple[Constraint, str], float] = {}
    for one in workers:
        rate += one.rate
        for stage in one.stages:
            sum_so_far = stages.get(stage.name, StageFigures(stage.name, 0.0, 0))
            stages[stage.name] = replace(
                sum_so_far,
                busy=sum_so_far.busy + stage.busy,
                size=sum_so_far.size + stage.size,
                waiting=sum_so_far.waiting + stage.waiting,
            )
        for constraint, name, weight in one.held:
            held[constraint, name] = held.get((constraint, name), 0.0) + weight
    return WorkerFigures(rate, tuple(stages.values()), tuple(Held(*what, weight) for what, weight in held.items()))


def _bounded(number: Any) -> float:
    if isinstance(number, int | float) and 0 <= number < MAX_NUMBER:
        return float(number)
    raise ValueError(number)


def _text(text: Any) -> str:
    if isinstance(text, str) and text.isprintable():  # a terminal would obey other characters
        return text
    raise TypeError(text)
