"""robots.txt from real servers through a real engine, kept for the fleet in a real Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from coordinator.errors import FetchError
from coordinator.limits.robots_cache import RobotsCache
from coordinator.redis.keys import RunKeys
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.robots import policy as module
from crawler.fetch.robots.policy import Permission, Robots
from crawler.fetch.robots.rules import LARGEST
from crawler.model import HttpResponse
from crawler.sample.connection import CannedResponse, Connection
from tests.conftest import eventually

pytestmark = pytest.mark.anyio

KEYS = RunKeys("robots")
NONE_OF_X = b"User-agent: *\nDisallow: /x\n"


class Sites:
    """One server at three addresses, so three hosts: `responses` by the path of robots.txt and where it leads."""

    def __init__(self) -> None:
        self.responses: dict[str, CannedResponse] = {}
        self.asked: Counter[str] = Counter()
        self.connections: set[Connection] = set()

    async def listen(self, stack: AsyncExitStack) -> None:
        loop, port = asyncio.get_running_loop(), 0
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            server = await loop.create_server(lambda: Connection(self.respond, self.connections), address, port)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
        self.url, self.other, self.third = (f"http://127.0.0.{number}:{port}" for number in (1, 2, 3))

    def respond(self, _: str, target: bytes, __: str) -> CannedResponse:
        path = target.decode()
        self.asked[path] += 1
        return self.responses.get(path, CannedResponse(404))

    def says(self, status: int, body: bytes = b"", headers: str = "", delay: float = 0.0) -> None:
        self.responses["/robots.txt"] = CannedResponse(status, body, "text/plain", headers, delay)


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
    """The workers' clock, ahead of the true one as the test likes."""

    ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


class Fleet:
    """Makes workers' Robots on one Redis."""

    def __init__(self, redis: Redis, stack: AsyncExitStack) -> None:
        self._redis = redis
        self._stack = stack
        self._engine = PyreqwestEngine(
            Caps(connect=2.0, read=2.0, total=2.0), concurrency=8, resolver=Resolver(lambda _: True)
        )
        stack.push_async_callback(self._engine.close)
        self.clock = Clock()
        self.size = 0

    def worker(self) -> Robots:
        self.size += 1
        cache = RobotsCache(self._redis, KEYS, f"w{self.size}")
        robots = Robots(self.fetch, cache, "shardcrawl (+https://example.org)", clock=self.clock)
        self._stack.push_async_callback(robots.close)
        return robots

    async def fetch(self, url: str) -> HttpResponse:
        return await self._engine.fetch("GET", url, ())

    async def let_pass(self, origin: str) -> None:
        """What is known of an origin holds no longer, for the workers and in Redis."""
        self.clock.ahead += 100_000.0
        await self._redis.hset(KEYS.robots(origin), "holds", "0")

    async def held(self, origin: str) -> float:
        cached = await RobotsCache(self._redis, KEYS, "test").ask(origin, 1.0)
        assert cached.state == "known"
        return cached.seconds


@pytest.fixture
async def fleet(redis: Redis, stack: AsyncExitStack) -> Fleet:
    return Fleet(redis, stack)


