"""An upstream that fails at random: every key is stored, with few more requests than keys."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.scripted import Scripted, ScriptedResponse, response
from ops.bench.whole_run import Row

KEYS = 10_000
# With 5 attempts, 3 keys of 10,000 would fail five times in a row, with any client. With 12 it is one key in 25,000
# runs.
ATTEMPTS = 12
FINE = response()
BUSY = response(b"", status="503 Service Unavailable")


async def flaky(folder: Path) -> list[Row]:
    """10 % of all responses are 503, and 10 % of all requests are reset."""
    chance = random.Random(4)

    def script(_: str) -> ScriptedResponse:
        draw = chance.random()
        return BUSY if draw < 0.1 else None if draw < 0.2 else FINE

    async with Scripted(script) as upstream:
        plan = Plan(
            (upstream.url(f"/{number}") for number in range(KEYS)),
            {upstream.authority: "rate = 1000"},
            retry=f"attempts = {ATTEMPTS}",
        )
        async with Crawl(folder / "crawl", plan) as crawl:
            await crawl.complete()
            found = Counter(end.outcome for end in (await crawl.ends()).values())
        requests = len(upstream.log)
    return [
        Row(
            f"10 % 503 and 10 % resets at random, {KEYS:,} keys, {ATTEMPTS} attempts",
            ", ".join(f"{count:,} {outcome}" for outcome, count in found.items()),
            "every key stored",
            found == {"stored": KEYS},
        ),
        Row("the same: requests for each key", f"{requests / KEYS:.3f}", "1.35 or fewer", requests <= 1.35 * KEYS),
    ]
