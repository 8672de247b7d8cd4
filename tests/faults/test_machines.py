"""Several hosts: slow and lossy links, hosts that vanish, partitions, wrong clocks, hosts that are slow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import pytest

from tests.faults.crawl import IN_HAND, KEYS, lasting
from tests.faults.crawl_on_hosts import Fleet, new_fleet, within
from tests.faults.table import Row
from tests.faults.test_postgres import COMMIT
from tests.faults.test_workers import FAKETIME
from tests.live.shell import Shell
from tests.servers.hosts import NoHosts
from tests.servers.services_host import POSTGRES_PORT, REDIS_PORT
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

# So slow that the run goes on while leases end.
RATE = 60


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
    """TCP repeats what is lost, and nothing is requested twice."""
    await fleet.start("c1", "c2", "w1", "w2", "w3", rate=200)
    await fleet.ready("w1", "w2", "w3")
    for host in fleet.hosts.values():
        host.link.delay, host.link.loss = 0.025, 0.02
    await fleet.complete()
    assert fleet.router.dropped
    fleet.budget_kept(200)
    await fleet.crawl.audited("23 links that delay and lose", "50 ms there and back, 2 % lost")


@pytest.mark.slow
async def test_a_coordinator_and_a_worker_host_vanish(fleet: Fleet) -> None:
    """In a transaction, whose locks would stop who takes over. Postgres sees that nobody is there, and ends it."""
    await fleet.start("c1", "c2", "w1", "w2", "w3", rate=RATE)
    await fleet.ready("w1", "w2", "w3")
    leader, lost = fleet.hosts[await fleet.leader()], fleet.hosts["w1"]
    lost.link.fails_at = lambda packet: COMMIT in packet
    await eventually(lambda: not lost.link.up, "a batch of the worker", seconds=60)
    began = monotonic()
    await lost.vanish()
    await leader.vanish()

    async def other_leads() -> bool:
        return await fleet.leader() not in ("", leader.name)

    async def released() -> bool:
        return await fleet.working() == ["w2", "w3"] and not await fleet.sessions(lost)

    async def claimed() -> bool:
        return not await fleet.blocks(lost)

    led = await within(other_leads, "the other coordinator to lead", began)
    fleet.crawl.recovery = await within(released, "its lease and its locks to end", began)
    taken = await within(claimed, "its blocks to be claimed by others", began, seconds=40)
    await fleet.complete()
    fleet.budget_kept(RATE)
    injected = f"before a COMMIT; led after {led:.1f} s, blocks claimed after {taken:.1f} s"
    await fleet.crawl.audited("23 a coordinator and a worker host vanish", injected, again=IN_HAND)


@pytest.mark.slow
async def test_all_hosts_vanish_and_others_come(fleet: Fleet) -> None:
    """`status` says so when the leases have ended. The new hosts go on with the run."""
    await fleet.start("c1", "w1", rate=700)
    await fleet.crawl.requested(KEYS // 10)
    for host in fleet.hosts.values():
        await host.vanish()
    began = monotonic()

    async def nobody() -> bool:
        snapshot = await fleet.snapshot()
        return not snapshot.workers and snapshot.leader is None

    await within(nobody, "their leases to end", began)
    said = await fleet.status()
    assert said["absent"] == "nobody works on it and nobody coordinates it: start `shardcrawl run` again"
    await fleet.start("w2", "c2", rate=700)
    await fleet.complete()
    await fleet.crawl.audited("23 all hosts vanish", "others are started", again=2 * IN_HAND)


@pytest.mark.slow
async def test_hosts_cut_off_from_redis(fleet: Fleet) -> None:
    """The others take over when the leases have ended. Later these hosts work again, and nothing is doubled."""
    await fleet.start("c1", "c2", "w1", "w2", rate=RATE)
    await fleet.ready("w1", "w2")
    await fleet.crawl.requested(KEYS // 20)
    leader, worker = fleet.hosts[await fleet.leader()], fleet.hosts["w1"]
    began = monotonic()
    for host in (leader, worker):
        host.link.blocked = frozenset({REDIS_PORT})

    async def others_alone() -> bool:
        return await fleet.leader() not in ("", leader.name) and await fleet.working() == ["w2"]

    taken = await within(others_alone, "the other hosts to work alone", began)
    status = await fleet.status()
    assert status["workers"] == 1
    assert not status["absent"]
    assert status["coordinator"].rsplit("-", 2)[0] != leader.name
    for host in (leader, worker):
        host.link.blocked = frozenset()
    await fleet.ready("w1", "w2")
    await fleet.crawl.recovered()
    await fleet.complete()
    fleet.budget_kept(RATE)
    injected = f"a coordinator and a worker host; others alone after {taken:.1f} s"
    await fleet.crawl.audited("23 hosts without Redis", injected, again=2 * IN_HAND)


@pytest.mark.slow
async def test_hosts_cut_off_from_postgres(fleet: Fleet) -> None:
    """Their workers say within 30 s what they wait for, the others go on. Later they store what they have fetched."""
    await fleet.start("c1", "c2", "w1", "w2", rate=RATE)
    await fleet.ready("w1", "w2")
    await fleet.crawl.requested(KEYS // 20)
    cut = (fleet.hosts[await fleet.leader()], fleet.hosts["w1"])
    before = await fleet.crawl.pages()
    began = monotonic()
    for host in cut:
        host.link.blocked = frozenset({POSTGRES_PORT})

    async def waits() -> bool:
        return bool((await fleet.snapshot()).waits)

    seen = await within(waits, "a worker to say what it waits for", began, seconds=40)
    status = await fleet.status()
    assert status["limited_by"]["what"] == "service"
    assert all("Postgres" in cause for cause in status["waits"]), status
    assert (status["workers"], status["absent"]) == (2, "")
    await fleet.crawl.recovered(before)
    for host in cut:
        host.link.blocked = frozenset()
    ended = monotonic()

    async def goes_on() -> bool:
        return not (await fleet.snapshot()).waits

    fleet.crawl.recovery = await within(goes_on, "the worker to go on", ended, seconds=40)
    await fleet.complete()
    fleet.budget_kept(RATE)
    injected = f"a coordinator and a worker host; `status` says it after {seen:.1f} s"
    await fleet.crawl.audited("23 hosts without Postgres", injected, again=0)


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME, reason="there is no libfaketime; install Debian's faketime")
async def test_hosts_with_a_wrong_clock_and_a_slow_host(fleet: Fleet) -> None:
    """An hour ahead, and stopped three quarters of the time: nothing is taken over, doubled or sent too early."""
    ahead = {"LD_PRELOAD": FAKETIME[0], "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    await fleet.start("c1", "w1", rate=RATE, environ=ahead)
    await fleet.start("c2", "w2", "w3", rate=RATE)
    await fleet.ready("w1", "w2", "w3")
    for _ in range(6):
        slow = fleet.processes("w2")
        for process in slow:
            process.suspend()
        await lasting(1.5)
        for process in slow:
            process.resume()
        await lasting(0.5)
    assert await fleet.working() == ["w1", "w2", "w3"]
    await fleet.complete()
    fleet.budget_kept(RATE)
    await fleet.crawl.audited("23 a wrong clock and a slow host", "+1 h; SIGSTOP for 1.5 of 2 s")
