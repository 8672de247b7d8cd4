"""What robots.txt allows (RFC 9309): one worker requests it for all workers, and each keeps the rules in memory."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from protego import Protego

from coordinator.errors import FetchError
from coordinator.limits.robots_cache import RobotsCache
from coordinator.redis.retrying import retry_unavailable
from coordinator.url import Target, parse
from crawler.fetch.faults import THROTTLED, UPSTREAM_FAULTS
from crawler.fetch.network.redirect import REDIRECT_STATUSES, InvalidRedirect, redirect_target
from crawler.fetch.ratelimit_headers import requested_pause
from crawler.fetch.robots.rules import TOO_MANY_REQUESTS, RobotsRecord, failed_record, product_token, rules_for
from crawler.job.models import RetrySettings
from crawler.model import HttpResponse

Fetch = Callable[[Target], Awaitable[HttpResponse]]

ROBOTS_PATH = "/robots.txt"  # which is always allowed (RFC 9309, 2.2.2)
# RFC 9309 (2.3.1.2) wants at least five redirects followed; a robots.txt behind more counts as absent.
MAX_ROBOTS_REDIRECTS = 5
ROBOTS_TIMEOUT_SECONDS = 30.0
ASK_LEASE_SECONDS = ROBOTS_TIMEOUT_SECONDS + 5.0
# While another worker requests a robots.txt, Redis is asked for it again and again, with waits that double.
FIRST_POLL_WAIT_SECONDS = 0.05
MAX_POLL_WAIT_SECONDS = 0.5
# Bounds on memory: an origin with few rules takes 2 KB, and 1 MB of rules takes up to 30 MB when parsed.
MAX_ORIGINS = 4096
MAX_RULES_CHARACTERS = 1024 * 1024
# A larger robots.txt is parsed in a thread, so that the event loop goes on: half a megabyte takes 200 ms.
THREAD_PARSE_BYTES = 32 * 1024
MAX_CRAWL_DELAY_SECONDS = 60.0
# To match a path with 25,000 patterns takes half a second. An origin whose patterns take longer than this of the
# processor waits so many times as long before its next request: what it sends must not hold up other upstreams.
QUICK_MATCH_SECONDS = 0.02
MATCHING_SHARE = 20
# Kinds of FetchError that another attempt does not mend: a page there would fail in the same way.
PERMANENT_KINDS = frozenset({"url", "address"})
# Kinds of FetchError of an origin that responded, but with nothing that can be read: RFC 9309 (2.3.1.3) calls such a
# robots.txt unavailable, which allows everything, and not unreachable.
UNREADABLE_KINDS = frozenset({"protocol", "decode", "too-large"})


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether a URL may be fetched, and the `reason` when it may not.

    `crawl_delay` is the seconds between two requests that its origin wants, or makes necessary by the time that its
    rules take, at most a minute. `fault` is there when
    robots.txt could not be read: then this was an attempt of the URL, and after `retry_after` seconds robots.txt is
    requested again, and may then allow it.
    """

    allowed: bool
    reason: str | None = None
    crawl_delay: float | None = None
    retry_after: float = 0.0
    fault: FetchError | None = field(default=None, compare=False)


ALLOWED = Permission(True)


