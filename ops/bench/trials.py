"""What `compare` measures: contenders in several circumstances, and the medians of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from ops.bench import contenders
from ops.bench.contenders import Contender, Result

IDLE_LOAD = 1.5
PARTS = ("rivals", "bodies", "transports", "workers")
SMALL, MIDDLE, LARGE = 300, 4_096, 200_000
# So many times the keys of 4 KB keep a contender busy for as long.
WEIGHT = {SMALL: 1.25, MIDDLE: 1.0, LARGE: 0.04}


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the table: a contender in one set of circumstances."""

    part: str
    circumstance: str
    contender: Contender
    size: int = MIDDLE
    tls: bool = False
    http2: bool = False
    workers: int = 2

    @property
    def keys(self) -> int:
        """The keys that it gets."""
        return max(200, int(self.contender.keys * WEIGHT[self.size]))


@dataclass(frozen=True, slots=True)
class Figures:
    """The medians of a trial's rounds. CPU seconds are for 1,000 keys, memory is in MB, `rates` are keys/s by round."""

    part: str
    circumstance: str
    contender: str
    keys: int
    rate: float
    rates: Sequence[float]
    command_rate: float
    cpu: float
    servers_cpu: float
    memory: float

    @classmethod
    def of(cls, trial: Trial, results: Sequence[Result]) -> Figures:
        """The medians of these rounds."""
        rates = [result.keys / result.seconds for result in results]
        return cls(
            trial.part,
            trial.circumstance,
            trial.contender.name,
            results[0].keys,
            median(rates),
            rates,
            median(result.keys / result.command_seconds for result in results),
            median(1000 * result.cpu / result.keys for result in results),
            median(1000 * result.servers_cpu / result.keys for result in results),
            median(result.memory for result in results),
        )


def ratio(one: Figures, other: Figures) -> float:
    """How many times as fast `one` is: the median of the rounds' ratios, because the machine's load changes."""
    return median(mine / its for mine, its in zip(one.rates, other.rates, strict=False))


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, and what was measured. `held` is None where this machine cannot measure it."""

    what: str
    promised: str
    measured: str
    held: bool | None


def trials(parts: Iterable[str]) -> list[Trial]:
    """All trials of these parts. 4 KB over HTTP/1.1 with 2 workers is in the part `rivals`."""
    fast = (contenders.SHARDCRAWL, contenders.PROTOTYPE, contenders.AIOHTTP)
    every = [Trial("rivals", "4 KB, HTTP/1.1, ours with 2 workers", contender) for contender in contenders.ALL]
    for size, name in ((SMALL, "0.3 KB"), (LARGE, "200 KB")):
        every += [Trial("bodies", name, contender, size=size) for contender in fast]
    every += [Trial("transports", "HTTP/1.1, TLS", contender, tls=True) for contender in fast]
    # aiohttp does not speak HTTP/2.
    every += [Trial("transports", "HTTP/2, TLS", contender, tls=True, http2=True) for contender in fast[:2]]
    every += [
        Trial("workers", "1 worker" if workers == 1 else f"{workers} workers", contenders.SHARDCRAWL, workers=workers)
        for workers in (1, 4, 8)
    ]
    return [trial for trial in every if trial.part in parts]
