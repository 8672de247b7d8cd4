"""A source in Python: the user's `module:function`, called without arguments, yields the keys, or rows as dicts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused
from coordinator.source.first_keys import FirstKeys
from coordinator.source.key_rule import KeyRule, refuse
from coordinator.source.rows.columns import BadRow, Columns
from coordinator.user_code import load_module


class GeneratorSource:
    """Reads keys (str, or bytes of UTF-8) from the iterable that a function returns; every item counts as one line.
    With `columns` the items are dicts, of which these make the key, and are what travels with it.

    To resume, the function is called again and the keys that were read before are skipped, so it must yield the same
    keys in the same order. A thread takes the keys from the iterable, at most one read ahead: so a read returns what
    was yielded although the next key is long in coming. User code cannot be interrupted.
    """

    def __init__(
        self,
        python: str,
        columns: Columns | None,
        *,
        cursor: Cursor,
        key_rule: KeyRule,
        folder: Path,
        warn: Callable[[str], None],
    ) -> None:
        """Import the module, looking in `folder` first, and call the function; raises SourceError when that fails."""
        self._name = python
        self._columns = columns
        self._rule = key_rule
        self._first = FirstKeys(python, cursor, warn, absolute_url=key_rule.absolute_url)
        self._count = cursor.offset
        self._keys = _call(python, folder)
        self._items: deque[object] = deque()  # what was yielded and is not returned yet
        self._wanted = 0  # how many items may be in it
        self._ended = False
        self._closed = False
        self._failure: SourceError | None = None
        self._changed = threading.Condition()
        # A daemon: user code that waits for ever must not keep the process alive.
        self._taker = threading.Thread(target=self._take_items, name=f"keys of {python}", daemon=True)

    def read(self, limit: int, seconds: float) -> Chunk:
        """See Source.read."""
        keys: list[str] = []
        refused: list[Refused] = []
        fields: dict[str, Mapping[str, str]] = {}
        with self._changed:
            self._wanted = limit
            if self._taker.ident is None:
                self._taker.start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            self._changed.wait_for(lambda: len(self._items) >= limit or self._ended or self._closed, seconds)
            items = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            exhausted = self._ended and not (self._items or self._failure)
            self._changed.notify_all()
        if self._failure and not items:
            raise self._failure
        watched = self._first.left
        for part in (items[:watched], items[watched:]):
            known = len(refused)
            self._classify(part, keys, refused, fields)
            self._first.look(keys, refused[known:])
        self._first.look(keys, (), ended=exhausted)
        return Chunk(keys, refused, Cursor(self._count, self._count), exhausted, fields)

    def estimate(self) -> int | None:
        """See Source.estimate: unknown."""
        return None

    def fingerprint(self) -> str:
        """See Source.fingerprint: a generator has none."""
        return ""

    def close(self) -> None:
        """See Source.close."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_items(self) -> None:
        """Take what the iterable yields until its end, while no more than one read's items wait."""
        count = self._count
        try:
            self._skip(count)
            for item in self._keys:
                count += 1
                self._items.append(item)
                if (size := len(self._items)) == 1 or size >= self._wanted:
                    with self._changed:
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: len(self._items) < self._wanted or self._closed)
                if self._closed:
                    return
        except SourceError as error:
            self._failure = error
        except BaseException as error:  # noqa: BLE001 (user code can raise anything, SystemExit too)
            self._failure = _failed(self._name, f"failed after {count} keys", error)
            self._failure.__cause__ = error
        finally:
            with self._changed:
                self._ended = not self._closed
                self._changed.notify_all()

    def _skip(self, count: int) -> None:
        """Skip the keys that this run has read before. Raises SourceError when there are fewer."""
        try:
            found = sum(1 for _ in islice(self._keys, count))
        except Exception as error:
            raise _failed(self._name, f"failed before key {count}, where this run goes on", error) from error
        if found < count:
            raise SourceError(
                f"{self._name} yielded {found} keys, but this run has read {count} before; "
                "it must yield the same keys in the same order again"
            )

    def _classify(
        self, items: list[object], keys: list[str], refused: list[Refused], fields: dict[str, Mapping[str, str]]
    ) -> None:
        """Add items to the keys, with their fields, or to the refused lines."""
        surely_key = self._rule.surely_key
        for number, item in enumerate(items, self._count + 1):
            key, carried = item, None
            if self._columns is not None:
                if not isinstance(item, Mapping):
                    what = type(item).__name__
                    refused.append(refuse(repr(item), number, f"is no dict but {what}; [source] key names its fields"))
                    continue
                try:
                    key, carried = self._columns.item(item)
                except BadRow as bad:
                    refused.append(refuse(repr(item), number, str(bad), is_row=True))
                    continue
            elif isinstance(item, bytes):
                key = item.decode("utf-8", "surrogateescape")
            if not isinstance(key, str):
                advice = "; name its fields in [source] key" if isinstance(key, Mapping) else ""
                refused.append(refuse(repr(item), number, f"is no text but {type(item).__name__}{advice}"))
            elif surely_key(key) or not (reason := self._rule.reason(key)):
                keys.append(key)
                if carried is not None:
                    fields.setdefault(key, carried)  # of a key that comes twice the first one counts
            else:
                refused.append(refuse(key, number, reason))
        self._count += len(items)


def _call(python: str, folder: Path) -> Iterator[object]:
    """Import the module of "module:function" and call the function; returns an iterator of the keys."""
    module_name, _, function_name = python.partition(":")
    if not module_name or not function_name:
        raise SourceError(f'the source python = "{python}" is not "module:function"')
    folder = folder.resolve()
    try:
        function = getattr(load_module(module_name, folder), function_name, None)
    except Exception as error:
        raise _failed(python, f"cannot be imported from {folder}", error) from error
    if not callable(function):
        raise SourceError(f"{python}: the module {module_name} has no function {function_name}")
    try:
        keys = function()
        if isinstance(keys, (str, bytes)):
            raise TypeError(f"it returned one {type(keys).__name__}")
        return iter(keys)
    except Exception as error:
        raise _failed(python, "cannot be called without arguments for an iterable of keys", error) from error


def _failed(python: str, what: str, error: BaseException) -> SourceError:
    return SourceError(f"{python} {what}: {type(error).__name__}: {' '.join(str(error).split())}")
