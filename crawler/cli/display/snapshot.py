"""How `status` shows a run: as a table for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import outcomes_json
from coordinator.stages.figures import StageFigures
from coordinator.stages.timing import NO_TIMES
from coordinator.status import RunSnapshot
from crawler.cli.display.progress import (
    absence_words,
    byte_words,
    duration_words,
    of_total,
    outcome_words,
    printable,
    seconds_words,
)

LISTED_UNREACHABLE = 10


def print_snapshot(snapshot: RunSnapshot, console: Console) -> None:
    """Print one run's snapshot."""
    for table in snapshot_tables(snapshot):
        console.print(table)


def snapshot_tables(snapshot: RunSnapshot) -> list[Table]:
    """One run's snapshot: a row for each thing that there is to say, then its stages."""
    counts = snapshot.counts
    deferred = f", {counts.deferred:,} of them deferred" if counts.deferred else ""
    table = Table(box=None, show_header=False, pad_edge=False)

    def row(name: str, text: str) -> None:
        table.add_row(name, Text(printable(text)))  # a host like [fe80::1] would be read as markup

    row("run", snapshot.name)
    absence = absence_words(snapshot)
    steering = snapshot.steering
    paused = f", paused: go on with shardcrawl resume {snapshot.name}" if steering.paused else ""
    row("state", f"{snapshot.state.value}{paused}{', but ' if absence else ''}{absence}")
    row("keys", f"{counts.done:,}{of_total(counts)} done, {counts.waiting:,} queued{deferred}")
    if not snapshot.state.is_over:
        row("pace", _pace_words(snapshot))
        if not (absence or snapshot.waits or paused):
            row("limited by", snapshot.limited_words or "not known yet")
    row("outcomes", outcome_words(counts))
    if counts.requests or not snapshot.state.is_over:  # Redis keeps them for an hour
        since = ", since it was rebuilt from Postgres" if counts.rebuilt else ""
        row("requests", f"{counts.requests:,}, {byte_words(counts.received)} of bodies{since}")
    bound = f", {steering.max_workers:,} at most" if steering.max_workers else ""
    row("workers", f"{snapshot.workers}{bound}")
    row("coordinator", snapshot.leader or "none")
    for health in snapshot.upstreams:
        row("upstream", f"{health.upstream} {health.summary}")
    for unreachable in snapshot.unreachable[:LISTED_UNREACHABLE]:
        row("unreachable", unreachable.summary)
    if (more := len(snapshot.unreachable) - LISTED_UNREACHABLE) > 0:
        row("unreachable", f"{more:,} more, see --json")
    for column in snapshot.null_columns:
        row("column", column.summary)
    for cause in snapshot.waits:
        row("waits for", cause)
    return [table, _stages_table(snapshot)] if snapshot.figures.stages else [table]


def _pace_words(snapshot: RunSnapshot) -> str:
    left, last = snapshot.seconds_left, snapshot.last_commit
    words = [f"{snapshot.figures.rate:,.1f} keys/s", f"ETA {duration_words(left) if left is not None else '?'}"]
    return ", ".join([*words, *([f"last commit {seconds_words(last)} ago"] if last is not None else [])])


def _stages_table(snapshot: RunSnapshot) -> Table:
    """How busy each stage is now, what waits for it, and what it took for one item on average in the whole run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for column in ("busy", "of", "waiting", "items", "each"):
        table.add_column(column, justify="right")
    for one in snapshot.figures.stages:
        timing = snapshot.timings.get(one.name, NO_TIMES)
        items, each = (f"{timing.items:,}", seconds_words(timing.seconds / timing.items)) if timing.items else ("", "")
        table.add_row(
            Text(one.name), f"{100 * one.utilisation:.0f} %", f"{one.size:,}", f"{one.waiting:,}", items, each
        )
    return table


def snapshot_json(snapshot: RunSnapshot) -> Mapping[str, Any]:
    """One run's snapshot as plain values."""
    counts, steering = snapshot.counts, snapshot.steering
    return {
        "run": snapshot.name,
        "state": snapshot.state.value,
        "total": counts.total,
        "done": counts.done,
        "queued": counts.waiting,
        "deferred": counts.deferred,
        "outcomes": outcomes_json(counts.outcomes),
        "requests": counts.requests,
        "received_bytes": counts.received,
        "workers": snapshot.workers,
        "max_workers": steering.max_workers,
        "run_paused": steering.paused,
        "coordinator": snapshot.leader,
        "paused": snapshot.pauses,
        "upstreams": {health.upstream: health_json(health) for health in snapshot.upstreams},
        "waits": list(snapshot.waits),
        "unreachable": {
            one.upstream: {"keys": one.keys, "fault": one.fault, "next_attempt_in": round(one.next_attempt, 1)}
            for one in snapshot.unreachable
        },
        "null_columns": {column.name: column.since for column in snapshot.null_columns},
        "absent": absence_words(snapshot),
        "rate": round(snapshot.figures.rate, 3),
        "eta_seconds": None if snapshot.seconds_left is None else round(snapshot.seconds_left),
        "last_commit_ago": None if snapshot.last_commit is None else round(snapshot.last_commit, 1),
        "limited_by": _limited_json(snapshot),
        "stages": {one.name: _stage_json(one, snapshot) for one in snapshot.figures.stages},
    }


def _limited_json(snapshot: RunSnapshot) -> Mapping[str, str] | None:
    if (limited := snapshot.limited_by) is None:
        return None
    return {"what": limited.constraint.value, "name": limited.name, "words": snapshot.limited_words}


def _stage_json(figures: StageFigures, snapshot: RunSnapshot) -> Mapping[str, float]:
    timing = snapshot.timings.get(figures.name, NO_TIMES)
    return {
        "busy": round(figures.busy, 2),
        "of": figures.size,
        "waiting": figures.waiting,
        "items": timing.items,
        "seconds": round(timing.seconds, 3),
    }


def health_json(health: UpstreamHealth) -> Mapping[str, Any]:
    """The health of an upstream as plain values."""
    live = health.override
    return {
        "paused": health.paused,
        "breaker": health.breaker,
        "probe_in": health.probe_in,
        "refused_in_a_row": health.refused,
        "refused_with": health.status,
        "found_rate": health.found_rate,
        "live_rate": live.rate.rate_text if live and live.rate else None,
        "live_concurrency": (live.concurrency or "none") if live and live.concurrency is not None else None,
    }
