"""Reads a job from its document, which is a TOML file, or JSON of the same shape from Postgres."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coordinator.errors import UsageError
from coordinator.settings import LimitSettings
from crawler.job.document import JobOverrides, load_document, plain_document
from crawler.job.fields import (
    FUNCTION,
    SectionModel,
    read_section,
    refuse_unknown,
)
from crawler.job.memory import body_memory
from crawler.job.models import JobFile, RetrySettings, StoreSettings
from crawler.job.request.placeholders import fields_named
from crawler.job.request.settings import RequestSettings
from crawler.job.request.since import PLACE, with_since
from crawler.job.request_checks import check_request
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
from crawler.job.sections.notify import NotifySettings, check_notify
from crawler.job.sections.parse import ParseSettings, check_selectors
from crawler.job.sections.publish import PublishSettings, check_publish
from crawler.job.sections.run import RunSettings, check_run, check_schema
from crawler.job.sections.source import SITEMAP, SourceSettings, check_source
from crawler.job.sections.transform import TransformSettings, transforms_in
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
    notify: NotifySettings = field(default_factory=NotifySettings)
    tables: tuple[TableSettings, ...] = ()
    transform: tuple[TransformSettings, ...] = ()
    paginate: PaginateSettings | None = None
    follow: tuple[FollowSettings, ...] = ()
    kind: str = ""
    kinds: Mapping[str, Job] = field(default_factory=dict)
    folder: str = "."
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    source_database: str = field(default="", compare=False, repr=False)
    names_corpus: bool = field(default=True, compare=False, repr=False)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], folder: str | Path = ".") -> Job:
        """The job in a dict that has what a job file has; `folder` is that of its files. Raises UsageError."""
        return read_job(plain_document(document), str(Path(folder).resolve()))

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """The job in a job file (.toml), or of a file of URLs. Raises UsageError."""
        document, folder, names_corpus = load_document(str(path), JobOverrides())
        return replace(read_job(document, folder), names_corpus=names_corpus)

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
    def functions(self) -> Mapping[str, str]:
        """The user's functions that make records, as module:function, each with the section that names it."""
        parsers = {one.parse.python: "parse" for one in self.every_kind if one.parse.python}
        return parsers | {one.python: "transform" for one in self.transform}

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
        notify=_section(document, "notify", NotifySettings),
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
    check_notify(job.notify)
    check_source(job.source, job.kinds, keys_are_urls=job.request.url is None)
    body_memory(job.run, job.request, job.store, reads_responses=job.reads_responses)  # refused when it is too little
    check_tables(job.tables)
    job = replace(job, transform=transforms_in(document.get("transform"), job.tables, job.run.grace))
    check_following(job.follow, job.kinds, has_parser=any(one.parse.python for one in job.every_kind))
    for one in job.every_kind:
        with in_kind(one.kind):
            check_request(one.request)
            _check_named_fields(one)
            _check_function("parse", one.parse.python)
            check_paginate("[paginate]" if not one.kind else f"[kinds.{one.kind}.paginate]", one.paginate)
            check_selectors(
                one.parse, one.own_tables, has_parser=one.has_parser, has_following=bool(one.follow or one.paginate)
            )
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
