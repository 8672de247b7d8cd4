"""`python -m ops.bench.compare`: shardcrawl, the bare prototype and its rivals, measured in turn.

Every contender fetches the same pages from the same nginx and stores them in the same Postgres, one after another, in
rounds. Figures are medians of the rounds; README.md in this folder says how each is measured. Prints one table, writes
results.json and compare.png, and exits with 1 when a promise does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from coordinator.errors import ShardcrawlError
from ops.bench import contenders, watch
from ops.bench.arena import Arena, Upstream, machine, open_arena, serve_upstream
from ops.bench.contenders import Result
from ops.bench.drawing import draw
from ops.bench.tables import promise_table, table
from ops.bench.trials import IDLE_LOAD, PARTS, Figures, Promise, Trial, ratio, trials

HERE = Path(__file__).parent
FEWER_ROUNDS = 3
# Promised by this project: shardcrawl is at least so many times as fast as each of them, at 4 KB.
PROMISED = {
    contenders.PROTOTYPE.name: 0.75,
    contenders.AIOHTTP.name: 1.3,
    contenders.CRAWLEE.name: 5.0,
    contenders.SCRAPY.name: 15.0,
    contenders.SCRAPY_REDIS.name: 15.0,
    contenders.HTTPX.name: 25.0,
}
PROMISED_RATE = 11_000


async def measure(
    chosen: Sequence[Trial], rounds: int, scale: float, console: Console, programs: Path | None = None
) -> list[Figures]:
    """All trials in turn, in rounds; each round begins with another trial."""
    results: dict[Trial, list[Result]] = {trial: [] for trial in chosen}
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with ExitStack() as stack:
            upstreams = {kind: stack.enter_context(_serve(folder, *kind)) for kind in {(t.size, t.tls) for t in chosen}}
            async with open_arena(folder, programs, lz4=programs is not None) as arena:
                for number in range(rounds):
                    due = [t for t in chosen if t.part == "rivals" or number < min(rounds, FEWER_ROUNDS)]
                    for trial in [*due[number % len(due) :], *due[: number % len(due)]]:
                        result = await _crawl(arena, upstreams[trial.size, trial.tls], trial, scale)
                        results[trial].append(result)
                        console.print(
                            f"round {number + 1} of {rounds}: {trial.contender.name}, {trial.circumstance}: "
                            f"{result.keys / result.seconds:,.0f} keys/s",
                            highlight=False,
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [Figures.of(trial, results[trial]) for trial in chosen]


def _serve(folder: Path, size: int, tls: bool) -> Any:
    place = folder / f"upstream-{size}{'-tls' if tls else ''}"
    place.mkdir()
    return serve_upstream(place, size, tls=tls)


async def _crawl(arena: Arena, upstream: Upstream, trial: Trial, scale: float) -> Result:
    keys = max(100, int(trial.keys * scale))
    return await contenders.crawl(arena, upstream, trial.contender, keys, workers=trial.workers, http2=trial.http2)


def promises(lines: Sequence[Figures], load: float) -> list[Promise]:
    """What is promised at 4 KB. That each key is stored once and each audit is clean was checked after each crawl."""
    found = {line.contender: line for line in lines if line.part == "rivals"}
    if contenders.SHARDCRAWL.name not in found:
        return []
    ours = found[contenders.SHARDCRAWL.name]
    ratios = {name: ratio(ours, found[name]) for name in PROMISED if name in found}
    idle = load < IDLE_LOAD
    return [
        *(
            Promise(f"times as fast as {name}", f"{PROMISED[name]:g}", f"{times:.2f}", times >= PROMISED[name])
            for name, times in ratios.items()
        ),
        Promise(
            "keys/s on an idle machine of 2 cores" if idle else f"keys/s (the machine is not idle: load {load})",
            f"{PROMISED_RATE:,}",
            f"{ours.rate:,.0f}",
            ours.rate >= PROMISED_RATE if idle else None,
        ),
        Promise("every key stored once, every audit clean", "always", "always", True),
    ]


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all without any")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual keys; below 1 for a first look")
    parser.add_argument(
        "--output", type=watch.output_folder, default=HERE, help="folder of results.json and compare.png"
    )
    parser.add_argument(
        "--postgres", type=Path, metavar="DIR", help="programs of another Postgres with lz4, by which all compress"
    )
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    console = Console(width=140)
    where = machine()
    try:
        lines = asyncio.run(
            measure(
                trials(arguments.parts or PARTS),
                arguments.rounds,
                arguments.scale,
                Console(stderr=True),
                arguments.postgres,
            )
        )
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    found = promises(lines, float(str(where["load_before"])))
    results = {
        "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
        "rounds": arguments.rounds,
        "lines": [asdict(line) for line in lines],
        "promises": [asdict(promise) for promise in found],
    }
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(table(lines))
    if found:
        console.print(promise_table(found))
    draw(results, arguments.output / "compare.png")
    sys.exit(1 if any(promise.held is False for promise in found) else 0)


if __name__ == "__main__":
    main()
