"""Permissions by robots.txt: with real servers, a real engine, and the cache of all workers in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from coordinator.errors import FetchError
from coordinator.limits.robots_cache import RobotsCache
from coordinator.redis.keys import RunKeys
from coordinator.url import Target
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.robots import policy
from crawler.fetch.robots.policy import Permission, Robots
from crawler.fetch.robots.rules import MAX_ROBOTS_BYTES
from crawler.job.models import RetrySettings
from crawler.model import HttpResponse
from crawler.sample.connection import CannedResponse
from tests.crawler.fetch.conftest import LOOPBACK, as_target
from tests.servers.scripted import response
from tests.servers.sites import Sites
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = RunKeys("robots")
# Long pauses, so that a test sees them.
RETRY = RetrySettings(attempts=3, backoff=60.0, max_delay=3600.0)
DISALLOW_X = b"User-agent: *\nDisallow: /x\n"


def robots_txt(sites: Sites, status: int, body: bytes = b"", headers: str = "", delay: float = 0.0) -> None:
    """Set the response to a request for robots.txt at all sites."""
    sites.responses["/robots.txt"] = CannedResponse(status, body, "text/plain", headers, delay)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def sites(stack: AsyncExitStack) -> Sites:
    sites = Sites()
    await sites.listen(stack)
    return sites


class Clock:
    """The workers' clock, which a test can set ahead."""

    ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


class RobotsByUrl(Robots):
    """Takes a URL as it is written."""

    def cached_permission(self, target: Target | str) -> Permission | None:
        return super().cached_permission(as_target(target))

    async def load_permission(self, target: Target | str) -> Permission:
        return await super().load_permission(as_target(target))


class Fleet:
    """Makes the Robots of several workers, on one Redis."""

    def __init__(self, redis: Redis, stack: AsyncExitStack) -> None:
        self._redis = redis
        self._stack = stack
        self._engine = PyreqwestEngine(
            Caps(connect=2.0, read=2.0, total=2.0), concurrency=8, resolver=Resolver(LOOPBACK)
        )
        stack.push_async_callback(self._engine.close)
        self.clock = Clock()
        self.size = 0

    def worker(self) -> RobotsByUrl:
        self.size += 1
        cache = RobotsCache(self._redis, KEYS, f"w{self.size}")
        robots = RobotsByUrl(self.fetch, cache, "shardcrawl (+https://example.org)", RETRY, clock=self.clock)
        self._stack.push_async_callback(robots.close)
        return robots

    async def fetch(self, target: Target) -> HttpResponse:
        return await self._engine.fetch("GET", target, ())

    async def expire(self, origin: str) -> None:
        """Let the rules of an origin expire, in the workers and in Redis."""
        self.clock.ahead += 100_000.0
        await self._redis.hset(KEYS.robots(origin), "holds", "0")

    async def held(self, origin: str) -> float:
        cached = await RobotsCache(self._redis, KEYS, "test").ask(origin, 1.0)
        assert cached.state == "known"
        return cached.seconds


@pytest.fixture
async def fleet(redis: Redis, stack: AsyncExitStack) -> Fleet:
    return Fleet(redis, stack)