class OriginRules:
    """The rules of one origin, valid until `expires` on a monotonic clock; `size` is their length in characters."""

    __slots__ = ("_allowed", "_disallowed", "_fault", "_rules", "expires", "size")

    def __init__(self, origin: str, record: RobotsRecord, expires: float) -> None:
        self._fault = _fault_of(origin, record.fault) if record.rules is None and record.fault else None
        self._rules = Protego.parse(f"User-agent: *\n{record.rules}") if record.rules else None
        self.expires = expires
        self.size = len(record.rules or "")
        delay = min((self._rules and self._rules.crawl_delay("*")) or 0.0, MAX_CRAWL_DELAY_SECONDS) or None
        self._allowed = Permission(True, None, delay)
        self._disallowed = Permission(False, f"robots.txt of {origin} disallows it", delay)

    @property
    def allows_everything(self) -> bool:
        """Whether every path is allowed."""
        return self._rules is None and self._fault is None

    def permission(self, path: str, now: float) -> Permission:
        """Return the permission for a path with its query; `now` is on the clock of `expires`."""
        if self._fault is not None:
            return Permission(False, str(self._fault), None, max(0.0, self.expires - now), self._fault)
        # Without a host, a path that begins with // would be read as one.
        began = time.thread_time()
        may = self._rules is None or path == ROBOTS_PATH or self._rules.can_fetch(f"http://host{path}", "*")
        permission = self._allowed if may else self._disallowed
        if (seconds := time.thread_time() - began) < QUICK_MATCH_SECONDS:
            return permission
        # A power of two, so that an upstream has few different ones.
        delay = min(2.0 ** math.ceil(math.log2(seconds * MATCHING_SHARE)), MAX_CRAWL_DELAY_SECONDS)
        return replace(permission, crawl_delay=max(delay, permission.crawl_delay or 0.0))


