"""Thousands of schedules of lease and commit on a simulated clock. A failure shows its seed and its steps.

`SEED=n pytest tests/simulation -k few_hundred` plays that schedule again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from coordinator.redis.scripts import source
from crawler.worker import Worker
from tests.simulation.processes import Flush
from tests.simulation.stage import Stage
from tests.simulation.truth import Broken

FEW, MANY, PART = 200, 10_000, 500
SEEDS_PER_MUTATION = 2000
Staged = Callable[..., Stage]

# A rule that is taken out of a script: {script: (text, other text)}. The simulation must find each of them.
MUTATIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "complete does not look at the lease": {
        "queue/complete": ("if not is_alive(worker) then", "if false then"),
    },
    "renew revives a lease that has ended": {
        "run/renew": ("if verb == 'renew' and not is_alive(worker) then", "if false then"),
    },
    "a lease ends a moment late": {
        "queue/claim_block": ("tonumber(lease_end_ms) > now_ms", "tonumber(lease_end_ms) + 2000 > now_ms"),
    },
    "claim_block does not look at the epoch": {
        "queue/claim_block": ("if is_other_run() then", "if false then"),
    },
    "complete does not look at the epoch": {
        "queue/complete": ("if is_other_run() then", "if false then"),
    },
    "a claim whose result got lost is not repeated": {
        "queue/claim_block": ("if number == call_number then", "if false then"),
    },
    "what dead workers had is never claimed": {
        "queue/claim_block": ("if consumer.name ~= worker and not is_alive(consumer.name) then", "if false then"),
    },
    "complete does not look at the receipt": {
        "queue/complete": ("if redis.call('HGET', receipts_key, worker) ~= sequence then", "if true then"),
    },
    "a repeated completion defers its keys again": {
        "queue/complete": ("local deferred = 0", "end do local deferred = 0"),
    },
    "keys that are due are published while they stay in the deferred set": {
        "queue/requeue_due": ("redis.call('ZREM', deferred_due_key, ARGV[at])", ""),
    },
    "requeue_due does not look whether somebody was faster": {
        "queue/requeue_due": ("if not redis.call('ZSCORE', deferred_due_key, ARGV[at]) then return 'moved' end", ""),
    },
    "a deposed coordinator requeues": {
        "queue/requeue_due": ("if not is_leader() then", "if false then"),
    },
    "deferred keys are not counted": {
        "queue/complete": ("redis.call('HINCRBY', state_key, 'published', deferred)", ""),
    },
    "publish does not compare the cursor": {
        "queue/publish": ("if cursor ~= cursor_before then", "if false then"),
    },
    "a deposed coordinator publishes": {
        "queue/publish": ("if not is_leader() then", "if false then"),
    },
    "a block counts as resolved each time that it is completed": {
        "queue/complete": (
            "if remove_entry(stream_key, entry_id) then",
            "if remove_entry(stream_key, entry_id) or true then",
        ),
    },
    "outcomes are counted without asking the done set": {
        "queue/complete": ("(newly_done_of[outcome] or 0) + added", "(newly_done_of[outcome] or 0) + count"),
    },
    "a run is resolved when its source is exhausted, whatever the counts say": dict.fromkeys(
        ("run/check_resolved", "run/renew"),
        ("exhausted == '1' and (published or '0') == (resolved or '0')", "exhausted == '1'"),
    ),
    "a replan leaves the pending deliveries behind": {
        "run/replan": ("for key = READY_AT, #KEYS do", "for key = READY_AT, READY_AT do"),
    },
    "a block that was split is counted twice": {
        "queue/split": ("redis.call('HINCRBY', state_key, 'published', -keys_before)", ""),
    },
    "found keys are published again when the call is repeated": {
        "follow/publish_found": ("if redis.call('HGET', receipts_key, receipt) == sequence then", "if false then"),
    },
    "found keys are published without a lease": {
        "follow/publish_found": ("if not is_alive(worker) then", "if false then"),
    },
    "a pointer is published twice": {
        "follow/publish_frontier": ("if redis.call('ZREM', frontier_key, pointer) == 0 then", "if false then"),
    },
    "a run is resolved while found keys are pending": dict.fromkeys(
        ("run/check_resolved", "run/renew"), (" and (pending or '0') == '0'", "")
    ),
    "a deposed coordinator publishes found keys": {
        "follow/publish_frontier": ("if not is_leader() then", "if false then"),
    },
}


@pytest.fixture
def staged(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Staged]:
    """Makes stages. The warnings of their processes are not shown."""
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
    """The last line of the first failure; None when no seed fails."""
    for seed in range(SEEDS_PER_MUTATION):
        try:
            stage.play(seed)
        except Broken as broken:
            return str(broken).splitlines()[-1]
    return None


async def ack_first(worker: Worker) -> None:
    """`Worker._flush` in the wrong order: first the completion in Redis, then the commit."""
    while (load := await worker.batch.due()) is not None:
        await worker._complete(load)
        await worker.writer.write(load.pages)
        worker.batch.flushed()


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
    for call in (
        "queue/claim_block",
        "commit",
        "queue/complete",
        "queue/publish",
        "run/renew",
        "queue/claim_shard",
        "run/release",
        "follow/publish_found",
        "follow/publish_frontier",
    ):
        assert f"{call} its result gets lost:" in met
    for start in (
        "queue/split",
        "run/done_add",
        "queue/requeue_due",
        "a stranger deletes an entry",
        "a stranger deletes all entries",
        "run/replan -> 1",
        "run/replan -> epoch",
        "fails on ",
    ):
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
            found = source(script).count(text)
            assert found == 1, f"{script} says {text!r} {found} times"


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_script_that_forgets_a_rule_is_found(staged: Staged, mutation: Mapping[str, tuple[str, str]]) -> None:
    assert broken_by(staged(mutation)) is not None


def test_done_before_commit_is_found(staged: Staged) -> None:
    found = broken_by(staged(flush=ack_first))
    assert found is not None
    assert "never committed" in found
