"""A transform: the user's function from records of many keys to records, and what it returns, key by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from coordinator.errors import UsageError
from coordinator.user_code import TimeLimit
from crawler.job.job import Job
from crawler.job.tables import KEY_FIELD
from crawler.parse.columns import Table
from crawler.parse.hook import load_function, shown_error
from crawler.transform.arrow import records_of, takes_arrow, to_arrow

SETUP_SECONDS = 120
# A module has this once its `setup` was called in this process.
_IS_SET_UP = "__shardcrawl_is_set_up__"
Record: TypeAlias = dict[str, Any]
# Of one key: (number of the table, record) of each record, or why the key fails.
Made: TypeAlias = list[tuple[int, Any]] | str


class Transform:
    """The function of one `[transform]` of a job. Records of tables that a later one takes stay as they are."""

    def __init__(self, job: Job, number: int) -> None:
        """Import it. Raises UsageError."""
        settings = job.transform[number]
        self._function, self._module, self._folder = load_function("[transform]", settings.python, job.folder)
        self._python = settings.python
        raw = {one.table for one in job.transform[number + 1 :]}
        tables = [Table(table) for table in job.tables]
        self._table = settings.table
        self._convert: dict[str, tuple[int, Callable[[Any], Any]]] = {
            table.name: (index, table.mapping if table.name in raw else table.row) for index, table in enumerate(tables)
        }
        self._arrow_of = None
        if takes_arrow(self._function):
            self._arrow_of = to_arrow(next(table for table in job.tables if table.name == settings.table))

    def set_up(self) -> None:
        """Call `setup` of its module, if there is one and this process has not called it. Raises UsageError."""
        setup = getattr(self._module, "setup", None)
        if not callable(setup) or getattr(self._module, _IS_SET_UP, False):
            return
        try:
            with TimeLimit(SETUP_SECONDS):
                setup()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's code may raise anything
            raise UsageError(f"[transform] {self._python}: setup: {shown_error(error, self._folder)}") from error
        setattr(self._module, _IS_SET_UP, True)

    def apply(self, given: Mapping[str, Sequence[Record]]) -> Mapping[str, Made]:
        """What becomes of these keys' records; a bad record fails its key only. Raises what the function does."""
        records = [{**record, KEY_FIELD: key} for key, several in given.items() for record in several]
        returned = self._function(records if self._arrow_of is None else self._arrow_of(records))
        made: dict[str, Made] = {key: [] for key in given}
        by_table = returned if isinstance(returned, Mapping) else {self._table: returned}
        for name, rows in by_table.items():
            self._add(made, name, rows)
        return made

    def reason(self, error: BaseException) -> str:
        """The reason of a key for which the function raised."""
        return f"transform: {shown_error(error, self._folder)}"

    def _add(self, made: dict[str, Made], table: str, rows: Any) -> None:
        if table not in self._convert:
            raise ValueError(f"no table {table!r} in the job; it has {', '.join(self._convert)}")
        number, convert = self._convert[table]
        for record in _iterated(rows, table):
            if not isinstance(record, Mapping) or KEY_FIELD not in record:
                raise ValueError(f'{table}: a record is a mapping and says whose it is: "{KEY_FIELD}"')
            key = record[KEY_FIELD]
            own = made.get(key)
            if own is None:
                raise ValueError(f"{table}: a record of key {key!r}, which is not in this batch")
            if isinstance(own, str):
                continue
            try:
                own.append((number, convert({name: value for name, value in record.items() if name != KEY_FIELD})))
            except ValueError as error:
                made[key] = f"transform: {error}"


def _iterated(rows: Any, table: str) -> Iterable[Any]:
    found = records_of(rows)
    if found is None or isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        raise TypeError(f"{table}: the function returned {type(rows).__name__}; it must be a list of records")
    return found
