"""Host names are looked up once, and the connection goes to the address that was checked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ops.bench.polite.crawl import Crawl, Plan
from ops.bench.polite.nameserver import NameServer
from ops.bench.polite.scripted import Scripted, response
from ops.bench.whole_run import Row

HOSTS = 50
KEYS_OF_A_HOST = 40
METADATA = "169.254.169.254"
FINE = response()
REDIRECT = response(b"", "Location: http://metadata.test/", status="302 Found")


def address_of(name: str, time: int) -> str:
    """metadata.test is never public; rebound.test is not public from the second lookup on."""
    rebound = name == "rebound.test" and time > 1
    return METADATA if rebound or name == "metadata.test" else "127.0.0.1"


async def names(folder: Path) -> list[Row]:
    """One worker, 40 keys at each of 50 hosts, and at a host whose address changes after its first lookup."""
    if not NameServer.possible():
        return [Row("lookups at a local name server", "not measured: it needs root and unshare", "one a host", False)]
    async with (
        NameServer(address_of) as server,
        Scripted(lambda path: REDIRECT if "away" in path else FINE) as upstream,
    ):
        port = upstream.authority.rpartition(":")[2]
        hosts = [f"host{number}.test" for number in range(HOSTS)]
        urls = [
            f"http://{host}:{port}/{number}" for number in range(KEYS_OF_A_HOST) for host in [*hosts, "rebound.test"]
        ]
        away = [f"http://{hosts[0]}:{port}/away", "http://metadata.test/"]
        plan = Plan([*urls, *away], {"*": "rate = 20"}, workers=1)
        async with Crawl(folder / "crawl", plan, NameServer.command(folder)) as crawl:
            await crawl.complete()
            found = await crawl.ends()
        queries = server.queries
    ends = Counter(found[url].outcome for url in urls if "rebound" in url)
    unique = [*hosts, "rebound.test", "metadata.test"]
    lookups = sum(queries[name] for name in unique)
    return [
        Row(
            f"lookups for {len(found):,} keys at {len(unique)} hosts, counted by the name server",
            f"{lookups}, {max(queries[name] for name in unique)} for one host at most",
            f"{len(unique)}",
            lookups == len(unique),
        ),
        Row(
            f"rebinding name: 127.0.0.1 when first looked up, then {METADATA}",
            ", ".join(f"{count} {outcome}" for outcome, count in ends.items()),
            f"all {KEYS_OF_A_HOST} keys stored from the checked address",
            ends == {"stored": KEYS_OF_A_HOST},
        ),
        Row(
            f"a name at {METADATA}, as key and by a redirect",
            "; ".join(sorted({f"{found[url].outcome}, {found[url].reason[:60]}" for url in away})),
            "refused, address",
            all(found[url].outcome == "refused" and "address" in found[url].reason for url in away),
        ),
    ]
