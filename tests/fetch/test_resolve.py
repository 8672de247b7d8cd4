"""The resolver: one lookup per host and TTL, and the seam where addresses are refused."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import FetchError
from crawler.fetch.resolve import Resolver

from .conftest import Names

pytestmark = pytest.mark.anyio


async def test_many_askers_share_one_lookup(names: Names) -> None:
    names.addresses = {"one.test": ["192.0.2.1"]}
    resolver = Resolver()
    names.hold.clear()
    askers = [asyncio.create_task(resolver.address("one.test")) for _ in range(50)]
    await names.asking.wait()
    askers[0].cancel()  # the one who started the lookup leaves
    names.hold.set()
    assert await asyncio.gather(*askers[1:]) == ["192.0.2.1"] * 49
    assert names.asked == ["one.test"]


async def test_an_answer_is_kept_for_the_ttl_and_no_longer(names: Names) -> None:
    now = 0.0
    resolver = Resolver(ttl=300, clock=lambda: now)
    names.addresses = {"one.test": ["192.0.2.1"]}
    assert await resolver.address("one.test") == "192.0.2.1"
    names.addresses = {"one.test": ["192.0.2.2"]}
    now = 299.0
    assert await resolver.address("one.test") == "192.0.2.1"
    now = 300.0
    assert await resolver.address("one.test") == "192.0.2.2"
    assert len(names.asked) == 2


async def test_a_failure_is_told_to_everyone_and_not_kept(names: Names) -> None:
    resolver = Resolver()
    failures = await asyncio.gather(*(resolver.address("new.test") for _ in range(3)), return_exceptions=True)
    assert [(type(failure), getattr(failure, "kind", "")) for failure in failures] == [(FetchError, "dns")] * 3
    names.addresses = {"new.test": ["192.0.2.1"]}
    assert await resolver.address("new.test") == "192.0.2.1"
    assert len(names.asked) == 2


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "two..dots.test", "unresolvable.invalid", ""])
async def test_a_name_that_cannot_be_looked_up_fails_unsent(host: str) -> None:
    with pytest.raises(FetchError) as failure:
        await Resolver().address(host)
    assert (failure.value.kind, failure.value.sent) == ("dns", False)


async def test_the_first_address_that_is_allowed_is_taken(names: Names) -> None:
    names.addresses = {"mixed.test": ["10.1.2.3", "192.0.2.1", "192.0.2.2"]}
    resolver = Resolver(allow=lambda address: str(address) != "10.1.2.3")
    assert await resolver.address("mixed.test") == "192.0.2.1"


@pytest.mark.parametrize("host", ["inner.test", "10.1.2.3", "[::1]", "::1"])
async def test_a_host_with_no_allowed_address_is_refused_unsent(names: Names, host: str) -> None:
    names.addresses = {"inner.test": ["10.1.2.3", "10.1.2.4"]}
    resolver = Resolver(allow=lambda address: str(address) not in {"10.1.2.3", "10.1.2.4", "::1"})
    with pytest.raises(FetchError) as failure:
        await resolver.address(host)
    assert (failure.value.kind, failure.value.sent) == ("address", False)


async def test_an_address_is_its_own_answer(names: Names) -> None:
    resolver = Resolver()
    assert await resolver.address("192.0.2.7") == "192.0.2.7"
    assert await resolver.address("[2001:db8::1]") == "2001:db8::1"
    assert names.asked == []


async def test_what_has_expired_is_forgotten(names: Names) -> None:
    now = 0.0
    resolver = Resolver(ttl=10, clock=lambda: now)
    for minute in range(100):
        now = minute * 60.0
        host = f"host{minute}.test"
        names.addresses[host] = ["192.0.2.1"]
        await resolver.address(host)
    assert len(resolver._known) == 1
