"""The user's parser: a Python function from a response to records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from coordinator.errors import UsageError, first_line
from coordinator.model import Outcome
from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.parse.columns import Table
from crawler.parse.response import Response

KEY_FIELD = "_key"
Records: TypeAlias = Mapping[str, Iterable[Any]]


class Hook:
    """The user's function of one job, imported in this process from `module_name`, and the tables of its records."""

    def __init__(self, parse: Callable[[Response], Records], tables: Sequence[Table], module_name: str) -> None:
        self.module_name = module_name
        self._parse = parse
        self._tables = tables
        self._numbers = {table.name: number for number, table in enumerate(tables)}

    def apply(self, pages: Sequence[Page], url: str, http_response: HttpResponse) -> None:
        """Give the request's pages their records. An error of the parser fails all of them, a bad record its key only.

        `url` is Response.url for the user's function.
        """
        response = Response(
            [page.item.key for page in pages], url, http_response.status, http_response.headers, http_response.body
        )
        try:
            records = self._parse(response)
            self._assign(pages, records)
        # The user's code may raise anything, and call sys.exit. Its keys fail, and nothing else does.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            for page in pages:
                page.fail(f"parse: {type(error).__name__}: {first_line(error)}")
            return
        for page in pages:
            outcome = response.outcome_of(page.item.key)
            if outcome is not None and page.outcome is Outcome.STORED:
                page.outcome, page.reason = outcome
                page.records = []

    def _assign(self, pages: Sequence[Page], records: Records | None) -> None:
        """Convert each record, and add it to the page of its key.

        Raises ValueError when a record is of no table of the job, or of no key of the request.
        """
        by_key = {page.item.key: page for page in pages}
        only = pages[0] if len(pages) == 1 else None
        for table_name, rows in (records or {}).items():
            number = self._numbers.get(table_name)
            if number is None:
                raise ValueError(f"no table {table_name!r} in the job; it has {', '.join(self._numbers) or 'none'}")
            table = self._tables[number]
            for record in rows:
                page = only
                if isinstance(record, Mapping) and KEY_FIELD in record:
                    page = by_key.get(record[KEY_FIELD])
                    if page is None:
                        raise ValueError(f"{table_name}: key {record[KEY_FIELD]!r} is not one of this request's")
                    record = {name: value for name, value in record.items() if name != KEY_FIELD}
                if page is None:
                    raise ValueError(f'{table_name}: with several keys in a request a record says whose it is: "_key"')
                if page.outcome is not Outcome.STORED:
                    continue
                try:
                    page.records.append((number, table.row(record)))
                except ValueError as error:
                    page.fail(f"parse: {error}")


def load(job: Job, module_name: str | None = None) -> Hook | None:
    """Import the job's parser; None when the job has none. Raises UsageError when it cannot be imported.

    `module_name` is Hook.module_name of the process that reads what this one pickles: classes need the same name here.
    """
    if job.parse.python is None:
        return None
    name, _, function_name = job.parse.python.partition(":")
    try:
        folder = Path(job.folder).resolve()
        package = _make_importable(folder)
        module = import_module(module_name or _module_name(name, folder, package))
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"[parse] python: cannot import {name}: {reason}") from error
    parse = getattr(module, function_name, None)
    if not callable(parse):
        raise UsageError(f"[parse] python: module {name} has no function {function_name!r}")
    return Hook(parse, [Table(table) for table in job.tables], module.__name__)


def _make_importable(folder: Path) -> str:
    """Let modules in the folder be imported by their names, and as parts of a package that stands for the folder.

    Returns the package's name.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    package = ModuleType(f"shardcrawl_job_{blake2b(str(folder).encode(), digest_size=8).hexdigest()}")
    package.__path__ = [str(folder)]
    sys.modules.setdefault(package.__name__, package)
    return package.__name__


def _module_name(name: str, folder: Path, package: str) -> str:
    """The name to import a parser's module by: its own, so that its neighbours import the same module as we do.

    Where that name stands for another module, of another job's folder or an installed one, it is the module's name in
    the package that stands for the folder.
    """
    file = _file_of(name, folder)
    if file is None:
        return name
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        found = None
    return name if found is not None and found.origin == file else f"{package}.{name}"


def _file_of(name: str, folder: Path) -> str | None:
    """The file of that module in the folder, None when it has none."""
    path = folder.joinpath(*name.split("."))
    try:
        return next((str(file) for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
    except OSError:  # this process may not look into the folder: the module may be installed
        return None