class Robots:
    """What robots.txt allows one worker. Call `cached_permission` first, and `load_permission` when that is None.

    `fetch` sends one GET without following redirects, raises FetchError, and is cancelled after half a minute; its
    engine should accept bodies of 512 KiB. `user_agent` is the header that `fetch` sends. An origin that cannot be
    reached is asked again after the backoff of `retry`.
    """

    def __init__(
        self,
        fetch: Fetch,
        cache: RobotsCache,
        user_agent: str,
        retry: RetrySettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._cache = cache
        self._token = product_token(user_agent)
        self._retry = retry
        self._clock = clock
        self._origins: OrderedDict[str, OriginRules] = OrderedDict()  # the least recently used first
        self._size = 0
        self._loading: dict[str, asyncio.Task[OriginRules]] = {}
        self._unrestricted: dict[str, OriginRules] = {}  # of origins that allow everything

    def cached_permission(self, target: Target) -> Permission | None:
        """Return the permission for a target, or None when this worker has no valid rules of its origin."""
        now = self._clock()
        origin = target.origin.text
        unrestricted = self._unrestricted.get(origin)
        if unrestricted is not None and now < unrestricted.expires:
            return ALLOWED
        rules = self._origins.get(origin)
        if rules is None or rules.expires <= now:
            return None
        self._origins.move_to_end(origin)
        if rules.allows_everything:
            if len(self._unrestricted) >= MAX_ORIGINS:
                self._unrestricted.clear()
            self._unrestricted[origin] = rules
        return rules.permission(target.path, now)

    async def load_permission(self, target: Target) -> Permission:
        """Return the permission for a target, with the rules from memory, from Redis, or from the origin itself.

        Waits while Redis does not respond, and while another worker requests the same robots.txt.
        """
        cached = self.cached_permission(target)
        if cached is not None:
            return cached
        origin = target.origin.text
        loading = self._loading.get(origin)
        if loading is None:
            loading = self._loading[origin] = asyncio.create_task(self._load(origin), name=f"robots.txt of {origin}")
            loading.add_done_callback(lambda _: self._loading.pop(origin, None))
        # Shielded: when one caller is cancelled, the others still get the rules.
        rules = await asyncio.shield(loading)
        return rules.permission(target.path, self._clock())

    async def close(self) -> None:
        """Cancel the requests that are under way."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    async def _load(self, origin: str) -> OriginRules:
        """Get an origin's rules from Redis, or request its robots.txt and store it there; keep the rules in memory."""
        wait = FIRST_POLL_WAIT_SECONDS
        ask = partial(self._cache.ask, origin, ASK_LEASE_SECONDS)
        while (cached := await retry_unavailable(ask, "robots.txt")).state == "wait":
            await asyncio.sleep(min(wait, cached.seconds))
            wait = min(wait * 2, MAX_POLL_WAIT_SECONDS)
        previous = None
        if cached.found:
            with suppress(ValueError):  # another program wrote it: it is requested anew
                previous = RobotsRecord.decode(cached.found)
        if cached.state == "known" and previous is not None:
            record, valid_seconds = previous, cached.seconds
        else:
            record, valid_seconds = await self._request_record(origin, previous)
            await retry_unavailable(partial(self._cache.store, origin, record.encode(), valid_seconds), "robots.txt")
        expires = self._clock() + valid_seconds
        if record.rules and len(record.rules) > THREAD_PARSE_BYTES:
            return self._keep(origin, await asyncio.to_thread(OriginRules, origin, record, expires))
        return self._keep(origin, OriginRules(origin, record, expires))

    def _keep(self, origin: str, rules: OriginRules) -> OriginRules:
        """Put rules into memory, and remove the least recently used ones while there are too many."""
        previous = self._origins.pop(origin, None)
        self._origins[origin] = rules
        self._size += rules.size - (previous.size if previous else 0)
        while len(self._origins) > MAX_ORIGINS or (self._size > MAX_RULES_CHARACTERS and len(self._origins) > 1):
            self._size -= self._origins.popitem(last=False)[1].size
        return rules

    async def _request_record(self, origin: str, previous: RobotsRecord | None) -> tuple[RobotsRecord, float]:
        """Request robots.txt from its origin; return its record, and for how many seconds the record is valid."""
        pause: float | None = None
        try:
            async with asyncio.timeout(ROBOTS_TIMEOUT_SECONDS):
                response = await self._fetch_following_redirects(parse(f"{origin}{ROBOTS_PATH}"))
        except FetchError as error:
            record = failed_record(str(error), previous, "" if error.kind in UNREADABLE_KINDS else None)
        except TimeoutError:
            record = failed_record(f"timeout: no response in {ROBOTS_TIMEOUT_SECONDS:.0f} s", previous)
        else:
            if response.status == 429 or response.status >= 500:
                record = failed_record(f"status {response.status}", previous)
                pause = requested_pause(response.status, response.headers, time.time())
            elif 200 <= response.status < 300:
                record = RobotsRecord(await self._parse(response.body))
            else:
                record = RobotsRecord("")
        return record, record.valid_seconds(self._retry, pause)

    async def _fetch_following_redirects(self, target: Target) -> HttpResponse:
        """Return the first response that is no redirect; the last redirect if there are too many or it is invalid."""
        response = await self._fetch(target)
        for _ in range(MAX_ROBOTS_REDIRECTS):
            if response.status not in REDIRECT_STATUSES:
                break
            try:
                target = redirect_target(target, response.headers.get("location"))
                response = await self._fetch(target)
            except InvalidRedirect:
                break
            except FetchError as error:
                if error.kind in PERMANENT_KINDS:
                    break
                if error.kind in UNREADABLE_KINDS:
                    raise
                raise FetchError("robots", f"{target.href}: {error}") from error  # of another host, perhaps
        return response

    async def _parse(self, body: bytes) -> str:
        if len(body) > THREAD_PARSE_BYTES:
            return await asyncio.to_thread(rules_for, self._token, body)
        return rules_for(self._token, body)


def _fault_of(origin: str, fault: str) -> FetchError:
    """Return the error of an attempt that ended at robots.txt: the one that a page there would have, if it would."""
    kind, _, detail = fault.partition(": ")
    if kind in UPSTREAM_FAULTS or kind in PERMANENT_KINDS:
        return FetchError(kind, detail, sent=False)
    reason = f"robots.txt of {origin} cannot be read ({fault}), so nothing may be fetched there"
    return FetchError(THROTTLED if fault == TOO_MANY_REQUESTS else "robots", reason, sent=False)