async def test_a_fleet_asks_each_origin_once(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    sites.says(200, NONE_OF_X + b"Crawl-delay: 3\n", delay=0.2)
    workers = [fleet.worker() for _ in range(4)]
    urls = [f"{host}/{path}" for host in (sites.url, sites.other) for path in ("x", "y", "z")]
    assert {worker.known(url) for worker in workers for url in urls} == {None}
    verdicts = await asyncio.gather(*(worker.permission(url) for worker in workers for url in urls))
    allowed, refused = Permission(True, None, 3.0), f"robots.txt of {sites.url} disallows it"
    assert verdicts[:3] == [Permission(False, refused, 3.0), allowed, allowed]
    assert verdicts == [worker.known(url) for worker in workers for url in urls]
    assert (await fleet.worker().permission(f"{sites.url}/x")).reason == refused
    assert sites.asked == {"/robots.txt": 2}
    assert 86_300 < await fleet.held(sites.url) <= 86_400
    assert 86_400 < await redis.ttl(KEYS.robots(sites.url)) <= 2 * 86_400


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 451])
async def test_an_origin_without_a_robots_txt_allows_everything(sites: Sites, fleet: Fleet, status: int) -> None:
    sites.says(status, NONE_OF_X)
    assert await fleet.worker().permission(f"{sites.url}/x") == Permission(True)
    assert await fleet.held(sites.url) > 86_300


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_origin_that_fails_allows_nothing_for_a_while(sites: Sites, fleet: Fleet, status: int) -> None:
    sites.says(status, b"User-agent: *\nAllow: /\n")
    permission = await fleet.worker().permission(f"{sites.url}/y")
    assert (permission.allowed, permission.reason) == (
        False,
        f"robots.txt of {sites.url} cannot be read (status {status}), so nothing may be fetched there",
    )
    assert permission.again is not None
    assert 50 < permission.again <= 60
    await fleet.let_pass(sites.url)
    again = (await fleet.worker().permission(f"{sites.url}/y")).again
    assert again is not None
    assert 110 < again <= 120
    await fleet.let_pass(sites.url)
    sites.says(200, NONE_OF_X)
    assert await fleet.worker().permission(f"{sites.url}/y") == Permission(True)
    assert sites.asked == {"/robots.txt": 3}


async def test_an_origin_that_names_a_time_is_left_alone_until_then(sites: Sites, fleet: Fleet) -> None:
    sites.says(503, headers="Retry-After: 1800\r\n")
    await fleet.worker().permission(f"{sites.url}/y")
    assert 1790 < await fleet.held(sites.url) <= 1800


async def test_rules_go_on_while_their_origin_fails(sites: Sites, fleet: Fleet) -> None:
    worker = fleet.worker()
    sites.says(200, NONE_OF_X)
    await worker.permission(f"{sites.url}/y")
    await fleet.let_pass(sites.url)
    sites.says(500)
    assert worker.known(f"{sites.url}/y") is None
    assert await worker.permission(f"{sites.url}/y") == Permission(True)
    assert worker.known(f"{sites.url}/x") == Permission(False, f"robots.txt of {sites.url} disallows it")
    assert sites.asked == {"/robots.txt": 2}
    assert await fleet.held(sites.url) <= 60


async def test_an_origin_that_cannot_be_reached_allows_nothing(fleet: Fleet) -> None:
    worker = fleet.worker()
    permission = await worker.permission("http://127.0.0.1:1/x")
    assert not permission.allowed
    assert permission.reason is not None
    assert "cannot be read (connect: " in permission.reason
    assert permission.again is not None
    forever = await worker.permission("http://:80:80/x")
    assert (forever.allowed, forever.again) == (False, None)
    assert await worker.permission("ftp://host/x") == Permission(True)


async def test_five_redirects_are_followed_also_to_another_host(sites: Sites, fleet: Fleet) -> None:
    way = ["/robots.txt", "/1", "/2", "/3", "/4"]
    for here, there in pairwise(way):
        sites.responses[here] = CannedResponse(301, headers=f"Location: {there}\r\n")
    sites.responses["/4"] = CannedResponse(302, headers=f"Location: {sites.other}/rules#part\r\n")
    sites.responses["/rules"] = CannedResponse(200, NONE_OF_X)
    assert not (await fleet.worker().permission(f"{sites.url}/x")).allowed
    assert (await fleet.worker().permission(f"{sites.url}/y")).allowed
    assert sites.asked == dict.fromkeys([*way, "/rules"], 1)
    # One more is too many: as if there were none.
    sites.responses["/rules"] = CannedResponse(301, headers="Location: /beyond\r\n")
    sites.responses["/beyond"] = CannedResponse(200, NONE_OF_X)
    await fleet.let_pass(sites.url)
    assert (await fleet.worker().permission(f"{sites.url}/x")).allowed
    assert sites.asked["/beyond"] == 0


