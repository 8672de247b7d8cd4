"""Pure: a row of `runs`, as it is read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from coordinator.errors import PostgresRefused, RunCancelled, first_line
from coordinator.model import NOT_STEERED, Epoch, Outcome, RunState, Steering
from coordinator.queue.registry import RunRecord
from coordinator.queue.sharding import Layout
from crawler.store.reasons import ReasonCount, decode_reasons

# What a shortfall begins with where the run did not keep a bound of [publish].
FALLS_SHORT = "[publish] "


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A row of `runs`: `document` is the job, `folder` its folder, `parser_files` the digests of its parser's files.

    An older version did not write the last two. `fingerprint` is that of its source, "" where that has none. `counts`
    are the final keys by outcome, `reasons` the usual reasons of those that were refused or failed; both are empty
    until it is complete. `record` is None when Redis cannot have the run with this epoch: an older version made it, or
    it is void. It is a version of its `corpus`; `base_run` is the run with which a refresh began, `shortfall` why it
    was not published when it was complete: "" when it was, None when nobody has decided that. Nobody works on a
    `cancelled` run any more.
    """

    run_id: int
    name: str
    document: Mapping[str, Any]
    epoch: Epoch
    complete: bool
    counts: Mapping[Outcome, int]
    created_at: datetime
    finished_at: datetime | None
    reasons: tuple[ReasonCount, ...] = ()
    folder: str | None = None
    record: RunRecord | None = None
    parser_files: Mapping[str, str] = field(default_factory=dict)
    corpus: str = ""
    base_run: int | None = None
    content_hash: str | None = None
    carried_run: int | None = None
    shortfall: str | None = None
    published_at: datetime | None = None
    cancelled: bool = False
    steering: Steering = NOT_STEERED
    fingerprint: str = ""

    @property
    def table_names(self) -> list[str]:
        """The names of its job's tables."""
        return [table["name"] for table in self.document.get("tables", ())]

    @property
    def falls_short(self) -> bool:
        """Whether it was held back because it did not keep a bound of `[publish]`."""
        return (self.shortfall or "").startswith(FALLS_SHORT)

    @property
    def state(self) -> RunState:
        """Where it stands, as far as Postgres knows."""
        return RunState.COMPLETE if self.complete else RunState.CANCELLED if self.cancelled else RunState.RUNNING

    @property
    def unfinished(self) -> bool:
        """Whether it can be gone on with."""
        return not (self.complete or self.cancelled)

    def refuse_cancelled(self) -> None:
        """Raise RunCancelled if it was."""
        if self.cancelled:
            raise RunCancelled(
                f"run {self.name} was cancelled: `shardcrawl run JOB` without a name begins a new one, and "
                "`shardcrawl prune` frees this name"
            )

    @classmethod
    def from_row(cls, row: asyncpg.Record) -> StoredRun:
        """The run in a row of `find-run` or `list-runs`. Raises PostgresRefused for one that is not ours any more."""
        try:
            return cls._from_row(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # somebody wrote other JSON into it
            raise PostgresRefused(
                f"Postgres: the row of run {row['name']} in `runs` cannot be read: {first_line(error)}; "
                "restore it, or delete it there: `shardcrawl prune` deletes what it leaves"
            ) from error

    @classmethod
    def _from_row(cls, row: asyncpg.Record) -> StoredRun:
        document, epoch = {**orjson.loads(row["spec"])}, Epoch(row["epoch"])
        layout = orjson.loads(row["layout"]) if row["layout"] else {}
        parser_files = layout.get("parser_files") or {}
        steering = Steering(row["paused"], row["max_workers"])
        record = None
        if layout.get("epoch") == epoch:
            record = RunRecord(
                name=row["name"],
                run_id=row["run_id"],
                epoch=epoch,
                layout=Layout(layout["shards"], layout["buckets"], layout.get("follows", False)),
                document=document,
                folder=layout["folder"],
                fingerprint=layout["fingerprint"],
                total=layout["total"],
                parser_files=parser_files,
                content_hash=row["content_hash"],
                carried_run=layout.get("carried_run"),
                steering=steering,
            )
        return cls(
            run_id=row["run_id"],
            name=row["name"],
            document=document,
            epoch=epoch,
            complete=row["state"] == "complete",
            counts=decode_counts(row["counts"]) if row["counts"] else {},
            created_at=row["created_at"],
            finished_at=row["finished_at"],
            reasons=decode_reasons(row["reasons"]),
            folder=layout.get("folder"),
            record=record,
            parser_files=parser_files,
            corpus=row["corpus"],
            base_run=row["base_run"],
            content_hash=row["content_hash"],
            carried_run=layout.get("carried_run"),
            shortfall=row["shortfall"],
            published_at=row["published_at"],
            cancelled=row["state"] == "cancelled",
            steering=steering,
            fingerprint=layout.get("fingerprint", ""),
        )


def encode_layout(record: RunRecord) -> str:
    """What `runs.layout` has of a record, as JSON text."""
    return orjson.dumps(
        {
            "epoch": record.epoch,
            "shards": record.layout.shards,
            "buckets": record.layout.buckets,
            "follows": record.layout.follows,
            "folder": record.folder,
            "fingerprint": record.fingerprint,
            "total": record.total,
            "parser_files": dict(record.parser_files),
            "carried_run": record.carried_run,
        }
    ).decode()


def decode_counts(counts: str) -> Mapping[Outcome, int]:
    """Keys by outcome, from the JSON text of `runs.counts`."""
    return {Outcome(outcome): keys for outcome, keys in orjson.loads(counts).items()}
