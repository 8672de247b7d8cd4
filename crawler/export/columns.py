"""Pure: how a column of Postgres becomes one of Arrow, without loss.

A column is selected as something that Arrow's arrays can be made of at once: numbers, texts, bytes. What Arrow has no
type for is its text as Postgres writes it: an interval, a time with a zone, a numeric without a scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.errors import UsageError
from crawler.parse.values.arrays import ARROW_TYPES, arrow_lists
from crawler.store.tables import quoted

if TYPE_CHECKING:
    from arro3.core import Array, DataType, Field

MAX_DECIMAL_DIGITS = 38
_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")
# The Arrow type of each type of Postgres that is selected as it is.
_PLAIN = {**ARROW_TYPES, **dict.fromkeys(("text", "json", "jsonb"), "utf8")}
# The same for those that are selected as a number: the expression, and what it means.
_MICROSECONDS = "(extract(epoch FROM {0}) * 1000000)::bigint"
_NUMBERS = {
    "date": ("{0} - date '1970-01-01'", "date32"),
    "timestamp without time zone": (_MICROSECONDS, "timestamp"),
    "timestamp with time zone": (_MICROSECONDS, "timestamptz"),
    "time without time zone": (_MICROSECONDS, "time64"),
}


@dataclass(frozen=True, slots=True)
class ExportColumn:
    """One column: its name, its type as Postgres writes it, and how its values are selected and what they are in Arrow.

    `kind` is the name of the Arrow type in this module, of a list (`is_list`) that of the elements. `digits` are
    precision and scale of a decimal. `source` is the column itself.
    """

    name: str
    type: str
    source: str
    expression: str
    kind: str
    digits: tuple[int, int] = (0, 0)
    is_list: bool = False

    @property
    def in_json(self) -> str:
        """What is selected for JSON. Postgres' own form of a numeric is a number, which most readers would round."""
        if self.type.startswith("numeric"):
            return f"{self.source}::text{'[]' if self.is_list else ''}"
        if self.type == "bytea[]":
            return _each(self.source, "encode(one, 'hex')")
        return f"encode({self.source}, 'hex')" if self.type == "bytea" else self.source

    def field(self) -> Field:
        """The column in Arrow's schema."""
        from arro3.core import DataType, Field

        inner = self._meaning()
        return Field(self.name, DataType.list(Field("item", inner, nullable=True)) if self.is_list else inner)

    def array(self, values: Sequence[Any]) -> Array:
        """The values of this column, as Postgres returned them, as an Arrow array. Raises UsageError."""
        if not self.is_list:
            return self._flat(values)
        if any(isinstance(one, list) for value in values if value is not None for one in value):
            raise UsageError(f"export: column {self.name} has an array of arrays, which Arrow's lists cannot be")
        return arrow_lists(values, self._flat)

    def _flat(self, values: Sequence[Any]) -> Array:
        from arro3.core import Array

        if self.kind == "decimal" and "NaN" in values:
            raise UsageError(f"export: column {self.name} has NaN, which Arrow's decimals cannot be")
        array = Array(values, type=self._selected())
        return array if self._selected() == self._meaning() else array.cast(self._meaning())

    def _selected(self) -> DataType:
        """The type of what is selected."""
        from arro3.core import DataType

        if self.kind in ("timestamp", "timestamptz", "time64"):
            return DataType.int64()
        if self.kind == "date32":
            return DataType.int32()
        found: DataType = getattr(DataType, "utf8" if self.kind == "decimal" else self.kind)()
        return found

    def _meaning(self) -> DataType:
        """The type of the column."""
        from arro3.core import DataType

        match self.kind:
            case "decimal":
                return DataType.decimal128(*self.digits)
            case "timestamp" | "timestamptz":
                return DataType.timestamp("us", tz="UTC" if self.kind == "timestamptz" else None)
            case "time64":
                return DataType.time64("us")
            case "date32":
                return DataType.date32()
            case _:
                return self._selected()


def export_column(name: str, kind: str, source: str = "") -> ExportColumn:
    """How a column is exported; `kind` is its type as Postgres writes it, `source` another expression for it."""
    source = source or f"r.{quoted(name)}"
    if kind.endswith("[]"):
        element = export_column(name, kind.removesuffix("[]"), "one")
        listed = source
        if element.expression != "one":
            listed = _each(source, element.expression)
        return ExportColumn(name, kind, source, listed, element.kind, element.digits, is_list=True)
    bare = re.sub(r"\(\d+\)", "", kind)  # without the precision of a time, or the length of a char
    if plain := _PLAIN.get(bare):
        return ExportColumn(name, kind, source, source, plain)
    if number := _NUMBERS.get(bare):
        return ExportColumn(name, kind, source, number[0].format(source), number[1])
    if (found := _NUMERIC.fullmatch(kind)) and 0 <= int(found[2]) <= int(found[1]) <= MAX_DECIMAL_DIGITS:
        return ExportColumn(name, kind, source, f"{source}::text", "decimal", (int(found[1]), int(found[2])))
    return ExportColumn(name, kind, source, f"{source}::text", "utf8")


def _each(source: str, expression: str) -> str:
    """SQL: the expression of each element (`one`) of an array; null for none."""
    each = f"ARRAY(SELECT {expression} FROM unnest({source}) AS one)"  # noqa: S608 - our own texts
    return f"CASE WHEN {source} IS NOT NULL THEN {each} END"