@pytest.mark.parametrize("location", ["", "Location: ftp://host/\r\n", "Location: http://[/\r\n"])
async def test_a_redirect_to_nowhere_is_no_robots_txt(sites: Sites, fleet: Fleet, location: str) -> None:
    sites.says(302, headers=location)
    assert await fleet.worker().permission(f"{sites.url}/x") == Permission(True)


async def test_a_redirect_to_what_fails_allows_nothing(sites: Sites, fleet: Fleet) -> None:
    sites.says(302, headers="Location: /down\r\n")
    sites.responses["/down"] = CannedResponse(502)
    assert not (await fleet.worker().permission(f"{sites.url}/x")).allowed


async def test_a_huge_robots_txt_is_read_as_far_as_half_a_mebibyte(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    rules = b"".join(b"Disallow: /%06d\n" % number for number in range(60_000))
    sites.says(200, b"User-agent: *\n" + rules)
    worker = fleet.worker()
    last = (LARGEST - len("User-agent: *\n")) // len("Disallow: /000000\n") - 1
    assert not (await worker.permission(f"{sites.url}/{last:06d}")).allowed
    assert (await worker.permission(f"{sites.url}/{last + 1:06d}")).allowed
    assert 0 < await redis.hstrlen(KEYS.robots(sites.url), "found") < LARGEST


async def test_who_dies_while_asking_is_replaced(sites: Sites, fleet: Fleet, redis: Redis) -> None:
    sites.says(200, NONE_OF_X)
    dead = RobotsCache(redis, KEYS, "dead")
    assert (await dead.ask(sites.url, 0.3)).state == "ask"
    assert not (await fleet.worker().permission(f"{sites.url}/x")).allowed
    assert sites.asked == {"/robots.txt": 1}
    await dead.store(sites.url, b"late", 1000.0)
    assert not (await fleet.worker().permission(f"{sites.url}/x")).allowed


async def test_a_caller_that_leaves_takes_the_answer_from_nobody(sites: Sites, fleet: Fleet) -> None:
    sites.says(200, NONE_OF_X, delay=0.3)
    worker = fleet.worker()
    leaving, staying = (asyncio.create_task(worker.permission(f"{sites.url}/x")) for _ in range(2))
    await eventually(lambda: sites.asked["/robots.txt"] == 1, "robots.txt is asked for")
    leaving.cancel()
    assert not (await staying).allowed
    assert leaving.cancelled()


async def test_an_error_that_is_none_of_http_reaches_every_caller_and_the_next_one_asks_anew(fleet: Fleet) -> None:
    worker = fleet.worker()
    calls = iter([RuntimeError("a bug"), FetchError("reset", "gone")])

    async def fail(_: str) -> HttpResponse:
        raise next(calls)

    worker._fetch = fail
    both = await asyncio.gather(*(worker.permission("http://host/x") for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in both] == ["a bug", "a bug"]
    assert not (await worker.permission("http://host/x")).allowed


async def test_an_endless_answer_is_waited_for_within_a_bound(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKING", 0.05)
    worker = fleet.worker()

    async def hang(_: str) -> HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    worker._fetch = hang
    assert "no answer in 0 s" in str((await worker.permission("http://host/x")).reason)


@pytest.mark.parametrize(("bound", "value"), [("ORIGINS", 2), ("CHARACTERS", 40)])
async def test_memory_is_bounded_and_what_was_forgotten_comes_from_redis(
    sites: Sites, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(module, bound, value)
    sites.says(200, b"User-agent: *\nDisallow: /x12345\n")  # 17 characters that count
    worker = fleet.worker()
    hosts = [f"{sites.url}/", f"{sites.other}/", f"{sites.third}/"]
    for url in hosts[:2]:
        await worker.permission(url)
    assert worker.known(hosts[0])  # so the other one was used least recently
    await worker.permission(hosts[2])
    assert [worker.known(url) is not None for url in hosts] == [True, False, True]
    assert (await worker.permission(hosts[1])).allowed
    assert sites.asked == {"/robots.txt": 3}
