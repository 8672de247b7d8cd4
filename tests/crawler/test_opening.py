from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, PostgresUnavailable, RedisUnavailable, SourceError, UsageError
from coordinator.model import Block, Epoch, Outcome, RunState, ShardId, Steering
from coordinator.queue.done import DoneSet
from coordinator.queue.registry import RunInRedis, RunRecord, Runs
from coordinator.queue.sharding import Layout, digest
from coordinator.queue.streams import Streams
from coordinator.redis.keys import RunKeys
from coordinator.status import read_counts, read_snapshot
from crawler.job.job import read_job
from crawler.local.ending import end_of
from crawler.local.services import Addresses
from crawler.model import Page
from crawler.opening import (
    AlreadyComplete,
    Begin,
    GoOn,
    OpenedRun,
    Opening,
    Rebuild,
    Refuse,
    decide_opening,
    open_run,
)
from crawler.runs.naming import name_lock
from crawler.runs.steering import steer_run
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.reasons import PagesToRetry
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import MOMENT, a_document, a_job, a_page, finished

pytestmark = pytest.mark.anyio

KEYS = [f"item-{number}" for number in range(1200)]
TABLES = [{"name": "facts", "columns": {"n": "bigint", "t": "text"}}]


@dataclass
class Place:
    """Redis, Postgres and a folder with a corpus of 1,200 keys."""

    redis: Redis
    database: str
    folder: Path
    eye: PostgresConnection

    def document(self, **sections: Any) -> dict[str, Any]:
        return {
            "run": {"name": "test"},
            "source": {"path": "keys.txt"},
            "request": {"url": "https://upstream.example/{key}"},
        } | sections

    async def open(self, **sections: Any) -> OpenedRun:
        async with asyncio.timeout(60):
            job = read_job(self.document(**sections), str(self.folder))
            return await open_run(self.redis, self.database, job)

    async def record(self) -> RunRecord:
        """What Postgres has of the run."""
        run = await Catalogue(self.eye).find("test")
        assert run is not None
        assert run.record is not None
        return run.record

    async def store(self, pages: Sequence[Page]) -> None:
        record = await self.record()
        writer = Writer(self.database, RunTables(record.run_id), record.epoch, ())
        try:
            await writer.write(pages)
        finally:
            await writer.close()

    async def done(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that Redis knows to be done."""
        record = await self.record()
        done = DoneSet(self.redis, RunKeys("test"), record.layout, record.epoch)
        by_digest = {digest(key): key for key in keys}
        return {by_digest[found] for found in await done.intersection(sorted(by_digest))}

    async def runs(self) -> list[tuple[str, str]]:
        """(name, epoch) of every run in Postgres."""
        return [tuple(row) for row in await self.eye.fetch("SELECT name, epoch FROM runs ORDER BY run_id")]


@pytest.fixture
async def place(redis: Redis, database: str, tmp_path: Path) -> AsyncIterator[Place]:
    (tmp_path / "keys.txt").write_text("\n".join(KEYS) + "\n")
    eye = await connect_postgres(database)
    yield Place(redis, database, tmp_path, eye)
    await eye.close()


async def test_a_run_that_a_worker_of_an_earlier_version_completes_is_published(place: Place, redis_url: str) -> None:
    opened = await place.open()
    assert opened.record is not None
    await place.store([a_page(key) for key in KEYS[:3]])
    # As version 4 of the schema did it: it has no corpora.
    await place.eye.execute("ALTER TABLE pages ATTACH PARTITION pages_r1 FOR VALUES IN (1)")
    await place.eye.execute("UPDATE runs SET state = 'complete', counts = '{\"stored\": 3}', published_at = now()")
    assert await place.eye.fetchval("SELECT count(*) FROM pages_current") == 0
    job = read_job(place.document(), str(place.folder))
    end = await end_of(Addresses(redis_url, place.database), place.redis, opened.record, job, 1.0)
    assert end.stored is not None
    assert end.stored.shortfall == ""
    assert await place.eye.fetchval("SELECT count(*) FROM pages_current") == 3


def stored_run(*, epoch: str = "new", complete: bool = False, **sections: Any) -> StoredRun:
    counts = {Outcome.STORED: 3} if complete else {}
    made = datetime.fromtimestamp(MOMENT, UTC)
    record = A_RECORD if epoch == A_RECORD.epoch else None
    return StoredRun(7, "test", a_document(**sections), Epoch(epoch), complete, counts, made, None, record=record)


A_RECORD = RunRecord("test", 7, Epoch("new"), Layout(1, 1), a_document(), ".")


OTHER: dict[str, Any] = {"source": {"path": "other.txt"}}
REFUSED = Refuse(
    UsageError,
    'run test was begun with another [source] path ("other.txt", now "keys.txt"): give the new run another --name',
)
IN_REDIS_ONLY = Refuse(
    EpochLost,
    "run test is in Redis but not in Postgres: is DATABASE_URL the right one? "
    "To begin anew give the run another --name",
)
RUNNING, COMPLETE = stored_run(), stored_run(complete=True)
RECORD, OLD_RECORD = RunInRedis("new", RunState.RUNNING), RunInRedis("old", RunState.RUNNING)
SAYS_COMPLETE, SAYS_RUBBISH = RunInRedis("new", RunState.COMPLETE), RunInRedis("new", None)


@pytest.mark.parametrize(
    ("stored", "in_redis", "expected"),
    [
        pytest.param(None, None, Begin(), id="nobody knows it"),
        pytest.param(None, RECORD, IN_REDIS_ONLY, id="only Redis knows it"),
        pytest.param(RUNNING, None, Rebuild(7), id="only Postgres knows it"),
        pytest.param(RUNNING, RECORD, GoOn(A_RECORD), id="both know it"),
        pytest.param(RUNNING, SAYS_COMPLETE, Rebuild(7), id="only Redis calls it complete"),
        pytest.param(RUNNING, SAYS_RUBBISH, Rebuild(7), id="Redis has no state of ours"),
        pytest.param(replace(RUNNING, record=None), RECORD, Rebuild(7), id="an older version made it"),
        pytest.param(RUNNING, OLD_RECORD, Rebuild(7), id="Redis has another beginning"),
        pytest.param(stored_run(epoch="void"), RECORD, Rebuild(7), id="its epoch is void"),
        pytest.param(COMPLETE, None, AlreadyComplete(COMPLETE, None), id="complete, and Redis has lost it"),
        pytest.param(COMPLETE, RECORD, AlreadyComplete(COMPLETE, RECORD), id="complete, and Redis knows it"),
        pytest.param(COMPLETE, OLD_RECORD, AlreadyComplete(COMPLETE, OLD_RECORD), id="complete, Redis has an old one"),
        pytest.param(stored_run(**OTHER), RECORD, REFUSED, id="another source"),
        pytest.param(stored_run(**OTHER), None, REFUSED, id="another source, and Redis has lost it"),
        pytest.param(stored_run(complete=True, **OTHER), RECORD, REFUSED, id="another source, and complete"),
        pytest.param(stored_run(store={"batch_rows": 5}), RECORD, GoOn(A_RECORD), id="a setting that may change"),
    ],
)
def test_what_both_servers_know_decides_how_a_run_is_opened(
    stored: StoredRun | None, in_redis: RunInRedis | None, expected: Opening
) -> None:
    assert decide_opening(a_job(), stored, in_redis) == expected


async def refusal(place: Place, **sections: Any) -> str:
    with pytest.raises(UsageError) as caught:
        await place.open(**sections)
    message = str(caught.value)
    assert "--name" in message
    assert len(message.splitlines()) == 1
    return message


async def test_a_new_run_is_made_in_postgres_and_in_redis(place: Place) -> None:
    opened = await place.open(run={"name": "test", "shards": 4})
    assert not opened.resumed
    assert opened.complete_run is None
    record = await place.record()
    assert record == opened.record
    assert await place.runs() == [("test", record.epoch)]
    assert (record.name, record.layout.shards) == ("test", 4)
    assert record.total == pytest.approx(1200, rel=0.2)
    assert record.fingerprint
    now = await read_counts(place.redis, record.name, record.total)
    assert (now.done, now.published, now.exhausted) == (0, 0, False)


async def test_a_new_run_has_an_epoch_of_its_own(place: Place) -> None:
    first = await place.open()
    second = await place.open(run={"name": "second"})
    assert first.record is not None
    assert second.record is not None
    assert first.record.epoch != second.record.epoch
    assert first.record.run_id != second.record.run_id


async def test_a_run_that_is_opened_again_goes_on_where_it_is(place: Place) -> None:
    first = await place.open()
    record = await place.record()
    keys = RunKeys("test")
    streams = Streams(place.redis, keys, record.layout, record.epoch)
    await place.redis.set(keys.leader, "planner")
    block = Block(ShardId(0), ("a", "b"))
    assert await streams.publish("planner", [block], skipped=0, cursor="0:0", next_cursor="4:2", exhausted=False)
    again = await place.open()
    assert again.resumed
    assert again.record == first.record
    now = await read_counts(place.redis, record.name, record.total)
    assert (now.published, now.queued) == (2, 2)
    assert await place.runs() == [("test", record.epoch)]


async def test_a_run_that_goes_on_takes_what_may_change_from_the_job_as_it_is_now(place: Place) -> None:
    await place.open()
    await place.open(
        run={"name": "test", "concurrency": 7},
        limits={"*": {"rate": 5}},
        store={"batch_rows": 10},
        retry={"attempts": 9},
    )
    document = (await place.record()).document
    assert document["run"]["concurrency"] == 7
    assert document["limits"] == {"*": {"rate": 5}}
    assert document["retry"] == {"attempts": 9}


@pytest.mark.parametrize("redis_lost", [False, True], ids=["goes on", "rebuilt"])
async def test_a_run_takes_the_parser_as_it_is_now_and_says_so(
    place: Place, caplog: pytest.LogCaptureFixture, redis_lost: bool
) -> None:
    """A machine without the parser leaves it as it was: `rebuild` may be called anywhere."""
    parse = {"python": "parse:rows"}
    (place.folder / "parse.py").write_text("first")
    opened = await place.open(parse=parse)
    assert opened.record is not None
    first = opened.record.parser_files
    assert (await place.record()).parser_files == first
    assert set(first) == {"parse.py"}
    for text, said in (("first", ""), ("edited", "the parser has changed"), (None, "this machine has no ")):
        if redis_lost:
            await place.redis.flushall()
        if text is None:
            (place.folder / "parse.py").unlink()
        else:
            (place.folder / "parse.py").write_text(text)
        caplog.clear()
        before = await place.record()
        await place.open(parse=parse)
        warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == bool(said)
        assert said in " ".join(warnings)
        assert ((await place.record()).parser_files == before.parser_files) is (text != "edited")


async def test_a_complete_run_is_opened_as_what_it_is(place: Place) -> None:
    await place.open()
    record = await place.record()
    await place.store([a_page(key) for key in KEYS[:10]])
    await finished(place.eye, RunTables(record.run_id), record.epoch)
    opened = await place.open()
    assert opened.complete_run is not None
    assert opened.complete_run.counts == {Outcome.STORED: 10}
    await place.redis.flushall()
    opened = await place.open()
    assert opened.complete_run is not None
    assert await Runs(place.redis).find("test") is None, "a complete run is not begun again"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": {"path": "other.txt"}}, "another [source]"),
        ({"source": {"python": "corpus:keys"}}, "another [source]"),
        ({"request": {"url": "https://other.example/{key}"}}, "another [request] url"),
        ({"request": {}}, "another [request] url"),
        ({"request": {"url": "https://upstream.example/{key}", "keys_per_request": 2}}, "[request] keys_per_request"),
        ({"tables": TABLES, "parse": {"python": "a:b"}}, "another [tables]"),
        ({"run": {"name": "test", "corpus": "other"}}, "another [run] corpus"),
    ],
)
@pytest.mark.parametrize("complete", [False, True], ids=["running", "complete"])
async def test_a_job_whose_keys_would_mean_something_else_is_refused(
    place: Place, change: dict[str, Any], words: str, complete: bool
) -> None:
    (place.folder / "other.txt").write_text("a\n")
    (place.folder / "corpus.py").write_text("def keys():\n    yield 'a'\n")
    await place.open()
    record = await place.record()
    if complete:
        await finished(place.eye, RunTables(record.run_id), record.epoch)
    assert words in await refusal(place, **change)
    assert await place.record() == record


async def test_the_order_of_a_tables_columns_is_not_another_table(place: Place) -> None:
    parse = {"python": "a:b"}
    await place.open(tables=TABLES, parse=parse)
    turned = [{"name": "facts", "columns": {"t": "text", "n": "bigint"}}]
    assert (await place.open(tables=turned, parse=parse)).resumed


@pytest.mark.parametrize("is_retried", [False, True])
async def test_a_source_file_that_changed_is_refused(place: Place, is_retried: bool) -> None:
    """Else keys that `retry` put back could be in it no longer, and would be lost."""
    await place.open()
    if is_retried:
        page = a_page(KEYS[0])
        page.fail("why")
        await place.store([page])
        await Catalogue(place.eye).reopen(RunTables((await place.record()).run_id), PagesToRetry())
    (place.folder / "keys.txt").write_text("\n".join([*KEYS[:-1], "another"]) + "\n")
    assert "keys.txt has changed since run test began" in await refusal(place)
    (place.folder / "keys.txt").write_text("\n".join(KEYS) + "\n")
    assert (await place.open()).resumed


async def test_a_source_that_cannot_be_opened_makes_no_run(place: Place) -> None:
    with pytest.raises(SourceError):
        await place.open(source={"path": "missing.txt"})
    assert await place.runs() == []
    assert await Runs(place.redis).names() == []


async def test_standard_input_is_not_read_to_open_a_run(place: Place) -> None:
    opened = await place.open(source={"path": "-"})
    assert opened.record is not None
    assert (opened.record.fingerprint, opened.record.total) == ("", None)
    assert (await place.open(source={"path": "-"})).resumed


async def half_stored(place: Place) -> RunRecord:
    """A run of which 700 keys are stored and 100 gone; returns how it stood in Redis."""
    await place.open()
    gone = [a_page(key, body=None) for key in KEYS[700:800]]
    for page in gone:
        page.outcome = Outcome.GONE
    await place.store([a_page(key) for key in KEYS[:700]] + gone)
    return await place.record()


async def rebuilt(place: Place, before: RunRecord) -> RunRecord:
    """See that the run goes on with everything that Postgres knows, and nothing else."""
    opened = await place.open()
    assert opened.resumed
    record = await place.record()
    assert opened.record == record
    assert record.run_id == before.run_id
    assert record.epoch != before.epoch
    assert await place.runs() == [("test", record.epoch)]
    assert await place.done(KEYS) == set(KEYS[:800])
    now = await read_counts(place.redis, record.name, record.total)
    assert {outcome: keys for outcome, keys in now.outcomes.items() if keys} == {Outcome.STORED: 700, Outcome.GONE: 100}
    assert (now.published, now.resolved, now.exhausted) == (0, 0, False)
    return record


async def test_a_redis_that_was_wiped_is_filled_from_postgres_under_a_new_epoch(place: Place) -> None:
    before = await half_stored(place)
    await place.redis.flushall()
    record = await rebuilt(place, before)
    assert record.fingerprint == before.fingerprint


async def test_a_run_that_is_rebuilt_is_steered_as_before(place: Place) -> None:
    await half_stored(place)
    for change in ({"paused": True}, {"max_workers": 3}):
        await steer_run(place.redis, place.database, "test", lambda now, change=change: replace(now, **change))
    assert not (await read_snapshot(place.redis, "test")).counts.rebuilt
    await place.redis.flushall()
    await place.open()
    snapshot = await read_snapshot(place.redis, "test")
    assert snapshot.counts.rebuilt
    assert snapshot.steering == Steering(paused=True, max_workers=3)


async def test_a_redis_that_was_rolled_back_to_another_beginning_is_filled_from_postgres(place: Place) -> None:
    before = await half_stored(place)
    old = replace(before, epoch=Epoch("old"))
    await Runs(place.redis).make(old)
    done = DoneSet(place.redis, RunKeys("test"), old.layout, old.epoch)
    await done.add(Outcome.STORED, [digest(KEYS[1199])])  # Postgres knows nothing of this one
    await rebuilt(place, before)


async def test_a_worker_of_the_old_beginning_can_neither_store_nor_claim(place: Place) -> None:
    before = await half_stored(place)
    await place.redis.flushall()
    await place.open()
    writer = Writer(place.database, RunTables(before.run_id), before.epoch, ())
    with pytest.raises(EpochLost):
        await writer.write([a_page("late")])
    with pytest.raises(EpochLost):
        await Streams(place.redis, RunKeys("test"), before.layout, before.epoch).join("old")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["make", "rebuild", "change_epoch"])
async def test_a_rebuild_that_was_cut_off_is_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = await half_stored(place)
    await place.redis.flushall()
    owner = {"make": Runs, "rebuild": DoneSet, "change_epoch": Catalogue}[step]
    error = PostgresUnavailable("gone") if step == "change_epoch" else RedisUnavailable("gone")

    async def cut_off(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, cut_off)
        with pytest.raises(type(error)):
            await place.open()
    # Until the rebuild is through, a worker that finds the run in Redis is turned away by Postgres.
    half = await Runs(place.redis).find("test")
    if half is not None:
        assert half.epoch != before.epoch
        with pytest.raises(EpochLost):
            await Writer(place.database, RunTables(before.run_id), Epoch(half.epoch), ()).open()
    await rebuilt(place, before)


async def test_a_run_that_postgres_has_and_redis_never_got_is_begun(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_off(*_: Any) -> None:
        raise RedisUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Runs, "make", cut_off)
        with pytest.raises(RedisUnavailable):
            await place.open()
    await place.open()
    record = await place.record()
    assert await place.runs() == [("test", record.epoch)]
    assert await place.done(KEYS) == set()


async def test_a_postgres_that_was_wiped_is_not_taken_for_a_new_run(place: Place) -> None:
    await half_stored(place)
    before = await place.record()
    await place.eye.execute("DROP TABLE pages, runs CASCADE")
    with pytest.raises(EpochLost, match="is in Redis but not in Postgres"):
        await place.open()
    assert await place.runs() == []
    assert await Runs(place.redis).find("test") == RunInRedis(before.epoch, RunState.RUNNING)


async def test_two_who_open_the_same_run_at_once_open_one_run(place: Place) -> None:
    first, second = await asyncio.gather(place.open(), place.open())
    assert sorted([first.resumed, second.resumed]) == [False, True]
    assert first.record == second.record == await place.record()
    assert len(await place.runs()) == 1


async def test_two_who_rebuild_the_same_run_at_once_rebuild_it_once(place: Place) -> None:
    before = await half_stored(place)
    await place.redis.flushall()
    first, second = await asyncio.gather(place.open(), place.open())
    assert first.record == second.record
    assert await place.runs() == [("test", (await place.record()).epoch)]
    assert (await place.record()).epoch != before.epoch
    assert await place.done(KEYS) == set(KEYS[:800])


async def test_different_runs_are_opened_side_by_side(place: Place) -> None:
    lock = name_lock(place.database, "another")
    async with lock:
        assert not (await place.open()).resumed


async def test_the_lock_of_a_run_is_free_after_an_error(place: Place) -> None:
    for _ in range(2):
        with pytest.raises(SourceError):
            await place.open(source={"path": "missing.txt"})
    assert not (await place.open()).resumed


async def test_a_job_file_of_another_folder_does_not_begin_a_run_of_the_corpus(place: Place, tmp_path: Path) -> None:
    await place.open(run={"name": "first", "corpus": "job"})
    (other := tmp_path / "other").mkdir()
    (other / "others.txt").write_text("a\n")
    document = place.document(run={"name": "second", "corpus": "job"}, source={"path": "others.txt"})
    job = read_job(document, str(other))
    with pytest.raises(UsageError, match=r"corpus job is that of the job in .*: write \[run\] corpus"):
        await open_run(place.redis, place.database, replace(job, names_corpus=False))
    assert [name for name, _ in await place.runs()] == ["first"]
    await open_run(place.redis, place.database, job)
    assert [name for name, _ in await place.runs()] == ["first", "second"]


async def test_a_job_without_a_table_that_merges_does_not_begin_a_run(place: Place) -> None:
    """Its records would be in no version any more; one run with another mode says that this is meant."""
    table = {"name": "facts", "columns": {"n": "bigint"}}
    for name, mode in (("first", "merge"), ("second", "replace")):
        opened = await place.open(run={"name": name, "corpus": "job"}, tables=[{**table, "mode": mode}])
        assert opened.record is not None
        await finished(place.eye, RunTables.of(opened.record), opened.record.epoch)
        if mode == "merge":
            with pytest.raises(UsageError, match="table facts merges, and the job has it no longer"):
                await place.open(run={"name": "third", "corpus": "job"})
    await place.open(run={"name": "third", "corpus": "job"})
