"""What robots.txt allows (RFC 9309): asked once an origin for the whole fleet, then answered from memory."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from protego import Protego

from coordinator.errors import FetchError
from coordinator.patience import patiently
from coordinator.robots import RobotsCache
from crawler.fetch.asked import pause_asked
from crawler.fetch.engine import Answer
from crawler.fetch.redirect import REDIRECTS, Astray, target
from crawler.fetch.robots_rules import Finding, failed, place, product_token, rules_for

Fetch = Callable[[str], Awaitable[Answer]]

# RFC 9309 (2.3.1.2) wants at least five followed; what lies behind more counts as not there.
HOPS = 5
ASKING = 30.0
LEASE = ASKING + 5.0
SOONEST, LATEST = 0.05, 0.5  # seconds between two looks at what another worker found
# Memory: a megabyte of rules takes up to thirty when parsed, an origin with few rules two kilobytes.
ORIGINS = 4096
CHARACTERS = 1024 * 1024
# Half a megabyte takes 200 ms to parse: beside the loop, not in it.
LARGE = 32 * 1024
LONGEST_DELAY = 60.0
# Kinds of FetchError that no waiting heals: the page itself would meet the same.
LASTING = ("url", "address")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a URL may be fetched, and the `reason` when not.

    `crawl_delay` is the seconds that its origin wants between two requests, at most a minute. `again` is there when the
    origin did not answer: so many seconds from now it is asked again, and may then allow it.
    """

    allowed: bool
    reason: str | None = None
    crawl_delay: float | None = None
    again: float | None = None


ALLOWED = Verdict(True)


class Origin:
    """The rules of one origin as they hold until `expires`, on a monotonic clock."""

    __slots__ = ("_fault", "_name", "_no", "_rules", "_yes", "expires", "size")

    def __init__(self, name: str, finding: Finding, expires: float) -> None:
        self._name = name
        self._fault = finding.fault if finding.rules is None else None
        self._rules = Protego.parse(f"User-agent: *\n{finding.rules}") if finding.rules else None
        self.expires = expires
        self.size = len(finding.rules or "")
        delay = min((self._rules and self._rules.crawl_delay("*")) or 0.0, LONGEST_DELAY) or None
        self._yes = Verdict(True, None, delay)
        self._no = Verdict(False, f"robots.txt of {name} disallows it", delay)

    @property
    def has_no_rules(self) -> bool:
        """Whether every path is allowed."""
        return self._rules is None and self._fault is None

    def verdict(self, path: str, now: float) -> Verdict:
        """On one path with its query."""
        if self._fault is not None:
            reason = f"robots.txt of {self._name} cannot be read ({self._fault}), so nothing may be fetched there"
            lasting = self._fault.startswith(LASTING)
            return Verdict(False, reason, again=None if lasting else max(0.0, self.expires - now))
        # The host keeps a path that begins with // from being read as one.
        if self._rules is None or self._rules.can_fetch(f"http://host{path}", "*"):
            return self._yes
        return self._no


