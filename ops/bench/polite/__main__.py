"""`python -m ops.bench.polite`: whether the whole fleet is one polite client, as its upstreams count, in one table.

Each part is a whole `shardcrawl run` with embedded services, or two, against upstreams on this machine that keep their
own counts: nginx with limit_req, a scripted server, a name server. All of it takes about five minutes.
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
from ops.bench.first_light import Row, report
from ops.bench.polite.budget import auto, budget
from ops.bench.polite.flaky import flaky
from ops.bench.polite.hostile import hostile
from ops.bench.polite.names import names
from ops.bench.polite.pause import pause

PARTS: dict[str, Callable[[Path], Awaitable[list[Row]]]] = {
    part.__name__: part for part in (budget, auto, pause, flaky, hostile, names)
}
LONGEST = 480.0


async def measure(parts: list[str]) -> list[Row]:
    """The rows of these parts; a part that cannot be measured is a promise that does not hold."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    rows: list[Row] = []
    try:
        async with asyncio.timeout(LONGEST):
            for part in parts:
                try:
                    rows += await PARTS[part](folder / part)
                except ShardcrawlError as error:
                    rows.append(Row(part, str(error), "a measurement", False))
    except TimeoutError:
        rows.append(Row("the whole benchmark", "not over", f"within {LONGEST:.0f} s", False))
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
