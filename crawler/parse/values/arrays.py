"""Values -> Arrow arrays, by the names of Arrow's types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arro3.core import Array

# The Arrow type of each type of Postgres that has one of its own.
ARROW_TYPES = {
    "smallint": "int16",
    "integer": "int32",
    "bigint": "int64",
    "real": "float32",
    "double precision": "float64",
    "boolean": "bool",
    "bytea": "binary",
}


def arrow_array(kind: str, values: Sequence[Any]) -> Array:
    """An array of this type, None where a value is."""
    from arro3.core import Array, DataType

    return Array(values, type=getattr(DataType, kind)())


def arrow_lists(values: Sequence[Sequence[Any] | None], flat: Callable[[Sequence[Any]], Array]) -> Array:
    """An array of lists; `flat` makes one of all their elements."""
    from arro3.core import DataType, Field, list_array

    offsets = list(accumulate((len(value or ()) for value in values), initial=0))
    elements = flat(list(chain.from_iterable(value or () for value in values)))
    of_type = DataType.list(Field("item", elements.type, nullable=True))
    mask = arrow_array("bool", [value is None for value in values])
    return list_array(arrow_array("int32", offsets), elements, type=of_type, mask=mask)