async def test_a_fleet_requests_the_robots_txt_of_each_origin_once(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    robots_txt(sites, 200, DISALLOW_X + b"Crawl-delay: 3\n", delay=0.2)
    workers = [fleet.worker() for _ in range(4)]
    urls = [f"{host}/{path}" for host in (sites.url, sites.other) for path in ("x", "y", "z")]
    assert {worker.cached_permission(url) for worker in workers for url in urls} == {None}
    permissions = await asyncio.gather(*(worker.load_permission(url) for worker in workers for url in urls))
    allowed, refused = Permission(True, None, 3.0), f"robots.txt of {sites.url} disallows it"
    assert permissions[:3] == [Permission(False, refused, 3.0), allowed, allowed]
    assert permissions == [worker.cached_permission(url) for worker in workers for url in urls]
    assert (await fleet.worker().load_permission(f"{sites.url}/x")).reason == refused
    assert sites.requested == {"/robots.txt": 2}
    assert 86_300 < await fleet.held(sites.url) <= 86_400
    assert 86_400 < await redis.ttl(KEYS.robots(sites.url)) <= 2 * 86_400


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 451])
async def test_an_origin_without_a_robots_txt_allows_everything(sites: Sites, fleet: Fleet, status: int) -> None:
    robots_txt(sites, status, DISALLOW_X)
    assert await fleet.worker().load_permission(f"{sites.url}/x") == Permission(True)
    assert await fleet.held(sites.url) > 86_300


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_origin_that_fails_allows_nothing_for_a_while(sites: Sites, fleet: Fleet, status: int) -> None:
    robots_txt(sites, status, b"User-agent: *\nAllow: /\n")
    permission = await fleet.worker().load_permission(f"{sites.url}/y")
    kind = "throttled" if status == 429 else "robots"
    assert (permission.allowed, permission.reason) == (
        False,
        f"{kind}: robots.txt of {sites.url} cannot be read (status {status}), so nothing may be fetched there",
    )
    assert permission.fault is not None
    assert not permission.fault.sent
    assert 50 < permission.retry_after <= 60
    await fleet.expire(sites.url)
    retry_after = (await fleet.worker().load_permission(f"{sites.url}/y")).retry_after
    assert 110 < retry_after <= 120
    await fleet.expire(sites.url)
    robots_txt(sites, 200, DISALLOW_X)
    assert await fleet.worker().load_permission(f"{sites.url}/y") == Permission(True)
    assert sites.requested == {"/robots.txt": 3}


async def test_an_origin_that_asks_for_a_pause_gets_no_request_until_it_is_over(sites: Sites, fleet: Fleet) -> None:
    robots_txt(sites, 503, headers="Retry-After: 1800\r\n")
    await fleet.worker().load_permission(f"{sites.url}/y")
    assert 1790 < await fleet.held(sites.url) <= 1800


async def test_rules_stay_valid_while_their_origin_fails(sites: Sites, fleet: Fleet) -> None:
    worker = fleet.worker()
    robots_txt(sites, 200, DISALLOW_X)
    await worker.load_permission(f"{sites.url}/y")
    await fleet.expire(sites.url)
    robots_txt(sites, 500)
    assert worker.cached_permission(f"{sites.url}/y") is None
    assert await worker.load_permission(f"{sites.url}/y") == Permission(True)
    assert worker.cached_permission(f"{sites.url}/x") == Permission(False, f"robots.txt of {sites.url} disallows it")
    assert sites.requested == {"/robots.txt": 2}
    assert await fleet.held(sites.url) <= 60


async def test_an_origin_that_cannot_be_reached_has_the_fault_that_its_pages_would_have(fleet: Fleet) -> None:
    worker = fleet.worker()
    permission = await worker.load_permission("http://127.0.0.1:1/x")
    assert not permission.allowed
    assert permission.fault is not None
    assert (permission.fault.kind, permission.fault.sent) == ("connect", False)
    assert 50 < permission.retry_after <= 60


@pytest.mark.parametrize("kind", ["dns", "connect", "tls", "timeout", "reset"])
async def test_a_fleet_asks_a_dead_host_once_for_each_attempt_of_its_keys(fleet: Fleet, kind: str) -> None:
    workers, requested = [fleet.worker() for _ in range(3)], []

    async def fail(target: Target) -> HttpResponse:
        requested.append(target.href)
        raise FetchError(kind, "nothing there", sent=False)

    for worker in workers:
        worker._fetch = fail
    for attempt in range(1, 4):
        urls = [f"http://dead.example/{number}" for number in range(20)]
        permissions = await asyncio.gather(*(worker.load_permission(url) for worker in workers for url in urls))
        assert {permission.reason for permission in permissions} == {f"{kind}: nothing there"}
        assert requested == ["http://dead.example/robots.txt"] * attempt
        await fleet.expire("http://dead.example")


