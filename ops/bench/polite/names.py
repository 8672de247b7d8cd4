"""Host names: looked up once, and connected to where they were when they were judged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ops.bench.first_light import Row
from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.nameserver import NameServer
from ops.bench.polite.scripted import Scripted, answer

HOSTS = 50
EACH = 40
METADATA = "169.254.169.254"
FINE = answer()
REDIRECT = answer(b"", "Location: http://metadata.test/", status="302 Found")


def known(name: str, time: int) -> str:
    """metadata.test never was public, rebound.test is so no more when it is asked for again."""
    rebound = name == "rebound.test" and time > 1
    return METADATA if rebound or name == "metadata.test" else "127.0.0.1"


async def names(folder: Path) -> list[Row]:
    """One worker, 40 keys at each of 50 hosts and of one that is rebound after its first lookup."""
    if not NameServer.possible():
        return [Row("lookups at a local name server", "not measured: it needs root and unshare", "one a host", False)]
    async with NameServer(known) as server, Scripted(lambda path: REDIRECT if "away" in path else FINE) as upstream:
        port = upstream.authority.rpartition(":")[2]
        hosts = [f"host{number}.test" for number in range(HOSTS)]
        urls = [f"http://{host}:{port}/{number}" for number in range(EACH) for host in [*hosts, "rebound.test"]]
        away = [f"http://{hosts[0]}:{port}/away", "http://metadata.test/"]
        plan = Plan([*urls, *away], {"*": "rate = 20"}, workers=1)
        async with Crawl(folder / "crawl", plan, NameServer.command(folder)) as crawl:
            await crawl.complete()
            found = await crawl.ends()
        asked = server.asked
    ends = Counter(found[url].outcome for url in urls if "rebound" in url)
    unique = [*hosts, "rebound.test", "metadata.test"]
    lookups = sum(asked[name] for name in unique)
    return [
        Row(
            f"lookups for {len(found):,} keys at {len(unique)} hosts, by their name server's count",
            f"{lookups}, {max(asked[name] for name in unique)} for one host at most",
            f"{len(unique)}",
            lookups == len(unique),
        ),
        Row(
            f"rebinding name: 127.0.0.1 when first looked up, then {METADATA}",
            ", ".join(f"{count} {outcome}" for outcome, count in ends.items()),
            f"all {EACH} keys stored where it was judged",
            ends == {"stored": EACH},
        ),
        Row(
            f"a name at {METADATA}, as key and by a redirect",
            "; ".join(sorted({f"{found[url].outcome}, {found[url].reason[:60]}" for url in away})),
            "refused, address",
            all(found[url].outcome == "refused" and "address" in found[url].reason for url in away),
        ),
    ]
