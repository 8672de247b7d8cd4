"""The job file, TOML or the same document as JSON -> Job; an unknown key is an error that names the nearest one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from coordinator.errors import NotYet, UsageError
from coordinator.settings import (
    ANY_UPSTREAM,
    Job,
    LimitSettings,
    ParseSettings,
    RequestSettings,
    RetrySettings,
    RunSettings,
    SourceSettings,
    StoreSettings,
    TableSettings,
)
from crawler.fetch.template import Template
from crawler.section import Section
from crawler.store.tables import OWN_COLUMNS, RESERVED_TABLES, identifier_fault, type_fault

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_UPSTREAM = re.compile(r"(?:\[[0-9a-f:.]+\]|[^\s:@/?#\[\]*]+)(?::\d{1,5})?")
# A line break in a header would begin another one.
_HEADER_TEXT = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_PART = re.compile(r".*_(?:current|r\d+)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|min|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
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
        limits=_limits(whole.table("limits")),
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


def with_secrets(headers: tuple[tuple[str, str], ...], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Header values with each ${NAME} taken from the environment. Raises UsageError for one that is not set."""

    def secret(match: re.Match[str]) -> str:
        value = environ.get(match[1])
        if value is None:
            raise UsageError(f"job: [request] headers: ${{{match[1]}}} is not set in the environment")
        if not _HEADER_TEXT.fullmatch(value):
            raise UsageError(f"job: [request] headers: ${{{match[1]}}} has a line break or a control character in it")
        return value

    return tuple((name, _SECRET.sub(secret, value)) for name, value in headers)


def rate(value: Any, where: str) -> float | None:
    """Requests a second from 50, "50/s", "5000/h" or "none". Raises UsageError, NotYet."""
    if isinstance(value, list) or value == "auto":
        raise NotYet(f'{where}: several windows and "auto" are not yet in this version; give one rate')
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        match = _RATE.fullmatch(value.strip())
        if match:
            value = float(match[1]) / _SECONDS[match[2]]
        else:
            try:
                value = float(value)
            except ValueError:
                value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise UsageError(f'{where}: write requests a second like 50, or "50/s", "5000/h", "none"')
    return float(value)


def _run(section: Section) -> RunSettings:
    publish = section.raw("publish")
    run = RunSettings(
        name=section.text("name") or "",
        workers=section.whole("workers", 0, 0, 1024) or None,
        concurrency=section.whole("concurrency", _RUN.concurrency, 1, 100_000),
        shards=section.whole("shards", 0, 0, 65_536) or None,
        high_water=section.whole("high_water", _RUN.high_water, 1000),
        max_failed=section.number("max_failed", _RUN.max_failed, 0.0, 1.0),
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
    headers = section.table("headers")
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _is_header_text(value):
            raise UsageError(f"job: [request] headers: {name!r} must be a header name with a text in one line")
    engine = section.text("engine") or defaults.engine
    if engine not in ("pyreqwest", "httpx"):
        raise UsageError(f"job: [request] engine is {engine!r}; known are pyreqwest and httpx")
    request = RequestSettings(
        url=section.text("url"),
        keys_per_request=section.whole("keys_per_request", 1, 1, 500),
        separator=section.text("separator") or defaults.separator,
        headers=tuple(headers.items()),
        user_agent=section.text("user_agent") or defaults.user_agent,
        timeout=section.number("timeout", defaults.timeout, 0.1, 3600),
        http2=section.flag("http2", defaults.http2),
        engine=engine,
        allow_private=section.texts("allow_private"),
        max_body=section.whole("max_body", defaults.max_body, 1, 256 * 1024 * 1024),
    )
    section.end()
    if not _is_header_text(request.user_agent):
        raise UsageError("job: [request] user_agent must be a text in one line")
    _check_networks(request.allow_private)
    return request


def _check_networks(networks: tuple[str, ...]) -> None:
    for network in networks:
        try:
            ip_network(network)
        except ValueError as error:
            raise UsageError(f"job: [request] allow_private: {error}; write networks like 127.0.0.0/8") from None


def _is_header_text(value: Any) -> bool:
    return isinstance(value, str) and _HEADER_TEXT.fullmatch(value) is not None


def _limits(values: Mapping[str, Any]) -> dict[str, LimitSettings]:
    """The limits by upstream, as `upstream_of` names them: a limit that no request would ever meet is an error."""
    limits: dict[str, LimitSettings] = {}
    for name, value in values.items():
        upstream = name.lower()
        if upstream != ANY_UPSTREAM:
            if "*" in upstream:
                raise NotYet(f"job: [limits.{name!r}]: patterns are not yet in this version; name each host, or *")
            if not _UPSTREAM.fullmatch(upstream):
                raise UsageError(f"job: [limits.{name!r}]: write a host like en.wikipedia.org, host:port, or *")
        if upstream in limits:
            raise UsageError(f"job: [limits.{name!r}] stands there twice; upper and lower case mean the same host")
        limits[upstream] = _limit(name, value)
    return limits


def _limit(name: str, values: Any) -> LimitSettings:
    section = Section(f"limits.{name}", values)
    limit = LimitSettings(
        rate=rate(section.raw("rate"), f"job: [limits.{name}] rate"),
        concurrency=section.whole("concurrency", 0, 0, 100_000) or None,
    )
    section.end()
    return limit


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
