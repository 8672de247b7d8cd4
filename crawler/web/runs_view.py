"""What the pages show of runs: all of them in short, and one of them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from coordinator.limits.activity import read_activity, read_requests
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import Outcome, RunCounts, RunState, outcomes_json
from coordinator.queue.history import HistoryPoint, pace, read_history, read_point
from coordinator.queue.registry import Runs
from coordinator.redis.keys import RunKeys
from coordinator.stages.timing import NO_TIMES
from coordinator.status import RunSnapshot, read_counts, read_fleet, read_snapshot
from crawler.runs.naming import presence_of
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun, decode_counts
from crawler.store.tables import RunTables
from crawler.web.stores import Stores
from crawler.web.upstreams_view import matcher_of, upstream_rows

LISTED_RUNS = 200
# Runs that go on at the same time are few; of more than these the list has only what Postgres knows.
LIVE_RUNS = 30


class RunsView:
    """Reads runs. Every method raises Unavailable, PostgresRefused, and UsageError for an unknown run."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        # Of runs that Redis does not have: counting them takes seconds, and nobody changes them meanwhile.
        self._counted: dict[tuple[int, str], RunCounts] = {}
        # A run keeps its limits, and it may have thousands of them.
        self._matchers: dict[int, UpstreamMatcher] = {}

    async def news(self, topic: str) -> Mapping[str, Any]:
        """What is new about a run, or with an empty topic about all of them."""
        return await (self.run(topic) if topic else self.all())

    async def all(self) -> Mapping[str, Any]:
        """Every run in short, those that are not complete first."""
        async with self._stores.catalogue() as catalogue:
            with postgres_errors():
                rows = await catalogue.connection.fetch(query("listed-runs"), LISTED_RUNS)
                total = await catalogue.connection.fetchval(query("count-runs"))
        listed = []
        for number, row in enumerate(rows):
            one = {**row, "counts": None} | _done(decode_counts(row["counts"]) if row["counts"] else {}, row["total"])
            epoch = one.pop("epoch")
            if row["state"] in ("running", "paused") and number < LIVE_RUNS:
                if await Runs(self._stores.client).has(row["name"], epoch):
                    one |= await self._live(await read_snapshot(self._stores.client, row["name"], row["total"]))
                else:
                    one |= {"lost": True, "in_use": await self._in_use(row["name"])}
            listed.append(one)
        return {"runs": listed, "more": max(0, total - len(listed))}

    async def run(self, name: str) -> Mapping[str, Any]:
        """One run whole."""
        async with self._stores.catalogue() as catalogue:
            run = await self._stores.run(catalogue, name)
            current = await catalogue.current(run.corpus)
            with postgres_errors():
                before = await catalogue.connection.fetchval(query("run-before"), run.corpus, run.run_id)
            is_live = run.unfinished and await Runs(self._stores.client).has(name, run.epoch)
            counts = RunCounts() if is_live else await self._final_counts(catalogue, run)
        described = _described(run, current, before)
        if is_live:
            return described | await self._whole(run)
        lost = {"lost": True, "in_use": await self._in_use(name)} if run.unfinished else {"lost": False}
        return described | snapshot_view(RunSnapshot(name, run.state, counts, 0, None, steering=run.steering)) | lost

    async def _in_use(self, name: str) -> bool:
        """Whether somebody still works on a run that Redis does not have as Postgres does, or opens it now."""
        async with self._stores.catalogue() as catalogue:
            return (await presence_of(self._stores.client, catalogue.connection, name)).in_use

    async def history(self, name: str) -> Sequence[HistoryPoint]:
        """How many keys of a run were done at which time."""
        return await read_history(self._stores.client, RunKeys(name))

    async def _live(self, snapshot: RunSnapshot) -> dict[str, Any]:
        """What Redis has of a run, in short."""
        client, keys = self._stores.client, RunKeys(snapshot.name)
        point = await read_point(client, keys)
        return snapshot_view(snapshot) | {"pace": pace(await read_history(client, keys), point), "point": point}

    async def _whole(self, run: StoredRun) -> dict[str, Any]:
        client = self._stores.client
        snapshot = await read_snapshot(client, run.name, run.record.total if run.record else None)
        fleet, queue = await read_fleet(client, run.name)
        keys = RunKeys(run.name)
        activity, requests = await read_activity(client, keys), await read_requests(client, keys)
        if (matcher := self._matchers.get(run.run_id)) is None:
            matcher = self._matchers[run.run_id] = matcher_of(run)
        return await self._live(snapshot) | {
            "fleet": [{**asdict(one), "host": one.host} for one in fleet],
            "queue": queue,
            "upstreams": upstream_rows(matcher, snapshot.upstreams, snapshot.unreachable, activity, requests),
        }

    async def _final_counts(self, catalogue: Catalogue, run: StoredRun) -> RunCounts:
        """The counts of a run that Redis does not have any more, or not as it is."""
        total, outcomes = sum(run.counts.values()) if run.complete else None, dict(run.counts)
        if run.unfinished:
            if (known := self._counted.get((run.run_id, run.epoch))) is None:
                outcomes, total = dict((await catalogue.outcomes_so_far(RunTables.of(run)))[0]), None
                known = self._counted[run.run_id, run.epoch] = RunCounts(total, outcomes=outcomes)
            return known
        sent = await read_counts(self._stores.client, run.name)
        return RunCounts(total, outcomes=outcomes, requests=sent.requests, received=sent.received, rebuilt=sent.rebuilt)


