"""The user's parser: a Python function from a response to records."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from coordinator.errors import UsageError, first_line
from coordinator.model import Outcome
from coordinator.queue.recent import RecentKeys
from coordinator.user_code import OutOfTime, TimeLimit, file_of, load_module
from crawler.job.job import Job
from crawler.job.sections.parse import ParseSettings
from crawler.job.tables import KEY_FIELD
from crawler.model import Again, HttpResponse, Page
from crawler.parse.columns import Table
from crawler.parse.content import Reduced, compile_ignored, digest_of_records, digest_of_reduced
from crawler.parse.follow.finder import Finder
from crawler.parse.follow.sitemap import SitemapFinder
from crawler.parse.received import NOTHING_CARRIED
from crawler.parse.response import Response
from crawler.parse.select.path import SelectorError
from crawler.parse.select.selected import compile_selectors
from crawler.parse.values.shown import abbreviated

NO_RECORD = "no record"
# Of an error's text. Behind it stands where it was raised, which the bound on a reason must not cut.
MAX_ERROR_CHARACTERS = 1000
# How long a parser's import may take: some load a model of half a gigabyte there.
IMPORT_SECONDS = 120
Records: TypeAlias = Mapping[str, Iterable[Any]]


class Remarks(NamedTuple):
    """What a call of the parser has shown beside its pages.

    `error` is the reason with which all of them failed, None when the parser did not fail. `unknown` are names that are
    of no key of the request: nothing became of what the parser returned for them.
    """

    error: str | None
    unknown: Sequence[str]


class Hook:
    """The user's function of one job, imported in this process from `module_name`, and the tables of its records.

    `folder` has the user's own files, of which an error names the line. `finder` finds the keys that a response names.
    The content of a page is what it `makes_records` of; else its body, or as much of it as `reduced` leaves over.
    Records of `raw` tables stay as they are. `on_error` is called with each error that fails a whole response.
    """

    def __init__(
        self,
        parse: Callable[[Response], Records],
        tables: Sequence[Table],
        module_name: str,
        settings: ParseSettings | None = None,
        folder: str = "",
        finder: Finder | SitemapFinder | None = None,
        reduced: Reduced | None = None,
        *,
        makes_records: bool = True,
        raw: Collection[str] = (),
    ) -> None:
        self._finder = finder
        self._reduced = reduced
        self._makes_records = makes_records and bool(tables)
        self.module_name = module_name
        self._settings = settings or ParseSettings()
        self._folder = folder
        self._parse = parse
        self.on_error: Callable[[BaseException], None] = lambda _: None
        self._tables = tables
        # Records that go through a transform are converted after it.
        self._conversions: list[Callable[[Any], Any]] = [
            table.mapping if table.name in raw else table.row for table in tables
        ]
        self._numbers = {table.name: number for number, table in enumerate(tables)}

    def apply(self, pages: Sequence[Page], url: str, http_response: HttpResponse) -> Remarks | None:
        """Give the request's pages their records. An error of the parser fails all of them, a bad record its key only.

        `url` is Response.url for the user's function. Returns None when there is nothing to remark.
        """
        keys, (status, headers, body, *_) = [page.item.user_key for page in pages], http_response
        source = pages[0].item.context.fields if len(pages) == 1 else NOTHING_CARRIED
        response = Response(keys, url, status, headers, body, self._settings.alias, source, self._settings.format)
        try:
            records = self._parse(response)
            self._assign(pages, records, response)
        except (KeyboardInterrupt, GeneratorExit, OutOfTime):
            raise
        # The user's code may raise anything, and call sys.exit; a panic in Rust is a BaseException too. Its keys fail,
        # and nothing else. A CancelledError would cancel the lane, and the run would wait for its request for ever.
        except BaseException as error:  # noqa: BLE001
            return self.fail(pages, error)
        for page in pages:
            page.encoding = response.encoding
            said = response.said_of(page.item.user_key)
            if said is not None and page.outcome is Outcome.STORED:
                page.records = []
                if isinstance(said, Again):
                    page.again = said
                else:
                    page.outcome, page.reason = said
                    page.content_digest = b"" if page.outcome is Outcome.UNCHANGED else None
        if len(keys) > 1 or response.unknown or self._settings.no_record:
            self._end_without_record(pages, response)
        if self._finder is not None or response.followed:
            try:
                self._find(pages, response)
            except Exception as error:  # noqa: BLE001 - as above: the response or the user's selectors are at fault
                return self.fail(pages, error)
        if self._makes_records or self._reduced is not None:
            self._digest(pages, response)
        return Remarks(None, [str(name) for name in response.unknown]) if response.unknown else None

    def fail(self, pages: Sequence[Page], error: BaseException) -> Remarks:
        """Fail all of the request's pages with an error that the user's function raised."""
        self.on_error(error)
        for page in pages:
            page.fail(f"parse: {shown_error(error, self._folder)}")
        return Remarks(pages[0].reason, ())

    def traceback_of(self, error: BaseException, job_folder: str) -> str:
        """The error's traceback, with the lines of the user's files only; none of a selector, which has no lines."""
        if isinstance(error, SelectorError) and not self._folder:
            return ""
        calls = traceback.extract_tb(error.__traceback__)
        own = [call for call in calls if _is_own(Path(call.filename), self._folder or job_folder)]
        return "".join([*traceback.format_list(own), *traceback.format_exception_only(error)])

    def _digest(self, pages: Sequence[Page], response: Response) -> None:
        body = None if self._reduced is None else digest_of_reduced(self._reduced, response)
        for page in pages:
            if page.outcome is Outcome.STORED and page.again is None:
                page.content_digest = digest_of_records(page.records) if self._makes_records else body

    def _find(self, pages: Sequence[Page], response: Response) -> None:
        if self._finder is None:
            raise ValueError("response.follow: the job follows nothing; write [[follow]] in it")
        self._finder.find(pages, response)

    def _end_without_record(self, pages: Sequence[Page], response: Response) -> None:
        """Decide how the keys end for which the parser returned no record, and of which it said nothing.

        A key that the upstream calls by the same name as another key of the request ends as that one does.
        """
        empty = [page for page in pages if page.outcome is Outcome.STORED and not page.records and page.again is None]
        if not empty:
            return
        others = [page for page in pages if page.outcome is not Outcome.STORED or page.records or page.again]
        by_name = {response.name_of(page.item.user_key): page for page in others}
        outcome = Outcome(self._settings.no_record or Outcome.FAILED)
        for page in empty:
            other = by_name.get(response.name_of(page.item.user_key)) if by_name else None
            if other is not None:
                page.outcome, page.reason, page.records = other.outcome, other.reason, list(other.records)
                page.again, page.content_digest = other.again, other.content_digest
            elif self._tables and outcome is not Outcome.STORED:
                page.outcome, page.reason = outcome, NO_RECORD

    def _assign(self, pages: Sequence[Page], records: Records | None, response: Response) -> None:
        """Convert each record, and add it to the page of its key. One that names no key of the request is left out.

        Raises ValueError when a record is of no table of the job, or does not say whose it is.
        """
        if not isinstance(records, Mapping | None):
            what = type(records).__name__
            raise ValueError(f"the parser returned a {what}; return the records of each table: {{'TABLE': [...]}}")
        by_key = {page.item.user_key: page for page in pages}
        only = pages[0] if len(pages) == 1 else None
        for table_name, rows in (records or {}).items():
            number = self._numbers.get(table_name)
            if number is None:
                raise ValueError(f"no table {table_name!r} in the job; it has {', '.join(self._numbers) or 'none'}")
            if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
                raise ValueError(f"{table_name}: {abbreviated(rows)} is no list of records; return [] for none")
            convert = self._conversions[number]
            for record in rows:
                page = only
                if isinstance(record, Mapping) and KEY_FIELD in record:
                    name = record[KEY_FIELD]
                    if type(name).__hash__ is None:
                        raise ValueError(
                            f"{table_name}: {KEY_FIELD} is {abbreviated(name)}; give it a text or a number"
                        )
                    page = by_key.get(name) or by_key.get(response.key_for(name) or "")
                    if page is None:
                        continue
                    record = {name: value for name, value in record.items() if name != KEY_FIELD}
                if page is None:
                    raise ValueError(f'{table_name}: with several keys in a request a record says whose it is: "_key"')
                if page.outcome is not Outcome.STORED:
                    continue
                try:
                    page.records.append((number, convert(record)))
                except ValueError as error:
                    page.fail(f"parse: {error}")


def load(
    whole: Job, module_name: str | None = None, kind: str = "", recent: Mapping[str, RecentKeys] | None = None
) -> Hook | None:
    """Import the parser of a kind's keys, or compile their selectors; None when there is neither. Raises UsageError.

    Keys that are in `recent`, that of their kind, are not looked for in responses.

    `module_name` is Hook.module_name of the process that reads what this one pickles: classes need the same name here.
    """
    job = whole.of_kind(kind)
    tables = [Table(table) for table in job.tables]
    raw = {one.table for one in job.transform}
    if job.is_sitemap:
        return Hook(lambda _: {}, tables, "", job.parse, finder=SitemapFinder(whole), makes_records=False)
    finder = Finder(whole, kind, recent) if whole.follows else None
    if job.parse.python is None:
        reduced = compile_ignored(job) if job.parse.ignore else None
        if finder is None and not job.has_parser and reduced is None:
            return None
        makes_records = bool(job.own_tables)
        select = compile_selectors(job)
        return Hook(select, tables, "", job.parse, "", finder, reduced, makes_records=makes_records, raw=raw)
    parse, module, own = load_function("[parse]", job.parse.python, job.folder, module_name)
    return Hook(parse, tables, module.__name__, job.parse, own, finder, raw=raw)


def load_function(
    where: str, python: str, job_folder: str, module_name: str | None = None
) -> tuple[Callable[..., Any], ModuleType, str]:
    """Import module:function that a section names; returns it, its module, and the folder of the user's own files.

    Raises UsageError.
    """
    name, _, function_name = python.partition(":")
    folder = Path(job_folder).resolve()
    try:
        with TimeLimit(IMPORT_SECONDS):
            module = load_module(module_name or name, folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs the user's code, which may raise anything
        raise UsageError(f"{where} python: cannot import {name}: {shown_error(error, str(folder))}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{where} python: module {name} has no function {function_name!r}")
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"{where} python: {python} is async; write a plain function")
    return function, module, str(folder) if file_of(name, folder) else str(Path(module.__file__ or folder).parent)


def shown_error(error: BaseException, folder: str) -> str:
    """The error's class and first line, and where it was raised: `KeyError: 'x' (parse.py, line 3)`.

    That is the innermost line in the user's folder, without packages that are installed there.
    """
    if isinstance(error, SelectorError):
        return first_line(error)
    kind, words = type(error).__name__, first_line(error)
    text = kind if words == kind else f"{kind}: {words}"
    if folder and not isinstance(error, SyntaxError):  # that one says its file and line itself
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            file = Path(frame.f_code.co_filename)
            if _is_own(file, folder):
                return f"{text[:MAX_ERROR_CHARACTERS]} ({file.relative_to(folder)}, line {line})"
    return text


def _is_own(file: Path, folder: str) -> bool:
    return file.is_relative_to(folder) and "site-packages" not in file.parts