@pytest.mark.parametrize("kind", ["decode", "too-large", "protocol"])
async def test_an_origin_that_responds_with_what_cannot_be_read_allows_everything(fleet: Fleet, kind: str) -> None:
    """RFC 9309, 2.3.1.3: it is no unreachable origin. Rules that were read before stay valid."""
    worker = fleet.worker()

    async def fail(_: str) -> HttpResponse:
        raise FetchError(kind, "gibberish")

    worker._fetch = fail
    assert await worker.load_permission("http://host/x") == Permission(True)
    assert 50 < await fleet.held("http://host") <= 60
    await fleet.expire("http://host")

    async def respond(_: str) -> HttpResponse:
        return response(200, DISALLOW_X)

    worker._fetch = respond
    assert not (await worker.load_permission("http://host/x")).allowed
    await fleet.expire("http://host")
    worker._fetch = fail
    assert not (await worker.load_permission("http://host/x")).allowed


async def test_five_redirects_are_followed_also_to_another_host(sites: Sites, fleet: Fleet) -> None:
    way = ["/robots.txt", "/1", "/2", "/3", "/4"]
    for here, there in pairwise(way):
        sites.responses[here] = CannedResponse(301, headers=f"Location: {there}\r\n")
    sites.responses["/4"] = CannedResponse(302, headers=f"Location: {sites.other}/rules#part\r\n")
    sites.responses["/rules"] = CannedResponse(200, DISALLOW_X)
    assert not (await fleet.worker().load_permission(f"{sites.url}/x")).allowed
    assert (await fleet.worker().load_permission(f"{sites.url}/y")).allowed
    assert sites.requested == dict.fromkeys([*way, "/rules"], 1)
    # One more is too many: as if there were none.
    sites.responses["/rules"] = CannedResponse(301, headers="Location: /beyond\r\n")
    sites.responses["/beyond"] = CannedResponse(200, DISALLOW_X)
    await fleet.expire(sites.url)
    assert (await fleet.worker().load_permission(f"{sites.url}/x")).allowed
    assert sites.requested["/beyond"] == 0


@pytest.mark.parametrize("location", ["", "Location: ftp://host/\r\n", "Location: http://[/\r\n"])
async def test_an_invalid_redirect_counts_as_no_robots_txt(sites: Sites, fleet: Fleet, location: str) -> None:
    robots_txt(sites, 302, headers=location)
    assert await fleet.worker().load_permission(f"{sites.url}/x") == Permission(True)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1:1/", "robots: robots.txt of {} cannot be read (robots: http://127.0.0.1:1/: connect: "),
        ("http://10.0.0.1/", None),  # an address that is refused is an invalid redirect, too
    ],
)
async def test_a_host_is_not_dead_because_its_robots_txt_leads_to_one(
    sites: Sites, fleet: Fleet, location: str, reason: str | None
) -> None:
    robots_txt(sites, 302, headers=f"Location: {location}\r\n")
    permission = await fleet.worker().load_permission(f"{sites.url}/x")
    assert (permission.reason or "").startswith((reason or "").format(sites.url))
    assert permission.allowed is (reason is None)


async def test_a_redirect_to_a_url_that_fails_allows_nothing(sites: Sites, fleet: Fleet) -> None:
    robots_txt(sites, 302, headers="Location: /down\r\n")
    sites.responses["/down"] = CannedResponse(502)
    assert not (await fleet.worker().load_permission(f"{sites.url}/x")).allowed