def snapshot_view(snapshot: RunSnapshot) -> dict[str, Any]:
    """Pure: what the pages show of a snapshot."""
    counts = snapshot.counts
    return {
        **_done(counts.outcomes, counts.total),
        "state": snapshot.shown_state,
        "max_workers": snapshot.steering.max_workers,
        "exhausted": counts.exhausted,
        "queued": counts.waiting,
        "deferred": counts.deferred,
        "requests": counts.requests,
        "received": counts.received,
        "rebuilt": counts.rebuilt,
        "workers": snapshot.workers,
        "coordinator": snapshot.leader,
        "begins": snapshot.begins,
        "waits": snapshot.waits,
        "null_columns": [one.summary for one in snapshot.null_columns],
        "limited_by": limited_words(snapshot),
        "stages": stage_rows(snapshot),
    }


def limited_words(snapshot: RunSnapshot) -> str:
    """Pure: what limits a run, or holds it up, in words; empty while that is unknown."""
    if snapshot.state is not RunState.RUNNING or snapshot.steering.paused:
        return ""
    if not snapshot.workers:
        return "" if snapshot.begins else "no worker is there"
    if snapshot.waits:
        return snapshot.waits[0]
    if known := snapshot.limited_words:
        return known
    stopped = [one for one in snapshot.upstreams if one.stops_requests]
    return f"{stopped[0].upstream} {stopped[0].summary}" if stopped else ""


def stage_rows(snapshot: RunSnapshot) -> Sequence[Mapping[str, Any]]:
    """Pure: how busy each stage of the workers is, and what it took in the whole run; none where that is unknown."""
    rows = []
    for one in snapshot.figures.stages:
        timing = snapshot.timings.get(one.name, NO_TIMES)
        rows.append(
            {
                "name": one.name,
                "busy": round(one.busy, 2),
                "size": one.size,
                "waiting": one.waiting,
                "items": timing.items,
                "seconds": round(timing.seconds, 3),
            }
        )
    return rows


def _done(outcomes: Mapping[Outcome, int], total: int | None) -> dict[str, Any]:
    return {
        "outcomes": outcomes_json(outcomes),
        "done": sum(outcomes.values()),
        "total": total,
    }


def _described(run: StoredRun, current: StoredRun | None, before: str | None) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "name": run.name,
        "corpus": run.corpus,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "published_at": run.published_at,
        "shortfall": run.shortfall,
        "current": current is not None and current.run_id == run.run_id,
        "refresh": run.base_run is not None or run.carried_run is not None,
        "before": before,
        "tables": run.table_names,
    }