class Robots:
    """Verdicts for one worker. Ask `known` first; only for an origin that is new here it is None, then `verdict` waits.

    `fetch` sends one GET without following redirects, raises FetchError, and is cancelled after half a minute; its
    engine should take bodies of 512 KiB. `user_agent` is what it sends.
    """

    def __init__(
        self, fetch: Fetch, cache: RobotsCache, user_agent: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._cache = cache
        self._token = product_token(user_agent)
        self._clock = clock
        self._origins: OrderedDict[str, Origin] = OrderedDict()  # the one asked for last is last
        self._size = 0
        self._learning: dict[str, asyncio.Task[Origin]] = {}
        self._open: dict[str, Origin] = {}  # origins without rules, by how URLs of theirs begin

    def known(self, url: str) -> Verdict | None:
        """The verdict, if this worker knows the origin's rules."""
        now = self._clock()
        # What stands before the first slash behind "https://" decides about the origin, whatever follows it.
        begins = url[: url.find("/", len("https://"))]
        open_origin = self._open.get(begins)
        if open_origin is not None and now < open_origin.expires:
            return ALLOWED
        name, path = place(url)
        if not name:
            return ALLOWED  # no engine sends it, and the engine says why
        origin = self._origins.get(name)
        if origin is None or origin.expires <= now:
            return None
        self._origins.move_to_end(name)
        if origin.has_no_rules:
            if len(self._open) >= ORIGINS:
                self._open.clear()
            self._open[begins] = origin
        return origin.verdict(path, now)

    async def verdict(self, url: str) -> Verdict:
        """The verdict; asks the fleet, and if nobody there knows it, the origin. Waits while Redis is away."""
        known = self.known(url)
        if known is not None:
            return known
        name, path = place(url)
        learning = self._learning.get(name)
        if learning is None:
            learning = self._learning[name] = asyncio.create_task(self._learn(name), name=f"robots.txt of {name}")
            learning.add_done_callback(lambda _: self._learning.pop(name, None))
        # Shielded: one caller's cancellation must not take the answer from the others.
        origin = await asyncio.shield(learning)
        return origin.verdict(path, self._clock())

    async def close(self) -> None:
        """Stop asking."""
        learning = list(self._learning.values())
        for task in learning:
            task.cancel()
        await asyncio.gather(*learning, return_exceptions=True)

    async def _learn(self, name: str) -> Origin:
        wait = SOONEST
        while (told := await patiently(partial(self._cache.ask, name, LEASE), "robots.txt")).word == "wait":
            await asyncio.sleep(min(wait, told.seconds))
            wait = min(wait * 2, LATEST)
        before = Finding.unpack(told.found) if told.found else None
        if told.word == "known" and before is not None:
            finding, holds = before, told.seconds
        else:
            finding, holds = await self._ask(name, before)
            await patiently(partial(self._cache.tell, name, finding.pack(), holds), "robots.txt")
        expires = self._clock() + holds
        if finding.rules and len(finding.rules) > LARGE:
            return self._keep(name, await asyncio.to_thread(Origin, name, finding, expires))
        return self._keep(name, Origin(name, finding, expires))

    def _keep(self, name: str, origin: Origin) -> Origin:
        before = self._origins.pop(name, None)
        self._origins[name] = origin
        self._size += origin.size - (before.size if before else 0)
        while len(self._origins) > ORIGINS or (self._size > CHARACTERS and len(self._origins) > 1):
            self._size -= self._origins.popitem(last=False)[1].size
        return origin

    async def _ask(self, name: str, before: Finding | None) -> tuple[Finding, float]:
        """What the origin says now, and for how many seconds that holds."""
        asked: float | None = None
        try:
            async with asyncio.timeout(ASKING):
                answer = await self._follow(f"{name}/robots.txt")
        except FetchError as error:
            finding = failed(str(error), before)
        except TimeoutError:
            finding = failed(f"no answer in {ASKING:.0f} s", before)
        else:
            if answer.status == 429 or answer.status >= 500:
                finding = failed(f"status {answer.status}", before)
                asked = pause_asked(answer.status, answer.headers, time.time())
            elif 200 <= answer.status < 300:
                finding = Finding(await self._rules(answer.body))
            else:
                finding = Finding("")
        return finding, finding.holds(asked)

    async def _follow(self, url: str) -> Answer:
        """The first answer that leads nowhere else; the last redirect when there are too many."""
        answer = await self._fetch(url)
        for _ in range(HOPS):
            if answer.status not in REDIRECTS:
                break
            try:
                url = target(url, answer.headers.get("location"))
            except Astray:
                break
            answer = await self._fetch(url)
        return answer

    async def _rules(self, body: bytes) -> str:
        if len(body) > LARGE:
            return await asyncio.to_thread(rules_for, self._token, body)
        return rules_for(self._token, body)