async def test_only_the_first_half_mebibyte_of_a_robots_txt_is_read(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    rules = b"".join(b"Disallow: /%06d\n" % number for number in range(60_000))
    robots_txt(sites, 200, b"User-agent: *\n" + rules)
    worker = fleet.worker()
    last = (MAX_ROBOTS_BYTES - len("User-agent: *\n")) // len("Disallow: /000000\n") - 1
    assert not (await worker.load_permission(f"{sites.url}/{last:06d}")).allowed
    assert (await worker.load_permission(f"{sites.url}/{last + 1:06d}")).allowed
    assert 0 < await redis.hstrlen(KEYS.robots(sites.url), "found") < MAX_ROBOTS_BYTES


async def test_a_worker_that_dies_during_the_request_is_replaced(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    robots_txt(sites, 200, DISALLOW_X)
    dead = RobotsCache(redis, KEYS, "dead")
    assert (await dead.ask(sites.url, 0.3)).state == "ask"
    assert not (await fleet.worker().load_permission(f"{sites.url}/x")).allowed
    assert sites.requested == {"/robots.txt": 1}
    await dead.store(sites.url, b"late", 1000.0)
    assert not (await fleet.worker().load_permission(f"{sites.url}/x")).allowed


async def test_a_cancelled_caller_does_not_cancel_the_others(sites: Sites, fleet: Fleet) -> None:
    robots_txt(sites, 200, DISALLOW_X, delay=0.3)
    worker = fleet.worker()
    cancelled, waiting = (asyncio.create_task(worker.load_permission(f"{sites.url}/x")) for _ in range(2))
    await eventually(lambda: sites.requested["/robots.txt"] == 1, "robots.txt is requested")
    cancelled.cancel()
    assert not (await waiting).allowed
    assert cancelled.cancelled()


async def test_an_unexpected_error_is_raised_to_every_caller_and_the_next_one_requests_again(fleet: Fleet) -> None:
    worker = fleet.worker()
    calls = iter([RuntimeError("a bug"), FetchError("reset", "gone")])

    async def fail(_: Target) -> HttpResponse:
        raise next(calls)

    worker._fetch = fail
    both = await asyncio.gather(*(worker.load_permission("http://host/x") for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in both] == ["a bug", "a bug"]
    assert not (await worker.load_permission("http://host/x")).allowed


async def test_an_origin_whose_address_is_refused_is_not_requested_again(fleet: Fleet) -> None:
    worker = fleet.worker()

    async def refuse(_: Target) -> HttpResponse:
        raise FetchError("address", "127.0.0.1 is not public", sent=False)

    worker._fetch = refuse
    permission = await worker.load_permission("http://host/x")
    assert not permission.allowed
    assert permission.fault is not None
    assert permission.fault.kind == "address"


async def test_a_key_without_a_path_says_nothing_about_another_host(sites: Sites, fleet: Fleet) -> None:
    robots_txt(sites, 200, b"User-agent: *\nDisallow: /private\n")
    worker = fleet.worker()

    async def fetch(target: Target) -> HttpResponse:
        if target.origin.host == "example.com":
            return await fleet.fetch(as_target(f"{sites.url}/nothing-here"))
        return await fleet.fetch(as_target(f"{sites.url}/robots.txt"))

    worker._fetch = fetch
    assert (await worker.load_permission("http://example.com")).allowed
    assert worker.cached_permission("http://example.com?x").allowed
    for url in ("http://example.co/private", "http://example.co", "http:\\\\example.co\\private"):
        assert worker.cached_permission(url) is None
    assert not (await worker.load_permission("http://example.co/private")).allowed
    for url in ("http://example.co:80/%2e/private", "http://EXAMPLE.co\\private", "http:example.co/a/..\\private"):
        assert not worker.cached_permission(url).allowed


async def test_a_response_that_never_ends_is_a_timeout(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "ROBOTS_TIMEOUT_SECONDS", 0.05)
    worker = fleet.worker()

    async def hang(_: Target) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    worker._fetch = hang
    assert "no response in 0 s" in str((await worker.load_permission("http://host/x")).reason)


@pytest.mark.parametrize(("bound", "value"), [("MAX_ORIGINS", 2), ("MAX_RULES_CHARACTERS", 40)])
async def test_memory_is_bounded_and_dropped_rules_come_from_redis_again(
    sites: Sites, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(policy, bound, value)
    robots_txt(sites, 200, b"User-agent: *\nDisallow: /x12345\n")  # 17 characters that count
    worker = fleet.worker()
    hosts = [f"{sites.url}/", f"{sites.other}/", f"{sites.third}/"]
    for url in hosts[:2]:
        await worker.load_permission(url)
    assert worker.cached_permission(hosts[0])  # so the other one was used least recently
    await worker.load_permission(hosts[2])
    assert [worker.cached_permission(url) is not None for url in hosts] == [True, False, True]
    assert (await worker.load_permission(hosts[1])).allowed
    assert sites.requested == {"/robots.txt": 3}
