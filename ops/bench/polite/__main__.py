"""`python -m ops.bench.polite`: whether all workers together are one polite client, counted by the upstreams.

Each part is one or two whole runs of `shardcrawl run` with embedded services, against upstreams on this machine that
count by themselves: nginx with limit_req, a scripted server, a name server. It takes about five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from coordinator.errors import ShardcrawlError
from ops.bench.polite.budget import auto, budget
from ops.bench.polite.flaky import flaky
from ops.bench.polite.hostile import hostile
from ops.bench.polite.names import names
from ops.bench.polite.pause import pause
from ops.bench.whole_run import Row, report

PARTS: dict[str, Callable[[Path], Awaitable[list[Row]]]] = {
    part.__name__: part for part in (budget, auto, pause, flaky, hostile, names)
}
DEADLINE_SECONDS = 480.0


async def measure(parts: list[str]) -> list[Row]:
    """The rows of these parts. A part that cannot be measured counts as a promise that did not hold."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    rows: list[Row] = []
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for part in parts:
                try:
                    rows += await PARTS[part](folder / part)
                except ShardcrawlError as error:
                    rows.append(Row(part, str(error), "a measurement", False))
    except TimeoutError:
        rows.append(Row("the whole benchmark", "not ended", f"within {DEADLINE_SECONDS:.0f} s", False))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> None:
    """Print the table; exit 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench.polite", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; all without any")
    chosen = parser.parse_args()
    unknown = set(chosen.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sys.exit(report(uvloop.run(measure(chosen.parts or list(PARTS)))))


if __name__ == "__main__":
    main()
