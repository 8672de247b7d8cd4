"""A source of rows: in files, in a list, or from a query."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused
from coordinator.source.first_keys import FirstKeys
from coordinator.source.input.pieces import DAMAGE_ERRORS
from coordinator.source.key_rule import KeyRule, refuse
from coordinator.source.rows.columns import BadRow, Columns
from coordinator.source.rows.row import Row, RowList


class RowSource:
    """Reads keys, and the fields that they carry, from the rows of lists, one list after another."""

    def __init__(
        self,
        name: str,
        lists: Sequence[RowList],
        columns: Columns | None,
        *,
        cursor: Cursor,
        key_rule: KeyRule,
        warn: Callable[[str], None],
        fingerprint: Callable[[], str] = str,
        estimate: Callable[[], int | None] = lambda: None,
        kind: str = "",
    ) -> None:
        """Begin at a cursor. `fingerprint` and `estimate` are those of the source, `kind` is that of its keys.

        Raises SourceError.
        """
        self._kind = kind
        self._name = name
        self._lists = lists
        self._columns = columns
        self._rule = key_rule
        self._first = FirstKeys(name, cursor, warn, absolute_url=key_rule.absolute_url)
        self._lock = threading.Lock()
        self._failure: SourceError | None = None
        self._closed = False
        self._open(self._index_of(cursor), cursor)
        self.fingerprint = fingerprint
        self.estimate = estimate

    def read(self, limit: int, seconds: float) -> Chunk:
        """See Source.read."""
        keys: list[str] = []
        refused: list[Refused] = []
        fields: dict[str, Mapping[str, str]] = {}
        until: float | None = None
        exhausted = False
        with self._lock:
            while len(keys) + len(refused) < limit and (until is None or time.monotonic() < until):
                row = self._next()
                if row is None:
                    # When there are whole rows before the damage, this read returns them, and the next one raises.
                    if self._failure and not (keys or refused or self._closed):
                        raise self._failure
                    exhausted = not (self._failure or self._closed)
                    break
                if until is None:
                    until = time.monotonic() + seconds
                known = len(refused)
                self._classify(row, keys, refused, fields)
                if self._first.left:
                    self._first.look(keys, refused[known:])
            self._first.look((), (), ended=exhausted)
            return Chunk(keys, refused, self._cursor, exhausted, fields, self._kind)

    def close(self) -> None:
        """See Source.close."""
        self._closed = True
        self._list.close()
        with self._lock:
            self._rows.close()  # which closes its file

    def _index_of(self, cursor: Cursor) -> int:
        for index, one in enumerate(self._lists):
            if not cursor.file or one.name == cursor.file:
                return index
        raise SourceError(f"{cursor.file}, where this run goes on, is not in the source any more; bring it back")

    def _open(self, at: int, cursor: Cursor) -> None:
        self._at = at
        self._list = self._lists[at]
        self._cursor = Cursor(cursor.offset, cursor.line, self._list.name)
        self._rows = self._list.rows(cursor)

    def _next(self) -> Row | None:
        """The next row, of the next list too; None at the end, or when there is a failure."""
        while not (self._failure or self._closed):
            try:
                row = next(self._rows, None)
            except SourceError as error:
                self._failure = error
            except DAMAGE_ERRORS as error:
                where = f"{self._name} {self._list.name}".rstrip()
                why = str(error) or type(error).__name__
                self._failure = SourceError(f"{where} cannot be read beyond line {self._cursor.line}: {why}")
                self._failure.__cause__ = error
            else:
                if row is not None:
                    self._cursor = Cursor(row.offset, row.lines, self._list.name)
                    return row
                if self._closed or self._at + 1 == len(self._lists):
                    return None
                self._open(self._at + 1, Cursor())
        return None

    def _classify(
        self, row: Row, keys: list[str], refused: list[Refused], fields: dict[str, Mapping[str, str]]
    ) -> None:
        """Add one row to the keys, with its fields, or to the refused rows."""
        key, reason = row.text, row.reason
        if row.cells is not None and self._columns is not None:
            try:
                key, carried = self._columns.item(row.cells)
            except BadRow as bad:
                reason = str(bad)
            else:
                fields.setdefault(key, carried)  # of a key that comes twice the first row counts
        if reason:
            text = row.text or json.dumps(row.cells, ensure_ascii=False, default=str)
            refused.append(refuse(text, row.line, reason, self._list.name, is_row=True))
        elif self._rule.surely_key(key) or not (why := self._rule.reason(key)):
            keys.append(key)
        else:
            fields.pop(key, None)
            refused.append(refuse(key, row.line, why, self._list.name))
