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
from coordinator.limits.robots_cache import RobotsCache
from coordinator.redis.retrying import retry_unavailable
from crawler.fetch.ratelimit_headers import requested_pause
from crawler.fetch.redirect import REDIRECTS, InvalidRedirect, target
from crawler.fetch.robots.rules import RobotsRecord, failed, place, product_token, rules_for
from crawler.model import HttpResponse

Fetch = Callable[[str], Awaitable[HttpResponse]]

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
class Permission:
    """Whether a URL may be fetched, and the `reason` when not.

    `crawl_delay` is the seconds that its origin wants between two requests, at most a minute. `again` is there when the
    origin did not answer: so many seconds from now it is asked again, and may then allow it.
    """

    allowed: bool
    reason: str | None = None
    crawl_delay: float | None = None
    again: float | None = None


ALLOWED = Permission(True)


class Origin:
    """The rules of one origin as they hold until `expires`, on a monotonic clock."""

    __slots__ = ("_fault", "_name", "_no", "_rules", "_yes", "expires", "size")

    def __init__(self, name: str, record: RobotsRecord, expires: float) -> None:
        self._name = name
        self._fault = record.fault if record.rules is None else None
        self._rules = Protego.parse(f"User-agent: *\n{record.rules}") if record.rules else None
        self.expires = expires
        self.size = len(record.rules or "")
        delay = min((self._rules and self._rules.crawl_delay("*")) or 0.0, LONGEST_DELAY) or None
        self._yes = Permission(True, None, delay)
        self._no = Permission(False, f"robots.txt of {name} disallows it", delay)

    @property
    def has_no_rules(self) -> bool:
        """Whether every path is allowed."""
        return self._rules is None and self._fault is None

    def permission(self, path: str, now: float) -> Permission:
        """On one path with its query."""
        if self._fault is not None:
            reason = f"robots.txt of {self._name} cannot be read ({self._fault}), so nothing may be fetched there"
            lasting = self._fault.startswith(LASTING)
            return Permission(False, reason, again=None if lasting else max(0.0, self.expires - now))
        # The host keeps a path that begins with // from being read as one.
        if self._rules is None or self._rules.can_fetch(f"http://host{path}", "*"):
            return self._yes
        return self._no


class Robots:
    """Permissions for one worker. Ask `known` first: it is None for a new origin, then `permission` waits.

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

    def known(self, url: str) -> Permission | None:
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
        return origin.permission(path, now)

    async def permission(self, url: str) -> Permission:
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
        return origin.permission(path, self._clock())

    async def close(self) -> None:
        """Stop asking."""
        learning = list(self._learning.values())
        for task in learning:
            task.cancel()
        await asyncio.gather(*learning, return_exceptions=True)

    async def _learn(self, name: str) -> Origin:
        wait = SOONEST
        while (cached := await retry_unavailable(partial(self._cache.ask, name, LEASE), "robots.txt")).state == "wait":
            await asyncio.sleep(min(wait, cached.seconds))
            wait = min(wait * 2, LATEST)
        before = RobotsRecord.unpack(cached.found) if cached.found else None
        if cached.state == "known" and before is not None:
            record, holds = before, cached.seconds
        else:
            record, holds = await self._ask(name, before)
            await retry_unavailable(partial(self._cache.store, name, record.pack(), holds), "robots.txt")
        expires = self._clock() + holds
        if record.rules and len(record.rules) > LARGE:
            return self._keep(name, await asyncio.to_thread(Origin, name, record, expires))
        return self._keep(name, Origin(name, record, expires))

    def _keep(self, name: str, origin: Origin) -> Origin:
        before = self._origins.pop(name, None)
        self._origins[name] = origin
        self._size += origin.size - (before.size if before else 0)
        while len(self._origins) > ORIGINS or (self._size > CHARACTERS and len(self._origins) > 1):
            self._size -= self._origins.popitem(last=False)[1].size
        return origin

    async def _ask(self, name: str, before: RobotsRecord | None) -> tuple[RobotsRecord, float]:
        """What the origin says now, and for how many seconds that holds."""
        requested: float | None = None
        try:
            async with asyncio.timeout(ASKING):
                response = await self._follow(f"{name}/robots.txt")
        except FetchError as error:
            record = failed(str(error), before)
        except TimeoutError:
            record = failed(f"no answer in {ASKING:.0f} s", before)
        else:
            if response.status == 429 or response.status >= 500:
                record = failed(f"status {response.status}", before)
                requested = requested_pause(response.status, response.headers, time.time())
            elif 200 <= response.status < 300:
                record = RobotsRecord(await self._rules(response.body))
            else:
                record = RobotsRecord("")
        return record, record.holds(requested)

    async def _follow(self, url: str) -> HttpResponse:
        """The first answer that leads nowhere else; the last redirect when there are too many."""
        response = await self._fetch(url)
        for _ in range(HOPS):
            if response.status not in REDIRECTS:
                break
            try:
                url = target(url, response.headers.get("location"))
            except InvalidRedirect:
                break
            response = await self._fetch(url)
        return response

    async def _rules(self, body: bytes) -> str:
        if len(body) > LARGE:
            return await asyncio.to_thread(rules_for, self._token, body)
        return rules_for(self._token, body)
