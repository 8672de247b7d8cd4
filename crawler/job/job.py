"""Reads a job from its document, which is a TOML file, or JSON of the same shape from Redis and Postgres."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.errors import UsageError
from coordinator.settings import LimitSettings
from crawler.job.limits import limits_in
from crawler.job.models import (
    RUN_NAME,
    JobFile,
    ParseSettings,
    RequestSettings,
    RetrySettings,
    RunSettings,
    SourceSettings,
    StoreSettings,
    TableSettings,
)
from crawler.job.names import check_function, check_tables
from crawler.job.request_checks import check_request
from crawler.job.section import SectionModel, read_section, refuse_unknown


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job. A process reads it once and passes it on, also to child processes by pickle.

    `folder` is where its relative paths and its Python modules are looked up. `document` is what it was read from,
    with its secrets still as ${NAME}.
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
    _check_source(job.source)
    check_request(job.request)
    check_function("parse", job.parse.python)
    check_tables(job.tables)
    if job.tables and job.parse.python is None:
        raise UsageError("job: [[tables]] are filled by a parser; name one in [parse] python")
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
    return tuple(read_section(TableSettings, "[tables]", value) for value in values)


def _check_run(run: RunSettings) -> None:
    if not re.fullmatch(RUN_NAME, run.name):
        raise UsageError(
            f"job: [run] name is {run.name!r}; it must be 1 to 100 letters, digits, '.', '_' or '-' (or give --name)"
        )
    if run.shards is not None and run.shards & (run.shards - 1):
        raise UsageError(f"job: [run] shards is {run.shards}; it must be a power of two")


def _check_source(source: SourceSettings) -> None:
    if (source.path is None) == (source.python is None):
        raise UsageError(
            "job: [source] needs one of path (a file, or - for standard input) and python (module:function)"
        )
    check_function("source", source.python)
