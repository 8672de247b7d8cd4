"""Reads a job from its document, which is a TOML file, or JSON of the same shape from Postgres."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.errors import UsageError
from coordinator.settings import LimitSettings
from crawler.job.fields import (
    DURATION,
    FUNCTION,
    MAX_WAIT_SECONDS,
    SectionModel,
    read_section,
    refuse_unknown,
)
from crawler.job.memory import body_memory
from crawler.job.models import JobFile, ParseSettings, RetrySettings, StoreSettings
from crawler.job.request.placeholders import fields_named
from crawler.job.request.settings import RequestSettings
from crawler.job.request.since import PLACE, with_since
from crawler.job.request_checks import check_request, seconds_of
from crawler.job.sections.following import (
    KIND_NAME,
    FollowSettings,
    KindSettings,
    PaginateSettings,
    check_following,
    check_kind,
    check_paginate,
    in_kind,
    kind_request,
)
from crawler.job.sections.limits import limits_in
from crawler.job.sections.publish import PublishSettings, check_publish
from crawler.job.sections.run import RunSettings, check_run, check_schema
from crawler.job.sections.source import SITEMAP, SourceSettings, check_source
from crawler.job.tables import TableSettings, check_tables, is_column_type


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job. A process reads it once and passes it on, also to child processes by pickle.

    `folder` is where its relative paths and its Python modules are looked up. `document` is what it was read from,
    with its secrets still as ${NAME}. `kinds` are the jobs of the keys of other kinds than the source's, each with its
    own `kind`, `request`, `parse` and `paginate`, and otherwise the same. `source_database` is the address for
    `[source] query`: a secret, which a process that reads the source fills in. `names_corpus`: its corpus is not just
    called as the job file is.
    """

    run: RunSettings
    source: SourceSettings
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: Mapping[str, LimitSettings] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    tables: tuple[TableSettings, ...] = ()
    paginate: PaginateSettings | None = None
    follow: tuple[FollowSettings, ...] = ()
    kind: str = ""
    kinds: Mapping[str, Job] = field(default_factory=dict)
    folder: str = "."
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    source_database: str = field(default="", compare=False, repr=False)
    names_corpus: bool = field(default=True, compare=False, repr=False)

    @property
    def corpus(self) -> str:
        """The corpus of which its run is a version."""
        return self.run.corpus or self.run.name

    @property
    def has_parser(self) -> bool:
        """Whether a response is parsed: by a function of the user's, by selectors, or as a sitemap."""
        return self.parse.python is not None or bool(self.own_tables) or self.is_sitemap

    @property
    def is_sitemap(self) -> bool:
        """Whether the keys of this kind are sitemaps, for which the parser is built in."""
        return self.kind == SITEMAP and bool(self.source.sitemap)

    @property
    def body_memory(self) -> int:
        """The bytes of a worker for large bodies."""
        return body_memory(self.run, self.request, self.store, reads_responses=self.reads_responses)

    @property
    def reads_responses(self) -> bool:
        """Whether responses of any kind are parsed, or searched for keys."""
        return self.follows or any(one.has_parser for one in self.every_kind)

    @property
    def own_tables(self) -> tuple[TableSettings, ...]:
        """The tables that keys of this job's kind fill."""
        return tuple(table for table in self.tables if table.kind == self.kind)

    @property
    def every_kind(self) -> tuple[Job, ...]:
        """This job, and those of the other kinds."""
        return (self, *self.kinds.values())

    def of_kind(self, kind: str) -> Job:
        """The job of the keys of this kind. Raises UsageError when there is none."""
        if kind and kind not in self.kinds:
            raise UsageError(f"job: no kind {kind!r}; [kinds] has {', '.join(self.kinds) or 'none'}")
        return self.kinds[kind] if kind else self

    @property
    def follows(self) -> bool:
        """Whether keys that pages name are fetched too."""
        return bool(self.follow or self.source.sitemap) or any(job.paginate for job in self.every_kind)

    @property
    def by_level(self) -> bool:
        """Whether keys of one depth wait until those of the depth before have ended."""
        return any(rule.depth is not None for rule in self.follow)

    @property
    def most_found(self) -> Mapping[int, int]:
        """{number of a rule: how many keys it finds at most}."""
        return {number: rule.most for number, rule in enumerate(self.follow) if rule.most is not None}

    @property
    def obeys_robots(self) -> bool:
        """Whether robots.txt is obeyed: by default where keys of some kind are URLs."""
        return any(job.request.obeys_robots for job in self.every_kind)

    @property
    def reads_accepted(self) -> bool:
        """Whether the parser decides on a response 202, which without `wait` is a failed attempt."""
        return bool(self.parse.wait)


def read_job(document: Mapping[str, Any], folder: str = ".") -> Job:
    """The job in a document, its secrets still as ${NAME}.

    Raises UsageError, which names the nearest key for one that is unknown, and NotYet for what is planned.
    """
    if not isinstance(document, Mapping):
        raise UsageError("job: the document is no table; write [run], [source] and their keys")
    job = _read(with_since(document), folder)
    kinds = {name: replace(one, document=document) for name, one in job.kinds.items()}
    return replace(job, document=document, kinds=kinds)


