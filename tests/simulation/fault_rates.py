"""How often each kind of fault happens in a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The probability of each fault in one step.

    They are drawn for each schedule, so that some schedules have many faults of one kind.
    """

    fault: float
    die: float
    freeze: float
    drain: float
    advance: float
    vanish: float
    wipe: float

    @classmethod
    def draw(cls, random: Random) -> FaultRates:
        def often(rate: float) -> float:
            return rate * random.choice((0, 1, 1, 4))

        rare = random.random()
        return cls(
            fault=often(0.04),
            die=often(0.006),
            freeze=often(0.008),
            drain=often(0.004),
            advance=0.01 * random.choice((1, 2, 6)),
            vanish=0.03 if rare < 0.15 else 0.0,
            wipe=0.006 if rare > 0.9 else 0.0,
        )
