"""Thousands of schedules of lease and commit on a simulated clock; a failure tells its seed and its steps.

`SEED=n pytest tests/faults/test_simulation.py -k schedules` plays that one again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files

import pytest

from crawler.worker import Worker
from tests.simulation.processes import Flush
from tests.simulation.stage import Stage
from tests.simulation.truth import Broken

FEW, MANY, PART = 300, 10_000, 500
WITHIN = 2000
Staged = Callable[..., Stage]

# What an honest script says -> what a script says that forgot why.
MUTATIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "complete does not look at the lease": {
        "complete": ("if not ends or tonumber(ends) <= now then", "if false then"),
    },
    "renew revives a lease that has ended": {
        "renew": ("if ARGV[4] == 'renew' and (not ends or tonumber(ends) <= now) then", "if false then"),
    },
    "a lease ends a moment late": {
        "claim": ("return ends and tonumber(ends) > now", "return ends and tonumber(ends) + 2000 > now"),
    },
    "claim does not look at the epoch": {
        "claim": ("if redis.call('HGET', KEYS[5], 'epoch') ~= ARGV[3] then", "if false then"),
    },
    "complete does not look at the epoch": {
        "complete": ("if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then", "if false then"),
    },
    "a claim whose answer got lost is not repeated": {
        "claim": ("if number == ARGV[4] then", "if false then"),
    },
    "what dead workers had is never claimed": {
        "claim": ("if named['name'] ~= ARGV[1] and not living(named['name']) then", "if false then"),
    },
    "a repeated completion defers its keys again": {
        "complete": ("if redis.call('HGET', KEYS[3], ARGV[2]) ~= ARGV[3] then", "if true then"),
    },
    "keys that are due are published while they stay in the delayed set": {
        "readmit": ("redis.call('ZREM', KEYS[4], ARGV[at])", ""),
    },
    "readmit does not look whether somebody was faster": {
        "readmit": ("if not redis.call('ZSCORE', KEYS[4], ARGV[at]) then return 'moved' end", ""),
    },
    "a deposed planner readmits": {
        "readmit": ("if redis.call('GET', KEYS[2]) ~= ARGV[2] then", "if false then"),
    },
    "deferred keys are not counted": {
        "complete": ("redis.call('HINCRBY', KEYS[1], 'published', deferred)", ""),
    },
    "publish does not compare the cursor": {
        "publish": ("if state[2] ~= ARGV[3] then", "if false then"),
    },
    "a deposed planner publishes": {
        "publish": ("if redis.call('GET', KEYS[3]) ~= ARGV[2] then", "if false then"),
    },
    "a block counts as resolved each time that it is completed": {
        "complete": ("if redis.call('XACK', stream, 'workers', entry) == 1 then", "if true then"),
    },
    "outcomes are counted without asking the done set": {
        "complete": ("new[outcome] = (new[outcome] or 0) + added", "new[outcome] = (new[outcome] or 0) + count"),
    },
    "a run is settled when its source is exhausted, whatever the counts say": {
        "settle": ("run[3] == '1' and (run[4] or '0') == (run[5] or '0')", "run[3] == '1'"),
    },
    "a refeed leaves the pending deliveries behind": {
        "refeed": ("for key = 4, #KEYS do", "for key = 4, 4 do"),
    },
    "a block that was split is counted twice": {
        "split": ("redis.call('HINCRBY', KEYS[1], 'published', -tonumber(ARGV[5]))", ""),
    },
}


@pytest.fixture
def staged(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Staged]:
    """Makes the stage; the processes' warnings are no news here."""
    stages: list[Stage] = []

    def make(mutations: Mapping[str, tuple[str, str]] | None = None, flush: Flush = Worker._flush) -> Stage:
        stages.append(Stage(redis_url, monkeypatch, mutations, flush))
        return stages[-1]

    logging.disable(logging.CRITICAL)
    yield make
    logging.disable(logging.NOTSET)
    for stage in stages:
        stage.close()


def broken_by(stage: Stage) -> str | None:
    """What the first seed that finds something says, None when none of them does."""
    for seed in range(WITHIN):
        try:
            stage.play(seed)
        except Broken as broken:
            return str(broken).splitlines()[-1]
    return None


async def ack_first(worker: Worker) -> None:
    """`Worker._flush` in the wrong order: done and ack, then the commit."""
    while (load := await worker._batch.due()) is not None:
        await worker._complete(load)
        await worker._writer.write(load.pages)
        worker._batch.flushed()


def test_a_few_hundred_schedules_keep_every_promise(staged: Staged) -> None:
    stage = staged()
    met: set[str] = set()
    seeds = [int(os.environ["SEED"])] if "SEED" in os.environ else range(FEW)
    for seed in seeds:
        met.update(line.split(maxsplit=3)[3] for line in stage.play(seed))
    if len(seeds) == 1:
        return
    for what in ("ends: LeaseLost", "ends: EpochLost", "is killed", "dies of that key", "Redis is wiped", "drains"):
        assert what in met, f"no schedule had one in which a process or Redis {what}"
    for call in ("claim", "commit", "complete", "publish", "renew", "seek", "release"):
        assert f"{call} its answer gets lost:" in met
    for start in ("split", "remember", "readmit", "a stranger deletes an entry", "refeed -> 1"):
        assert any(what.startswith(start) for what in met), f"no schedule has {start}"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, MANY, PART))
def test_ten_thousand_schedules_keep_every_promise(staged: Staged, first: int) -> None:
    stage = staged()
    for seed in range(first, first + PART):
        stage.play(seed)


def test_every_mutation_has_something_to_change() -> None:
    for mutation in MUTATIONS.values():
        for script, (text, _) in mutation.items():
            found = files("coordinator").joinpath("lua", f"{script}.lua").read_text().count(text)
            assert found == 1, f"{script}.lua says {text!r} {found} times"


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_script_that_forgets_a_rule_is_found(staged: Staged, mutation: Mapping[str, tuple[str, str]]) -> None:
    assert broken_by(staged(mutation)) is not None


def test_done_before_commit_is_found(staged: Staged) -> None:
    found = broken_by(staged(flush=ack_first))
    assert found is not None
    assert "never committed" in found
