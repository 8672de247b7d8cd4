"""Several hosts: slow and lossy links, hosts that vanish, partitions, wrong clocks, hosts that are slow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import pytest

from tests.faults.crawl import IN_HAND, KEYS, lasting
from tests.faults.fleet import Fleet, new_fleet, within
from tests.faults.table import Row
from tests.live.shell import Shell
from tests.servers.hosts import NoHosts
from tests.servers.links import ports_of
from tests.servers.services_host import POSTGRES_PORT, REDIS_PORT
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fleet(
    tmp_path: Path, shell: Shell, new_data: Callable[[Path], None], report: Callable[[Row], None]
) -> AsyncIterator[Fleet]:
    """A host with Redis, Postgres and the upstream."""
    new_data(tmp_path / "services")
    try:
        async with new_fleet(tmp_path, shell, tmp_path / "services", report) as fleet:
            yield fleet
    except NoHosts as error:
        pytest.skip(str(error))


@pytest.mark.slow
async def test_links_that_delay_and_lose_packets(fleet: Fleet) -> None:
    """TCP repeats what is lost. Nothing is requested twice."""
    await fleet.start("c1", "c2", "w1", "w2", "w3", rate=200)
    for host in fleet.hosts.values():
        host.link.delay, host.link.loss = 0.025, 0.02
    await fleet.complete()
    # A packet that was lost arrives after 0.2 s and more, and those behind it on its connection with it.
    fleet.budget_kept(200, late=1.0)
    await fleet.crawl.audited("23 links that delay and lose", "50 ms there and back, 2 % lost")


@pytest.mark.slow
async def test_a_coordinator_and_a_worker_host_vanish(fleet: Fleet) -> None:
    """In the middle of a COPY, which holds locks in Postgres: the others take over before these end by themselves."""
    rate = 60
    await fleet.start("c1", "c2", "w1", "w2", "w3", rate=rate)
    await fleet.ready("w1", "w2", "w3")
    await fleet.crawl.requested(KEYS // 10)
    leader, lost = fleet.hosts[await fleet.leader()], fleet.hosts["w1"]
    lost.link.fails_at = lambda packet: len(packet) > 1000 and POSTGRES_PORT in ports_of(packet)
    await eventually(lambda: not lost.link.up, "a COPY of the worker")
    began = monotonic()
    await lost.vanish()
    await leader.vanish()
    requested = {f"{fleet.crawl.upstream.url}{path}" for path in fleet.crawl.upstream.paths}
    in_hand = requested - await fleet.stored()
    assert in_hand

    async def leads() -> bool:
        return await fleet.leader() not in ("", leader.name)

    async def stored() -> bool:
        return in_hand <= await fleet.stored()

    led = await within(leads, "the other coordinator to lead", began)
    assert (await fleet.status())["workers"] == 2
    fleet.crawl.recovery = await within(stored, "others to store what the host had fetched", began)
    print(f"leads after {led:.1f} s, stored after {fleet.crawl.recovery:.1f} s")
    await fleet.complete()
    fleet.budget_kept(rate)
    await fleet.crawl.audited("23 a coordinator and a worker host vanish", "in mid-COPY", again=IN_HAND)
