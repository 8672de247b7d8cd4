"""The resolver: one lookup for a host and its TTL, and the refusal of addresses."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import FetchError
from crawler.fetch.network.address import Guard
from crawler.fetch.network.resolve import Resolver
from tests.crawler.fetch.conftest import Names
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_many_callers_share_one_lookup(names: Names) -> None:
    names.addresses = {"one.test": ["9.9.9.1"]}
    resolver = Resolver()
    names.responding.clear()
    callers = [asyncio.create_task(resolver.address("one.test")) for _ in range(50)]
    await eventually(lambda: bool(names.requested), "the lookup")
    callers[0].cancel()  # the caller that started the lookup
    names.responding.set()
    assert await asyncio.gather(*callers[1:]) == ["9.9.9.1"] * 49
    assert names.requested == ["one.test"]
    assert resolver.lookups == 1


async def test_an_address_is_kept_for_the_ttl_and_no_longer(names: Names) -> None:
    now = 0.0
    resolver = Resolver(ttl=300, clock=lambda: now)
    names.addresses = {"one.test": ["9.9.9.1"]}
    assert await resolver.address("one.test") == "9.9.9.1"
    names.addresses = {"one.test": ["9.9.9.2"]}
    now = 299.0
    assert await resolver.address("one.test") == "9.9.9.1"
    now = 300.0
    assert await resolver.address("one.test") == "9.9.9.2"
    assert (len(names.requested), resolver.lookups) == (2, 2)


async def test_a_failure_is_raised_to_every_caller_and_kept_for_a_short_while(names: Names) -> None:
    now = 0.0
    resolver = Resolver(failure_ttl=5, clock=lambda: now)
    for now in (0.0, 4.9):  # noqa: B007 - the resolver reads this clock
        failures = await asyncio.gather(*(resolver.address("new.test") for _ in range(3)), return_exceptions=True)
        assert [(type(failure), getattr(failure, "kind", "")) for failure in failures] == [(FetchError, "dns")] * 3
    assert len(names.requested) == 1
    names.addresses = {"new.test": ["9.9.9.1"]}
    now = 5.0
    assert await resolver.address("new.test") == "9.9.9.1"
    assert len(names.requested) == 2


async def test_a_silent_name_service_is_an_error_and_stops_no_other_host(names: Names) -> None:
    names.addresses = {"slow.test": ["9.9.9.1"]}
    names.responding.clear()
    resolver = Resolver(lookup_timeout=0.2)
    with pytest.raises(FetchError, match="slow.test: no response in 0.2 s") as failure:
        await resolver.address("slow.test")
    assert (failure.value.kind, failure.value.sent) == ("dns", False)
    names.responding.set()
    names.addresses["quick.test"] = ["9.9.9.2"]
    assert await resolver.address("quick.test") == "9.9.9.2"


async def test_lookups_of_many_hosts_run_at_the_same_time(names: Names) -> None:
    names.addresses = {f"host{n}.test": ["9.9.9.1"] for n in range(20)}
    names.responding.clear()
    resolver = Resolver()
    lookups = asyncio.gather(*(resolver.address(host) for host in names.addresses))
    await eventually(lambda: len(names.requested) == 20, "20 lookups at once")
    names.responding.set()
    assert await lookups == ["9.9.9.1"] * 20


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "two..dots.test", "unresolvable.invalid", ""])
async def test_a_name_that_cannot_be_looked_up_fails_unsent(host: str) -> None:
    with pytest.raises(FetchError) as failure:
        await Resolver().address(host)
    assert (failure.value.kind, failure.value.sent) == ("dns", False)


async def test_the_first_address_that_is_allowed_is_taken(names: Names) -> None:
    names.addresses = {"mixed.test": ["10.1.2.3", "9.9.9.1", "9.9.9.2"]}
    assert await Resolver().address("mixed.test") == "9.9.9.1"


@pytest.mark.parametrize(
    ("host", "address"),
    [("inner.test", "10.1.2.3"), ("10.1.2.3", "10.1.2.3"), ("[::1]", "::1"), ("::1", "::1")],
)
async def test_a_host_with_no_allowed_address_is_refused_unsent_and_the_error_says_how_to_allow_it(
    names: Names, host: str, address: str
) -> None:
    names.addresses = {"inner.test": ["10.1.2.3", "10.1.2.4"]}
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(FetchError) as failure:
            await resolver.address(host)
        assert (failure.value.kind, failure.value.sent) == ("address", False)
        what = host if host == address else f"{host} is at {address}, which"
        assert f"{what} is not public; --allow-private {address} " in str(failure.value)
    assert resolver.lookups == (host == "inner.test")
    assert await Resolver(Guard([address])).address(host) == address


async def test_a_name_that_is_rebound_to_a_private_address_is_refused_when_its_ttl_is_over(names: Names) -> None:
    now = 0.0
    resolver = Resolver(ttl=300, clock=lambda: now)
    names.addresses = {"rebound.test": ["9.9.9.1"]}
    assert await resolver.address("rebound.test") == "9.9.9.1"
    names.addresses = {"rebound.test": ["169.254.169.254"]}
    now = 300.0
    with pytest.raises(FetchError, match="rebound.test is at 169.254.169.254"):
        await resolver.address("rebound.test")


async def test_an_address_as_host_needs_no_lookup(names: Names) -> None:
    resolver = Resolver()
    assert await resolver.address("9.9.9.7") == "9.9.9.7"
    assert await resolver.address("[2606:4700::1]") == "2606:4700::1"
    assert names.requested == []


async def test_expired_addresses_and_the_oldest_of_too_many_are_dropped(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    resolver = Resolver(ttl=10, clock=lambda: now)
    for minute in range(50):
        now = minute * 60.0
        await resolver.address(f"9.9.9.{minute}")
    assert len(resolver._cached) == 1
    monkeypatch.setattr("crawler.fetch.network.resolve.MAX_CACHED_HOSTS", 5)
    for number in range(50):
        await resolver.address(f"9.9.8.{number}")
    assert len(resolver._cached) == 5
