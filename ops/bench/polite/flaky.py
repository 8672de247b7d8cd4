"""An upstream that fails at random: everything is stored in the end, with few requests more than keys."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from ops.bench.first_light import Row
from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.scripted import Act, Scripted, answer

KEYS = 10_000
# With 5 attempts 3 keys of 10,000 would meet five faults in a row, whoever asks; with 12 it is one in 25,000 runs.
ATTEMPTS = 12
FINE = answer()
BUSY = answer(b"", status="503 Service Unavailable")


async def flaky(folder: Path) -> list[Row]:
    """10 % of requests are answered 503, 10 % are reset."""
    chance = random.Random(4)

    def act(_: str) -> Act:
        draw = chance.random()
        return BUSY if draw < 0.1 else None if draw < 0.2 else FINE

    async with Scripted(act) as upstream:
        plan = Plan(
            (upstream.url(f"/{number}") for number in range(KEYS)),
            {upstream.authority: "rate = 1000"},
            retry=f"attempts = {ATTEMPTS}",
        )
        async with Crawl(folder / "crawl", plan) as crawl:
            await crawl.complete()
            found = Counter(end.outcome for end in (await crawl.ends()).values())
        asked = len(upstream.log)
    return [
        Row(
            f"10 % 503 and 10 % resets at random, {KEYS:,} keys, {ATTEMPTS} attempts",
            ", ".join(f"{count:,} {outcome}" for outcome, count in found.items()),
            "every key stored",
            found == {"stored": KEYS},
        ),
        Row("the same: requests for each key", f"{asked / KEYS:.3f}", "1.35 or fewer", asked <= 1.35 * KEYS),
    ]
