"""Compiles the selectors of a job into a function like a parser's: from a response to the records of each table."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

from coordinator.errors import UsageError
from crawler.fetch.retry import NOT_READY
from crawler.job.job import Job
from crawler.job.sections.parse import ParseSettings
from crawler.job.tables import KEY_FIELD, ColumnSettings, TableSettings, column_type
from crawler.parse.columns import conversion
from crawler.parse.received import Received
from crawler.parse.select.condition import Condition, compile_condition, first_that_holds
from crawler.parse.select.formats import language_of
from crawler.parse.select.language import Language, Lines, Scope, scope_of
from crawler.parse.select.path import ABSENT, NOT_ENCLOSED, Around, Node, SelectorError
from crawler.parse.select.reading import Read, for_column, of_text, reading
from crawler.parse.select.selector import Selector, compile_selector

Compiled = TypeVar("Compiled")
Nodes: TypeAlias = Callable[[Scope], Iterable[Node]]
# In this order they are read.
ENDS = ("wait", "retry", "failed", "gone")


class _Conditions:
    """The conditions of `[parse]` that end keys, or request them again: those of one kind."""

    def __init__(
        self, settings: ParseSettings, language: Language, around: Around, of_kind: Callable[[Condition], bool]
    ) -> None:
        ends = [
            (end, [_compiled(f"[parse] {end}", compile_condition, text, language, around) for text in _texts(given)])
            for end in ENDS
            if (given := getattr(settings, end))
        ]
        self._ends = [(end, chosen) for end, found in ends if (chosen := [one for one in found if of_kind(one)])]

    def __bool__(self) -> bool:
        return bool(self._ends)

    def end(self, keys: Iterable[str], node: Node, scope: Scope) -> bool:
        """Say of the keys what the first condition that holds says; returns whether one does."""
        for end, conditions in self._ends:
            if (reason := first_that_holds(conditions, node, scope)) is not None:
                response = scope.response
                for key in keys:
                    match end:
                        case "wait":
                            response.wait(key, reason)
                        case "retry":
                            response.retry(reason, key=key)
                        case "failed":
                            response.failed(key, reason)
                        case "gone":
                            response.gone(key, reason)
                return True
        return False


class _SelectedTable:
    """One table, its records and columns."""

    def __init__(
        self, table: TableSettings, settings: ParseSettings, conditions: _Conditions, *, several: bool, is_raw: bool
    ) -> None:
        """With `is_raw` a transform makes of its records what the columns take."""
        where, language = f"table {table.name}", language_of(settings.format)
        self.name = table.name
        rows = table.rows or settings.rows
        around = _around(rows, language)
        self._is_of_lines = language.has_lines and rows is None
        self._nodes = _compiled(f"{where}: rows", compile_rows, rows, language)
        self._key = (
            None if settings.key is None else _compiled("[parse] key", compile_selector, settings.key, language, around)
        )
        if several and self._key is None:
            raise UsageError('job: [parse] key: with several keys a request, say whose a record is, like key = "id"')
        self._skip = [
            _compiled(f"{where}: skip", compile_condition, text, language, around) for text in _texts(table.skip)
        ]
        self._conditions = conditions
        columns = [(name, _column(given, name)) for name, given in table.column_settings.items()]
        self._columns = tuple(name for name, _ in columns)
        self._selectors = [
            _compiled(f"{where}: column {name}", compile_selector, given.source, language, around)
            for name, given in columns
        ]
        self._readings = [
            (index, read)
            for index, (name, given) in enumerate(columns)
            if (read := _compiled(f"{where}: column {name}: as", _reading, given, language)) is not None
        ]
        if not is_raw:
            reads = dict(self._readings)
            for index, ((name, given), selector) in enumerate(zip(columns, self._selectors, strict=True)):
                _compiled(f"{where}: column {name}", _check_type, given, selector, reads.get(index))
        quick = [selector.quick for selector in self._selectors if selector.quick is not None]
        self._quick = quick if len(quick) == len(self._selectors) else (_not_quick,)

    def records(self, scope: Scope) -> Iterator[Any]:
        """The records of the response. Raises SelectorError for one that has not what it must have."""
        if self._is_of_lines and isinstance(scope.root, Lines) and not scope.root:
            self._check_names(scope.root.names, scope)
        for node, key in self.open_nodes(scope):
            if self._skip and first_that_holds(self._skip, node, scope) is not None:
                continue
            row = self._row(node, scope)
            yield row if key is None else {KEY_FIELD: key, **dict(zip(self._columns, row, strict=True))}

    def _check_names(self, names: Sequence[str], scope: Scope) -> None:
        """Raise SelectorError when a csv without lines has not the columns: it may be a page that is no csv."""
        node = Node(dict.fromkeys(names, ""))
        for name, selector in zip(self._columns, self._selectors, strict=True):
            if names and selector.quick is not None:
                self._required(selector, node, scope, f"{self.name}.{name}")

    def open_nodes(self, scope: Scope) -> Iterator[tuple[Node, Any]]:
        """The nodes of records, each with its key if it says that, but those whose keys a condition ends."""
        for node in self._nodes(scope):
            key = None if self._key is None else self._required(self._key, node, scope, "[parse] key")
            if self._conditions:
                keys = scope.response.keys if key is None else (key,)
                known = [one for one in keys if scope.response.key_for(one) is not None]
                if self._conditions.end(known, node, scope):
                    continue
            yield node, key

    def _row(self, node: Node, scope: Scope) -> list[Any]:
        value = node.value
        try:
            row = [get(value) for get in self._quick]
        except (KeyError, TypeError, AttributeError):
            row = [
                self._required(selector, node, scope, f"{self.name}.{name}")
                for name, selector in zip(self._columns, self._selectors, strict=True)
            ]
        for index, read in self._readings:
            if row[index] is not None:
                try:
                    row[index] = read(row[index])
                except ValueError as error:
                    raise SelectorError(f"{self.name}.{self._columns[index]}: {error}") from error
        return row

    @staticmethod
    def _required(selector: Selector, node: Node, scope: Scope, what: str) -> Any:
        value = selector.select(node, scope)
        if value is not ABSENT:
            return value
        if selector.may_be_absent:
            return None
        raise SelectorError(f"{what}: nothing at {selector.text}; write {selector.text}? where it may be absent")


def compile_selectors(job: Job) -> Callable[[Received], Mapping[str, Iterable[Any]]]:
    """The function from a response to records by the job's selectors. Raises UsageError, which names the selector.

    The function raises SelectorError when the response is of another format, or has not what it must have.
    """
    language = language_of(job.parse.format)
    of_tables = [_around(table.rows or job.parse.rows, language) for table in job.own_tables]
    # On a record without a name a condition on it does not hold; `^` would lead to nothing at all.
    around = Around(min((one.levels for one in of_tables), default=0), any(one.has_name for one in of_tables))
    of_response = _Conditions(job.parse, language, around, lambda one: one.is_of_response)
    of_head = _Conditions(job.parse, language, around, lambda one: one.is_of_head)
    of_records = _Conditions(job.parse, language, around, lambda one: not one.is_of_response)
    several, raw = job.request.keys_per_request > 1, {one.table for one in job.transform}
    tables = [
        _SelectedTable(table, job.parse, of_records, several=several, is_raw=table.name in raw)
        for table in job.own_tables
    ]

    def select(response: Received) -> Mapping[str, Iterable[Any]]:
        if not tables and not of_response:
            return {}
        try:
            scope = scope_of(response, language)
        except SelectorError:
            if of_head.end(response.keys, Node(None), Scope(response, None)):
                return {}
            if response.status != HTTPStatus.ACCEPTED:
                raise
            response.retry(NOT_READY)
            return {}
        if of_response and of_response.end(response.keys, Node(scope.root), scope):
            return {}
        if response.status == HTTPStatus.ACCEPTED:
            response.retry(NOT_READY)  # but for keys of which a condition says something else
            with suppress(SelectorError):
                for table in tables:
                    deque(table.open_nodes(scope), 0)
            return {}
        return {table.name: table.records(scope) for table in tables}

    return select


def compile_rows(text: str | None, language: Language) -> Nodes:
    """The function from a response to the nodes of its records. Raises ValueError."""
    may_be_absent = (text or "").strip().endswith("?")
    path = _path_of_rows(text, language)
    rows = language.compile_rows(path)

    def nodes(scope: Scope) -> Iterable[Node]:
        found = rows(scope.root)
        if found is not None or may_be_absent:
            return found or ()
        raise SelectorError(f"rows: nothing at {path}; write {path}? where that means no rows")

    return nodes


def _path_of_rows(text: str | None, language: Language) -> str | None:
    text = text and text.strip()
    return text and text.removesuffix("?").removeprefix("$").removeprefix(language.behind if text[0] == "$" else "")


def _around(rows: str | None, language: Language) -> Around:
    """What encloses a record of these rows; nothing where they are wrong, which is said elsewhere."""
    try:
        return language.around(_path_of_rows(rows, language))
    except ValueError:
        return NOT_ENCLOSED


def _check_type(given: ColumnSettings, selector: Selector, read: Read | None) -> None:
    """Raise ValueError when nothing to which the selector can lead is of the column's type."""
    kind, fault = column_type(given.type), ""
    examples = [one for one in selector.examples if isinstance(one, list) is kind.is_array] or selector.examples
    if given.reading is not None and "%" in given.reading:
        written = datetime(1970, 1, 1, tzinfo=UTC).strftime(given.reading)
        examples = [[written] if isinstance(one, list) else written for one in examples]
    convert = conversion(kind)
    for example in examples:
        try:
            convert(example if read is None else read(example))
        except (ValueError, TypeError, OverflowError) as error:
            fault = str(error)
        else:
            return
    raise ValueError(f"nothing at {selector.text} can go into {kind}: {fault}")


def _reading(given: ColumnSettings, language: Language) -> Read | None:
    kind = column_type(given.type)
    if given.reading is not None:
        return for_column(reading(given.reading), kind, is_text=language.is_text)
    return of_text(kind) if language.is_text else None


def _not_quick(_: Any) -> Any:
    raise KeyError


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given


def _column(given: str | ColumnSettings, name: str) -> ColumnSettings:
    if isinstance(given, str):
        return ColumnSettings(type=given, source=name)
    return ColumnSettings(type=given.type, source=name, reading=given.reading) if given.source == "" else given


def _compiled(where: str, compile_one: Callable[..., Compiled], *given: Any) -> Compiled:
    try:
        return compile_one(*given)
    except ValueError as error:
        raise UsageError(f"job: {where}: {error}") from error
