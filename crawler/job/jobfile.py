"""The job file, TOML or the same document as JSON -> Job; an unknown key is an error that names the nearest one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from coordinator.errors import NotYet, UsageError
from coordinator.settings import (
    Job,
    ParseSettings,
    RequestSettings,
    RetrySettings,
    RunSettings,
    SourceSettings,
    StoreSettings,
    TableSettings,
)
from crawler.fetch.template import Template
from crawler.job.limits import limits_in
from crawler.job.request_checks import check_request
from crawler.job.section import Section
from crawler.store.tables import OWN_COLUMNS, RESERVED_TABLES, identifier_fault, type_fault

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = re.compile(r".*_(?:current|r\d+)")
_RUN, _RETRY, _STORE = RunSettings(name=""), RetrySettings(), StoreSettings()


def load(path: Path) -> dict[str, Any]:
    """The document in a job file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"job file {path}: {error.strerror or error}; name a file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"job file {path}: {error}") from error


def read(document: Mapping[str, Any], folder: str = ".") -> Job:
    """The job in a document, its secrets still as ${NAME}. Raises UsageError, NotYet."""
    whole = Section("job", document)
    job = Job(
        run=_run(Section("run", whole.table("run"))),
        source=_source(Section("source", whole.table("source"))),
        request=_request(Section("request", whole.table("request"))),
        limits=limits_in(whole.table("limits")),
        retry=_retry(Section("retry", whole.table("retry"))),
        parse=_parse(Section("parse", whole.table("parse"))),
        store=_store(Section("store", whole.table("store"))),
        tables=_tables(whole.raw("tables")),
        folder=folder,
    )
    whole.end()
    Template(job.request)
    if job.request.url is None and job.request.keys_per_request > 1:
        raise UsageError("job: [request] keys_per_request needs a url with {keys} in it")
    if job.tables and job.parse.python is None:
        raise UsageError("job: [[tables]] are filled by a parser; name one in [parse] python")
    return job


def _run(section: Section) -> RunSettings:
    publish = section.raw("publish")
    run = RunSettings(
        name=section.text("name") or "",
        workers=section.whole("workers", 0, 0, 1024) or None,
        concurrency=section.whole("concurrency", _RUN.concurrency, 1, 100_000),
        shards=section.whole("shards", 0, 0, 65_536) or None,
        high_water=section.whole("high_water", _RUN.high_water, 1000),
        max_failed=section.number("max_failed", _RUN.max_failed, 0.0, 1.0),
        grace=section.number("grace", _RUN.grace, 0.0, 3600.0),
    )
    section.end()
    if not _NAME.fullmatch(run.name):
        raise UsageError(
            f"job: [run] name is {run.name!r}; it must be 1 to 100 letters, digits, '.', '_' or '-' (or give --name)"
        )
    if run.shards is not None and run.shards & (run.shards - 1):
        raise UsageError(f"job: [run] shards is {run.shards}; it must be a power of two")
    if publish not in (None, "auto"):
        raise NotYet("job: [run] publish: a complete run is published by itself in this version; leave it out")
    return run


def _source(section: Section) -> SourceSettings:
    source = SourceSettings(path=section.text("path"), python=section.text("python"))
    section.end()
    if (source.path is None) == (source.python is None):
        raise UsageError(
            "job: [source] needs one of path (a file, or - for standard input) and python (module:function)"
        )
    _check_function("source", source.python)
    return source


def _request(section: Section) -> RequestSettings:
    defaults = RequestSettings()
    engine = section.text("engine") or defaults.engine
    if engine not in ("pyreqwest", "httpx"):
        raise UsageError(f"job: [request] engine is {engine!r}; known are pyreqwest and httpx")
    request = RequestSettings(
        url=section.text("url"),
        keys_per_request=section.whole("keys_per_request", 1, 1, 500),
        separator=section.text("separator") or defaults.separator,
        headers=tuple(section.table("headers").items()),
        cookies=tuple(section.table("cookies").items()),
        auth=section.text("auth"),
        user_agent=section.text("user_agent") or defaults.user_agent,
        timeout=section.number("timeout", defaults.timeout, 0.1, 3600),
        redirects=section.whole("redirects", defaults.redirects, 0, 20),
        http2=_http2(section.raw("http2")),
        engine=engine,
        allow_private=section.texts("allow_private"),
        proxy=section.text("proxy"),
        ca=section.text("ca"),
        client_cert=section.text("client_cert"),
        max_body=section.whole("max_body", defaults.max_body, 1, 256 * 1024 * 1024),
        robots=section.choice("robots"),
    )
    section.end()
    check_request(request)
    return request


def _http2(value: Any) -> bool | Literal["prior-knowledge"]:
    if value is None or isinstance(value, bool):
        return bool(value)
    if value == "prior-knowledge":
        return "prior-knowledge"
    raise UsageError(f'job: [request] http2 is {value!r}; write true, false or "prior-knowledge"')


def _retry(section: Section) -> RetrySettings:
    retry = RetrySettings(
        attempts=section.whole("attempts", _RETRY.attempts, 1, 100),
        backoff=section.number("backoff", _RETRY.backoff, 0.0, 3600.0),
        max_delay=section.number("max_delay", _RETRY.max_delay, 0.0, 86_400.0),
    )
    section.end()
    return retry


def _parse(section: Section) -> ParseSettings:
    parse = ParseSettings(python=section.text("python"))
    section.end()
    _check_function("parse", parse.python)
    return parse


def _store(section: Section) -> StoreSettings:
    store = StoreSettings(
        batch_rows=section.whole("batch_rows", _STORE.batch_rows, 1, 100_000),
        batch_bytes=section.whole("batch_bytes", _STORE.batch_bytes, 1024, 2**30),
        batch_age=section.number("batch_age", _STORE.batch_age, 0.01, 60.0),
    )
    section.end()
    return store


def _tables(values: Any) -> tuple[TableSettings, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UsageError("job: tables are written as [[tables]], once for each")
    tables: list[TableSettings] = []
    for value in values:
        section = Section("[tables]", value)
        name = section.text("name") or ""
        columns = section.table("columns")
        section.end()
        _check_identifier("table", name, RESERVED_TABLES | {table.name for table in tables})
        if _PART.fullmatch(name):
            raise UsageError(f"job: table {name!r}: names ending in _current or _r1 are shardcrawl's own; rename it")
        if not columns:
            raise UsageError(f'job: table {name} needs columns = {{ id = "bigint", … }}')
        for column, kind in columns.items():
            _check_identifier(f"table {name}: column", column, frozenset(OWN_COLUMNS))
            fault = type_fault(kind) if isinstance(kind, str) else "give the type as text"
            if fault:
                raise UsageError(f"job: table {name}: column {column} is of type {kind!r}; {fault}")
        tables.append(TableSettings(name=name, columns=tuple(columns.items())))
    return tuple(tables)


def _check_identifier(what: str, name: str, taken: frozenset[str] | set[str]) -> None:
    fault = identifier_fault(name)
    if fault:
        raise UsageError(f"job: {what} {name!r}: {fault}")
    if name in taken:
        raise UsageError(f"job: {what} {name!r} is taken; use another name")


def _check_function(section: str, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise UsageError(f"job: [{section}] python is {value!r}; write module:function")
