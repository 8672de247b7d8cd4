"""A process is killed at every failpoint: nothing is lost, and nothing is stored twice."""

from __future__ import annotations

import signal

import pytest

from coordinator import failpoints
from tests.faults.crawl import IN_HAND, KEYS, Crawl
from tests.live.shell import kill_tree
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

PLANNER = ("read", "published")
OPENING = ("made", "rebuilt")
COMMANDS = ("cancelled", "drained", "erased", "unlisted", "detached", "dropped")  # see tests/live/test_versions.py
EXPORT = ("filed", "listed", "whole")  # see tests/live/test_export.py
FOLLOWING = ("found", "followed", "named")  # see test_following
WORKER = tuple(step for step in failpoints.FAILPOINTS if step not in PLANNER + OPENING + FOLLOWING + COMMANDS + EXPORT)
DEATHS = [("coordinator", step) for step in PLANNER] + [("worker-1", step) for step in WORKER]
QUICK = ("published", "committed")


@pytest.mark.parametrize(
    ("who", "step"), [pytest.param(*death, marks=() if death[1] in QUICK else pytest.mark.slow) for death in DEATHS]
)
async def test_a_child_that_dies_at_a_step(embedded_crawl: Crawl, who: str, step: str) -> None:
    crawl = embedded_crawl
    running = await crawl.start(rate=None, workers=1, environ={"FAILPOINT": f"{who}:{step}"})
    ended = await crawl.complete(running)
    assert f"{who} was ended by SIGKILL" in ended.err
    number = "2" if step == "copied" else "1"
    await crawl.audited(f"{number} killed at a step", f"{who}: {step}", again=IN_HAND)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["fetched", "copied", "committed", "completed"])
async def test_a_worker_that_dies_in_the_middle_of_its_work(embedded_crawl: Crawl, step: str) -> None:
    """Both workers have claimed blocks; the other worker goes on."""
    crawl = embedded_crawl
    times = 200 if step == "fetched" else 3
    running = await crawl.start(rate=300, environ={"FAILPOINT": f"worker-1:{step}:{times}"})
    ended = await crawl.complete(running)
    assert "worker-1 was ended by SIGKILL" in ended.err
    number = "2" if step == "copied" else "1"
    await crawl.audited(f"{number} killed in mid-run", f"worker-1: {step}, time {times}", again=IN_HAND)


@pytest.mark.slow
async def test_a_command_that_dies_between_postgres_and_redis_when_it_makes_a_run(embedded_crawl: Crawl) -> None:
    crawl = embedded_crawl
    ended = await (await crawl.start(environ={"FAILPOINT": "opening:made"})).end()
    assert ended.code == -signal.SIGKILL
    await crawl.complete(await crawl.start(rate=None))
    await crawl.audited("1 killed at a step", "opening: made")


@pytest.mark.slow
async def test_everything_dies_between_the_final_counts_and_redis(embedded_crawl: Crawl) -> None:
    """The next command completes the run in Redis too, so that no key of the queue is left there."""
    crawl = embedded_crawl
    running = await crawl.start(rate=None, workers=1, environ={"FAILPOINT": "worker-1:finished"})
    await eventually(lambda: not running.children("worker-1") and crawl.upstream.requests == KEYS, "the worker's death")
    kill_tree(running.process.pid)
    await running.process.wait()
    ended = await crawl.complete(await crawl.start())
    assert "complete" in ended.out
    await crawl.audited("1 killed at a step", "everything: finished")


@pytest.mark.slow
async def test_a_command_that_dies_while_it_rebuilds(embedded_crawl: Crawl) -> None:
    """Postgres gets the epoch last, so a rebuild that was not finished begins again. It costs no request."""
    crawl = embedded_crawl
    running = await crawl.start()
    await crawl.requested(KEYS // 2)
    running.interrupt()
    assert (await running.end()).code == 130
    (crawl.shell.data / "redis").rename(crawl.shell.data / "redis-lost")
    ended = await (await crawl.start(environ={"FAILPOINT": "opening:rebuilt"})).end()
    assert ended.code == -signal.SIGKILL
    ended = await crawl.complete(await crawl.start(rate=None))
    assert "rebuilt from Postgres" in ended.err
    await crawl.audited("1 killed at a step", "opening: rebuilt")
