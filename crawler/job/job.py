"""Reads a job from its document, which is a TOML file, or JSON of the same shape from Postgres.

A command makes the document of a job file or a bare source, with its options in it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.errors import UsageError
from coordinator.settings import LimitSettings
from crawler.job.fields import BYTES, FUNCTION, RUN_NAME, SectionModel, read_section, refuse_unknown
from crawler.job.models import (
    JobFile,
    ParseSettings,
    RequestSettings,
    RetrySettings,
    RunSettings,
    StoreSettings,
)
from crawler.job.request_checks import check_request
from crawler.job.sections.limits import limits_in
from crawler.job.sections.source import SourceSettings, check_source
from crawler.job.tables import TableSettings, check_tables, is_column_type

JOB_SUFFIX = ".toml"
UNITS = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
DEFAULT_MEMORY = 256 * UNITS["MB"]
# What a lane may have that is not counted: a small body, and what its connection has received.
LANE_BYTES = 512 * 1024
# How often one body is copied, at most, for a moment: decoded through several codings, or from one charset to another.
TEMPORARY_COPIES = 4


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job. A process reads it once and passes it on, also to child processes by pickle.

    `folder` is where its relative paths and its Python modules are looked up. `document` is what it was read from,
    with its secrets still as ${NAME}. `source_database` is the address for `[source] query`: a secret, which a process
    that reads the source fills in.
    """

    run: RunSettings
    source: SourceSettings
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: Mapping[str, LimitSettings] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tables: tuple[TableSettings, ...] = ()
    folder: str = "."
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    source_database: str = field(default="", compare=False, repr=False)

    @property
    def has_parser(self) -> bool:
        """Whether a response is parsed: by a function of the user's, or by selectors."""
        return self.parse.python is not None or bool(self.tables)


def body_memory(job: Job) -> int:
    """The bytes for large bodies, at least one of them: what `memory` leaves beside that which is not counted there.

    Raises UsageError when it leaves too little.
    """
    # Not counted are: a load that is full, with the last body in it; small bodies and the buffers of connections; and
    # what one body takes while it is decoded, or made ready for Postgres.
    largest = job.request.max_body
    fixed = job.store.batch_bytes + largest + job.run.concurrency * LANE_BYTES + TEMPORARY_COPIES * largest
    copies = 2 if job.has_parser else 1  # a body that goes to the parser's process is there twice
    least = fixed + copies * largest
    if job.run.memory is None:
        return (max(DEFAULT_MEMORY, least) - fixed) // copies
    found = re.fullmatch(BYTES, job.run.memory)
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2]])
    if size < least:
        raise UsageError(
            f"job: [run] memory is {job.run.memory!r}; with this max_body, batch_bytes and concurrency it must be at "
            f'least "{-(-least // 1_000_000)}MB"'
        )
    return (size - fixed) // copies


