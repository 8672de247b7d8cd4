"""`[run]`: its model and checks, and that of the schema that `[store]` names."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec.structs import force_setattr

from coordinator.errors import UsageError
from crawler.job.fields import AGE, AGE_FORMS, BYTES, CORPUS_NAME, RUN_NAME, Section, number, text, value
from crawler.job.tables import identifier_fault


# The formatter would give each argument a line of its own.
# fmt: off
class RunSettings(Section, frozen=True, kw_only=True):
    """What the run is a version of, its name, and how large it is on each machine."""

    corpus: Annotated[str, text(
        "The name of the corpus. Its runs are versions of it, and the views `*_current` show the one that is "
        "published. 1 to 80 letters, digits, '.', '_' or '-'.",
        "revisions", f"^{CORPUS_NAME}$", absent="the job file's name")] = ""
    name: Annotated[str, text(
        "The run's name: 1 to 100 letters, digits, '.', '_' or '-'. A run of the same name is resumed.",
        "revisions-2026q4", f"^{RUN_NAME}$",
        absent="that of the corpus' run that is not complete; else the corpus, the date, and a number if need be")] = ""
    refresh: Annotated[bool, value(
        "Ask only for what has changed since the corpus' current run: `--refresh` sets it too. What has not changed is "
        "carried over.",
        True)] = False
    max_age: Annotated[str, text(
        "In a refresh: a page that was fetched, or found unchanged, no longer ago than this is carried over without a "
        "request. A number and `s`, `min`, `h` or `d`.",
        "30d", f"^{AGE}$", absent="every page is asked for")] | None = None
    on_failure: Annotated[Literal["keep", "drop"], value(
        "In a refresh: what becomes of the rows of a key that fails now. They are kept and its page is marked `stale`, "
        "or they are not in the new run.",
        "drop", write='write "keep" or "drop"')] = "keep"
    since: Annotated[str, text(
        "For incremental jobs: what `{since}` stands for in `[request]` in the corpus' first run. In each later one it "
        "is when the current run began, as in 2026-11-26T08:00:00Z. It does not change within a run. "
        "`[source] since` takes it too.",
        "2026-01-01T00:00:00Z", r"^[^{}$\s]+$")] | None = None
    workers: Annotated[int, number(
        "Worker processes on this machine. 0 means the default.",
        4, 0, 1024, absent="one for each core")] | None = None
    concurrency: Annotated[int, number(
        "Requests in flight in each worker, over all upstreams. Slow ones count no longer while others want to leave.",
        128, 1, 100_000)] = 64
    shards: Annotated[int, number(
        "Parts of the key space that workers claim one by one; a power of two. 0 means the default. "
        "It is fixed when the run begins: a resumed run keeps what it has.",
        256, 0, 65_536, absent="by the size of the corpus, at most 256")] | None = None
    high_water: Annotated[int, number(
        "Keys that are queued in Redis at most. Reading the source stops there and goes on when workers have taken "
        "keys, which bounds Redis' memory.",
        100_000, 1000, 2**31)] = 300_000
    max_failed: Annotated[float, number(
        "The share of keys that may end as failed, or refused with status 401, 403, 407 or 451: 0.01 is 1 %. A run "
        "with more of them is still complete and published, but its command ends with exit code 3. `max_failed` of "
        "`[publish]` holds it back.",
        0.001, 0.0, 1.0)] = 0.01
    memory: Annotated[str, text(
        "The memory of a worker for responses: bodies while they arrive, are parsed and are committed. When it is used "
        "up, requests wait. The process itself takes about 80 MB more; a parser's own objects are not counted.",
        "512MB", f"^{BYTES}$", absent="256MB, or what `max_body`, `batch_bytes` and `concurrency` need if that is more",
        )] | None = None
    grace: Annotated[float, number(
        "Seconds in which a worker that is told to stop may finish and commit what it has in flight. "
        "Kubernetes kills after 30.",
        20, 0.0, 3600.0)] = 25.0

    publish: Annotated[Literal["auto"], value(
        "As an earlier version wrote it; `[publish]` says when readers see the run.",
        "auto", write='leave it out, and write mode = "manual" below [publish]')] = "auto"

    def __post_init__(self) -> None:
        """Take 0 as the default."""
        for name in ("workers", "shards"):
            if getattr(self, name) == 0:
                force_setattr(self, name, None)
# fmt: on


def check_run(run: RunSettings) -> None:
    """Raise UsageError for the first key of `[run]` that cannot be used."""
    for key, pattern, most in (("corpus", CORPUS_NAME, 80), ("name", RUN_NAME, 100)):
        if (given := getattr(run, key)) and not re.fullmatch(pattern, given):
            raise UsageError(f"job: [run] {key} is {given!r}; it must be 1 to {most} letters, digits, '.', '_' or '-'")
    if run.max_age is not None and not re.fullmatch(AGE, run.max_age):
        raise UsageError(f"job: [run] max_age is {run.max_age!r}; {AGE_FORMS}")
    if run.since is not None and re.search(r"[{}$\s]", run.since):
        raise UsageError(f"job: [run] since is {run.since!r}; write a moment like 2026-01-01T00:00:00Z")
    if not run.name and not run.corpus:
        raise UsageError(
            "job: [run] name is missing; it must be 1 to 100 letters, digits, '.', '_' or '-' (or give --name)"
        )
    if run.shards is not None and run.shards & (run.shards - 1):
        raise UsageError(f"job: [run] shards is {run.shards}; it must be a power of two")


def check_schema(schema: str) -> None:
    """Raise UsageError when the corpus cannot have its tables in a schema of this name; "" is that of the address."""
    if not schema:
        return
    if fault := identifier_fault(schema):
        raise UsageError(f"job: [store] schema is {schema!r}; {fault}")
    if schema.startswith("pg_") or schema == "information_schema":
        raise UsageError(f"job: [store] schema is {schema!r}, which is Postgres' own; use another name")