def _read(document: Mapping[str, Any], folder: str) -> Job:
    refuse_unknown(JobFile, "job", document)
    follow = _entries(document.get("follow"), "follow", FollowSettings)
    job = Job(
        run=_section(document, "run", RunSettings),
        source=_section(document, "source", SourceSettings),
        request=_section(document, "request", RequestSettings),
        limits=limits_in(_table(document, "limits")),
        retry=_section(document, "retry", RetrySettings),
        parse=_section(document, "parse", ParseSettings),
        store=_section(document, "store", StoreSettings),
        publish=_section(document, "publish", PublishSettings),
        tables=_tables(document.get("tables")),
        paginate=_section(document, "paginate", PaginateSettings) if "paginate" in document else None,
        follow=follow,
        folder=folder,
        document=document,
    )
    job = replace(job, kinds={name: _of_kind(job, name, given) for name, given in _table(document, "kinds").items()})
    check_run(job.run)
    check_publish(job.publish)
    check_schema(job.store.schema)
    check_source(job.source, job.kinds, keys_are_urls=job.request.url is None)
    body_memory(job.run, job.request, job.store, reads_responses=job.reads_responses)  # refused when it is too little
    check_tables(job.tables)
    check_following(job.follow, job.kinds, has_parser=any(one.parse.python for one in job.every_kind))
    for one in job.every_kind:
        with in_kind(one.kind):
            check_request(one.request)
            _check_named_fields(one)
            _check_function("parse", one.parse.python)
            check_paginate("[paginate]" if not one.kind else f"[kinds.{one.kind}.paginate]", one.paginate)
            _check_selectors(one)
    for table in job.tables:
        if table.kind:
            check_kind(f"job: table {table.name}: kind", table.kind, job.kinds)
    sitemaps = {SITEMAP: _of_kind(replace(job, kinds={}), SITEMAP, {})} if job.source.sitemap else {}
    return replace(job, kinds={**job.kinds, **sitemaps})


def _of_kind(job: Job, name: str, given: Any) -> Job:
    """The job of one kind's keys. Raises UsageError."""
    where = f"kinds.{name}"
    if not re.fullmatch(KIND_NAME, name):
        raise UsageError(f"job: [{where}]: a kind's name has lower-case letters, digits, _ and -")
    settings = read_section(KindSettings, where, given)
    request = kind_request(f"{where}.request", _table(job.document, "request"), settings.request)
    has_list = "paginate" in given
    return replace(
        job,
        kind=name,
        request=read_section(RequestSettings, f"{where}.request", request),
        parse=read_section(ParseSettings, f"{where}.parse", settings.parse),
        paginate=read_section(PaginateSettings, f"{where}.paginate", settings.paginate) if has_list else None,
    )


def _section(document: Mapping[str, Any], name: str, model: type[SectionModel]) -> SectionModel:
    return read_section(model, name, _table(document, name))


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = document.get(name)
    if values is not None and not isinstance(values, Mapping):
        raise UsageError(f"job: [job] {name} is {values!r}; it must be a table")
    return values or {}


def _tables(values: Any) -> tuple[TableSettings, ...]:
    for value in values if isinstance(values, list) else ():
        _refuse_slipped(value)
    return _entries(values, "tables", TableSettings)


def _entries(values: Any, name: str, model: type[SectionModel]) -> tuple[SectionModel, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise UsageError(f"job: {name} are written as [[{name}]], once for each")
    return tuple(read_section(model, f"[{name}]", value) for value in values)


def _refuse_slipped(table: Any) -> None:
    """Raise UsageError for a key of the table that stands below [tables.columns], which TOML reads as a column."""
    columns = table.get("columns") if isinstance(table, Mapping) else None
    for name, given in columns.items() if isinstance(columns, Mapping) else ():
        if name in TableSettings.__struct_encode_fields__ and not is_column_type(given):
            raise UsageError(
                f"job: table {table.get('name')}: {name} stands below [tables.columns]; write it above that"
            )


def _check_function(section: str, name: str | None) -> None:
    """Raise UsageError when `name` is given, and is not module:function."""
    if name is not None and not re.fullmatch(FUNCTION, name):
        raise UsageError(f"job: [{section}] python is {name!r}; write module:function")


def _check_selectors(job: Job) -> None:
    """Raise UsageError for selectors that nothing reads."""
    parse, tables = job.parse, job.own_tables
    given = [f"[parse] {key}" for key in ("rows", "key", "wait", "retry", "failed", "gone") if getattr(parse, key)]
    given += ["[parse] format"] if parse.format != "json" and not parse.ignore else []
    given += [f"table {table.name}: {key}" for table in tables for key in ("rows", "skip") if getattr(table, key)]
    given += [
        f"table {table.name}: column {column}"
        for table in tables
        for column, settings in table.column_settings.items()
        if not isinstance(settings, str)
    ]
    if not re.fullmatch(DURATION, parse.wait_most) or seconds_of(parse.wait_most) > MAX_WAIT_SECONDS:
        raise UsageError(f'job: [parse] wait_most is {parse.wait_most!r}; write a time like "10min", at most "24h"')
    if parse.ignore and job.has_parser:
        raise UsageError("job: [parse] ignore: pages with a parser are compared by their records; leave it out")
    if given and parse.python is not None:
        raise UsageError(f"job: {given[0]}: [parse] python makes the records; leave out one of the two")
    if given and not job.own_tables and not job.follow and not job.paginate:
        raise UsageError(f"job: {given[0]}: selectors fill [[tables]]; add one with its columns")


def _check_named_fields(job: Job) -> None:
    """Raise UsageError for a field in `[request]` that no key can have; what a function yields, nobody knows here."""
    if job.source.python is not None and not job.kind:
        return
    carried = [] if job.kind else [getattr(job.source, name, None) or () for name in ("key", "carry")]
    known = {name for names in carried for name in ([names] if isinstance(names, str) else names)}
    for name, where in fields_named(job.request).items():
        if name not in known:
            if f"{{{name}}}" == PLACE:
                raise UsageError(f"job: [request] {where} names {PLACE}; say in [run] since what that is at first")
            raise UsageError(
                f"job: [request] {where} names {{{name}}}, which no key has; write {{key}}, or {{{{{name}}}}} for the "
                "text itself"
            )