def load_job_file(path: Path) -> dict[str, Any]:
    """The document in a job file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"job file {path}: {error.strerror or error}; name a file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"job file {path}: {error}") from error


def read_job(document: Mapping[str, Any], folder: str = ".") -> Job:
    """The job in a document, its secrets still as ${NAME}.

    Raises UsageError, which names the nearest key for one that is unknown, and NotYet for what is planned.
    """
    if not isinstance(document, Mapping):
        raise UsageError("job: the document is no table; write [run], [source] and their keys")
    refuse_unknown(JobFile, "job", document)
    job = Job(
        run=_section(document, "run", RunSettings),
        source=_section(document, "source", SourceSettings),
        request=_section(document, "request", RequestSettings),
        limits=limits_in(_table(document, "limits")),
        retry=_section(document, "retry", RetrySettings),
        parse=_section(document, "parse", ParseSettings),
        store=_section(document, "store", StoreSettings),
        tables=_tables(document.get("tables")),
        folder=folder,
        document=document,
    )
    _check_run(job.run)
    check_source(job.source, keys_are_urls=job.request.url is None)
    check_request(job.request)
    body_memory(job)
    _check_function("parse", job.parse.python)
    check_tables(job.tables)
    _check_selectors(job)
    return job


def _section(document: Mapping[str, Any], name: str, model: type[SectionModel]) -> SectionModel:
    return read_section(model, name, _table(document, name))


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = document.get(name)
    if values is not None and not isinstance(values, Mapping):
        raise UsageError(f"job: [job] {name} is {values!r}; it must be a table")
    return values or {}


def _tables(values: Any) -> tuple[TableSettings, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UsageError("job: tables are written as [[tables]], once for each")
    for value in values:
        _refuse_slipped(value)
    return tuple(read_section(TableSettings, "[tables]", value) for value in values)


def _refuse_slipped(table: Any) -> None:
    """Raise UsageError for a key of the table that stands below [tables.columns], which TOML reads as a column."""
    columns = table.get("columns") if isinstance(table, Mapping) else None
    for name, given in columns.items() if isinstance(columns, Mapping) else ():
        if name in TableSettings.__struct_encode_fields__ and not is_column_type(given):
            raise UsageError(
                f"job: table {table.get('name')}: {name} stands below [tables.columns]; write it above that"
            )


def _check_run(run: RunSettings) -> None:
    if not re.fullmatch(RUN_NAME, run.name):
        raise UsageError(
            f"job: [run] name is {run.name!r}; it must be 1 to 100 letters, digits, '.', '_' or '-' (or give --name)"
        )
    if run.shards is not None and run.shards & (run.shards - 1):
        raise UsageError(f"job: [run] shards is {run.shards}; it must be a power of two")


def _check_function(section: str, name: str | None) -> None:
    """Raise UsageError when `name` is given, and is not module:function."""
    if name is not None and not re.fullmatch(FUNCTION, name):
        raise UsageError(f"job: [{section}] python is {name!r}; write module:function")


def _check_selectors(job: Job) -> None:
    """Raise UsageError for selectors that nothing reads."""
    parse = job.parse
    given = [f"[parse] {key}" for key in ("rows", "key", "failed", "gone") if getattr(parse, key)]
    given += ["[parse] format"] if parse.format != "json" else []
    given += [f"table {table.name}: {key}" for table in job.tables for key in ("rows", "skip") if getattr(table, key)]
    given += [
        f"table {table.name}: column {column}"
        for table in job.tables
        for column, settings in table.column_settings.items()
        if not isinstance(settings, str)
    ]
    if given and parse.python is not None:
        raise UsageError(f"job: {given[0]}: [parse] python makes the records; leave out one of the two")
    if given and not job.tables:
        raise UsageError(f"job: {given[0]}: selectors fill [[tables]]; add one with its columns")


@dataclass(frozen=True, slots=True)
class JobOverrides:
    """Options that beat the job file, or add to it (`allow_private`); None where the user gave none."""

    name: str | None = None
    workers: int | None = None
    concurrency: int | None = None
    rate: str | None = None
    batch_rows: int | None = None
    grace: float | None = None
    allow_private: tuple[str, ...] = ()

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The job document with these options in it. A malformed section stays as it is: `read_job` refuses it."""
        changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in document.items()}
        for section, key, value in (
            ("run", "name", self.name),
            ("run", "workers", self.workers),
            ("run", "concurrency", self.concurrency),
            ("run", "grace", self.grace),
            ("store", "batch_rows", self.batch_rows),
        ):
            if value is not None and isinstance(changed.setdefault(section, {}), dict):
                changed[section][key] = value
        if self.allow_private and isinstance(request := changed.setdefault("request", {}), dict):
            given = request.get("allow_private", [])
            if isinstance(given, list):
                request["allow_private"] = list(dict.fromkeys([*given, *self.allow_private]))
        if self.rate is not None and isinstance(limits := changed.setdefault("limits", {}), dict):
            limits.setdefault("*", {})
            changed["limits"] = {name: self._limit(limit) for name, limit in limits.items()}
        return changed

    def _limit(self, limit: Any) -> Any:
        """One entry of `[limits]` with the rate of the command line, which has no ceiling unless it is "auto"."""
        if not isinstance(limit, Mapping):
            return limit
        kept = {key: value for key, value in limit.items() if key != "ceiling" or self.rate == "auto"}
        return {**kept, "rate": self.rate}


def load_document(job: str, overrides: JobOverrides) -> tuple[dict[str, Any], str]:
    """The document of a job file or of a bare source, with the overrides in it, and the folder of its relative paths.

    Raises UsageError.
    """
    if job.endswith(JOB_SUFFIX):
        path = Path(job)
        return overrides.apply(load_job_file(path)), str(path.resolve().parent)
    if job == "-":
        return overrides.apply({"run": {"name": "stdin"}, "source": {"path": job}}), str(Path.cwd())
    path = Path(job).absolute()
    # The file's or the folder's name; for a glob such as titles/*.gz that of the folder.
    stems = (re.sub(r"[^A-Za-z0-9._-]+", "-", part.split(".")[0]).strip("-.") for part in reversed(path.parts))
    name = next((stem for stem in stems if stem), "run")
    return overrides.apply({"run": {"name": name}, "source": {"path": str(path)}}), str(Path.cwd())
