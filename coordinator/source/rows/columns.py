"""Pure: which columns of a row make its key, and which travel with it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from uuid import UUID

from coordinator.errors import SourceError
from coordinator.source.key_rule import showable

# A key and its fields, in UTF-8: 500 of them fit into one stream entry.
MAX_ITEM_BYTES = 12_000


class BadRow(Exception):
    """A row that is no key. Its text says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that make the `key`, and of those that it carries."""

    key: tuple[str, ...]
    carry: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(self.key + self.carry))

    def item(self, cells: Mapping[str, object]) -> tuple[str, dict[str, str]]:
        """The key of a row, and its fields: of each column named here that is not null, {name: text}.

        A key of one column is its text, one of several a compact JSON array of their texts. Raises BadRow.
        """
        fields: dict[str, str] = {}
        for name in self.names:
            if name not in cells:
                raise BadRow(f"has no {name}; it has {', '.join(map(showable, map(str, cells)))[:200] or 'nothing'}")
            value = cells[name]
            if value is None and name not in self.key:
                continue
            fields[name] = value if type(value) is str else _text_of(name, value, in_key=name in self.key)
        parts = [fields[name] for name in self.key]
        if "" in parts:
            raise BadRow(f"its {self.key[parts.index('')]} is empty")
        key = parts[0] if len(parts) == 1 else json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        try:
            size = len("".join((key, *fields, *fields.values())).encode())
        except UnicodeEncodeError:
            raise BadRow("is not valid UTF-8") from None
        if size > MAX_ITEM_BYTES:
            raise BadRow(f"its key and fields have {size:,} bytes, and {MAX_ITEM_BYTES:,} may travel")
        return key, fields


def require_columns(columns: Columns | None, found: Iterable[str], name: str) -> Columns:
    """The columns, which must be among those that `name` has. Raises SourceError, which lists what there is."""
    there = list(found)
    listed = ", ".join(map(showable, there))[:300] or "none"
    if columns is None:
        hint = " (a plain list of keys has another ending, as .txt)" if len(there) < 2 else ""
        raise SourceError(f"{name} needs a job file with [source] key: the column of its keys; it has {listed}{hint}")
    for wanted in columns.names:
        if wanted not in there:
            near = difflib.get_close_matches(wanted, there, 1)
            hint = f"did you mean {showable(near[0])}? " if near else ""
            raise SourceError(f"{name} has no column {wanted}; {hint}it has {listed}")
        if there.count(wanted) > 1:
            raise SourceError(f"{name} has two columns {wanted}; give one of them another name")
    return columns


def _text_of(name: str, value: object, *, in_key: bool) -> str:
    """The text of a value that is none, where it has one that everybody would write. Raises BadRow."""
    match value:
        case bool():
            if not in_key:
                return "true" if value else "false"
        case float() if not math.isfinite(value):  # what pandas has where nothing is
            raise BadRow(f"its {name} is {value}; it must be a text or a number")
        case str() | int() | float() | Decimal() | UUID():
            return str(value)
        case date() | time():  # datetime is a date
            return value.isoformat()
        case bytes():
            return value.decode("utf-8", "surrogateescape")
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"a {type(value).__name__}"
    raise BadRow(f"its {name} is {shown}; it must be a text or a number")
