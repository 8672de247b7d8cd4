"""Pure: records <-> Arrow, for a transform whose annotation says that it takes an Arrow table."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from crawler.job.tables import KEY_FIELD, ColumnType, TableSettings, column_type
from crawler.parse.columns import Table
from crawler.parse.values.arrays import ARROW_TYPES, arrow_array, arrow_lists

if TYPE_CHECKING:
    from arro3.core import Array
    from arro3.core import Table as ArrowTable

_EPOCH = datetime(1970, 1, 1)


def takes_arrow(function: Callable[..., Any]) -> bool:
    """Whether the function's first parameter is annotated with `arro3.core.Table`."""
    core = sys.modules.get("arro3.core")  # the user's module has imported it, if it needs it
    if core is None:
        return False
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception:  # noqa: BLE001 - an annotation of the user's may name anything
        return False
    return any(one.annotation is core.Table for one in list(parameters.values())[:1])


def to_arrow(settings: TableSettings) -> Callable[[Sequence[Mapping[str, Any]]], ArrowTable]:
    """The function from records with their keys to an Arrow table: the columns of the job's table, and `_key`.

    Numbers, truth values, bytes, days and moments are of Arrow's own types, and so are lists of them; all else is text.
    The function raises ValueError for a value that its column does not take.
    """
    from arro3.core import Table as ArrowTable

    table = Table(settings)
    types = [(name, column_type(kind)) for name, kind in settings.columns]

    def convert(records: Sequence[Mapping[str, Any]]) -> ArrowTable:
        rows = [table.row({name: one for name, one in record.items() if name != KEY_FIELD}) for record in records]
        columns = {name: _column(kind, [row[index] for row in rows]) for index, (name, kind) in enumerate(types)}
        return ArrowTable.from_pydict(
            {KEY_FIELD: arrow_array("utf8", [record[KEY_FIELD] for record in records]), **columns}
        )

    return convert


def records_of(rows: Any) -> Any:
    """The records of an Arrow table of any library; anything else as it is."""
    if not hasattr(rows, "__arrow_c_stream__"):
        return rows
    from arro3.core import Table as ArrowTable

    batches = ArrowTable(rows).to_batches()
    return [record for batch in batches for record in batch.to_struct_array().to_pylist()]


def _column(kind: ColumnType, values: Sequence[Any]) -> Array:
    return arrow_lists(values, partial(_flat, kind)) if kind.is_array else _flat(kind, values)


def _flat(kind: ColumnType, values: Sequence[Any]) -> Array:
    from arro3.core import DataType

    if kind.name in ARROW_TYPES:
        return arrow_array(ARROW_TYPES[kind.name], values)
    if kind.name in ("timestamp", "timestamptz"):
        zone = "UTC" if kind.name == "timestamptz" else None
        return arrow_array("int64", [_microseconds(value) for value in values]).cast(DataType.timestamp("us", tz=zone))
    if kind.name == "date":
        days = [None if value is None else (value - date(1970, 1, 1)).days for value in values]
        return arrow_array("int32", days).cast(DataType.date32())
    return arrow_array("utf8", [None if value is None else str(value) for value in values])


def _microseconds(value: datetime | None) -> int | None:
    if value is None:
        return None
    naive = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return (naive - _EPOCH) // timedelta(microseconds=1)
