"""The user's parser: a Python function from a response to records."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from coordinator.errors import UsageError, first_line
from coordinator.model import Outcome
from crawler.job.job import Job
from crawler.model import MAX_REASON_CHARACTERS, Headers, HttpResponse, Page
from crawler.parse.body import decoded
from crawler.parse.columns import Table

KEY_FIELD = "_key"
_LONG_NUMBER = re.compile(rb"[0-9]{20}")
Records: TypeAlias = Mapping[str, Iterable[Any]]


class Response:
    """What a parser sees of one request: `keys` it asked for (`key` when it was one), status, headers, body.

    Every key counts as stored unless the parser says `gone(key)` or `failed(key, reason)`.
    """

    __slots__ = ("_ends", "body", "headers", "keys", "status", "url")

    def __init__(self, keys: Sequence[str], url: str, status: int, headers: Headers, body: bytes) -> None:
        self.keys = tuple(keys)
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body
        self._ends: dict[str, tuple[Outcome, str]] = {}

    @property
    def key(self) -> str:
        """The only key of the request. Raises ValueError when there are several."""
        if len(self.keys) != 1:
            raise ValueError(f"this response is for {len(self.keys)} keys; use response.keys")
        return self.keys[0]

    def json(self) -> Any:
        """The body as JSON, whole numbers of any size exactly. Raises ValueError."""
        # orjson makes a float of a whole number from 2^64 on, and an id loses its last digits without a word.
        if _LONG_NUMBER.search(self.body):
            return json.loads(self.body)
        return orjson.loads(self.body)

    def text(self) -> str:
        """The body as text, by the charset that Content-Type names, else UTF-8. Raises ValueError."""
        return decoded(self.headers.get("content-type"), self.body)

    def gone(self, key: str, reason: str = "the response says that it does not exist") -> None:
        """Say that the upstream does not have this key."""
        self._end(key, Outcome.GONE, reason)

    def failed(self, key: str, reason: str) -> None:
        """Say that the response has nothing usable for this key."""
        self._end(key, Outcome.FAILED, reason)

    def end(self, key: str) -> tuple[Outcome, str] | None:
        """What the parser said of a key: (outcome, reason), or None."""
        return self._ends.get(key)

    def _end(self, key: str, outcome: Outcome, reason: str) -> None:
        if key not in self.keys:
            raise ValueError(f"key {key!r} is not one of this request's")
        self._ends[key] = (outcome, str(reason)[:MAX_REASON_CHARACTERS])


class Hook:
    """The parser of one job, imported once a process."""

    def __init__(self, parse: Callable[[Response], Records], tables: Sequence[Table]) -> None:
        self._parse = parse
        self._tables = tables
        self._numbers = {table.name: number for number, table in enumerate(tables)}

    def apply(self, pages: Sequence[Page], url: str, http_response: HttpResponse) -> None:
        """Give the request's pages their records; an error of the parser fails all of them, a bad record its key."""
        response = Response(
            [page.item.key for page in pages], url, http_response.status, http_response.headers, http_response.body
        )
        try:
            records = self._parse(response)
            self._assign(pages, records)
        # The user's code may raise anything, and call sys.exit; it costs its keys, no more.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            for page in pages:
                page.fail(f"parse: {type(error).__name__}: {first_line(error)}")
            return
        for page in pages:
            end = response.end(page.item.key)
            if end is not None and page.outcome is Outcome.STORED:
                page.outcome, page.reason = end
                page.records = []

    def _assign(self, pages: Sequence[Page], records: Records | None) -> None:
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


def load(job: Job) -> Hook | None:
    """The job's parser, None when it has none. Raises UsageError when it cannot be imported."""
    if job.parse.python is None:
        return None
    module_name, _, function_name = job.parse.python.partition(":")
    folder = str(Path(job.folder).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        words = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"[parse] python: cannot import {module_name}: {words}") from error
    parse = getattr(module, function_name, None)
    if not callable(parse):
        raise UsageError(f"[parse] python: module {module_name} has no function {function_name!r}")
    return Hook(parse, [Table(table) for table in job.tables])
