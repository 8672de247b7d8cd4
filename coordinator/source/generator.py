"""A source in Python: the user's `module:function`, called without arguments, yields the keys."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused
from coordinator.source.key_rule import KeyRule, refuse


class GeneratorSource:
    """Reads keys (str, or bytes of UTF-8) from the iterable that a function returns; every item counts as one line.

    To resume, the function is called again and the keys that were read before are skipped, so it must yield the same
    keys in the same order. A read whose time has passed returns with the next key, because user code cannot be
    interrupted.
    """

    def __init__(self, python: str, *, cursor: Cursor, key_rule: KeyRule, folder: Path) -> None:
        """Import the module, looking in `folder` first, and call the function; raises SourceError when that fails."""
        self._name = python
        self._rule = key_rule
        self._skip = cursor.offset
        self._count = cursor.offset
        self._keys = _call(python, folder)
        self._closed = False
        self._failure: SourceError | None = None

    def read(self, limit: int, seconds: float) -> Chunk:
        """See Source.read."""
        self._skip_known()
        keys: list[str] = []
        refused: list[Refused] = []
        until: float | None = None
        ended = False
        surely_key = self._rule.surely_key
        while len(keys) + len(refused) < limit and not (self._closed or self._failure):
            try:
                item = next(self._keys)
            except StopIteration:
                ended = True
                break
            except Exception as error:  # noqa: BLE001 (user code can raise anything)
                self._failure = _failed(self._name, f"failed after {self._count} keys", error)
                self._failure.__cause__ = error
                break
            self._count += 1
            if isinstance(item, str) and surely_key(item):
                keys.append(item)
            else:
                self._classify(item, keys, refused)
            now = time.monotonic()
            if until is None:
                until = now + seconds
            elif now >= until:
                break
        if self._failure and not keys and not refused:
            raise self._failure
        return Chunk(keys, refused, Cursor(self._count, self._count), ended)

    def estimate(self) -> int | None:
        """See Source.estimate: unknown."""
        return None

    def fingerprint(self) -> str:
        """See Source.fingerprint: a generator has none."""
        return ""

    def close(self) -> None:
        """See Source.close. A read in another thread returns with its next key."""
        self._closed = True

    def _skip_known(self) -> None:
        """Skip the keys that this run has read before. Raises SourceError when there are fewer."""
        try:
            found = sum(1 for _ in islice(self._keys, self._skip))
        except Exception as error:
            raise _failed(self._name, f"failed before key {self._skip}, where this run goes on", error) from error
        if found < self._skip:
            raise SourceError(
                f"{self._name} yielded {found} keys, but this run has read {self._skip} before; "
                "it must yield the same keys in the same order again"
            )
        self._skip = 0

    def _classify(self, item: object, keys: list[str], refused: list[Refused]) -> None:
        """Add an item to the keys, or to the refused lines."""
        if isinstance(item, bytes):
            item = item.decode("utf-8", "surrogateescape")
        if not isinstance(item, str):
            refused.append(refuse(repr(item), self._count, f"is no text but {type(item).__name__}"))
        elif reason := self._rule.reason(item):
            refused.append(refuse(item, self._count, reason))
        else:
            keys.append(item)


def _call(python: str, folder: Path) -> Iterator[object]:
    """Import the module of "module:function" and call the function; returns an iterator of the keys."""
    module_name, _, function_name = python.partition(":")
    if not module_name or not function_name:
        raise SourceError(f'the source python = "{python}" is not "module:function"')
    import_path = str(folder.resolve())
    if import_path not in sys.path:
        # It stays there, because user code may import other modules of this folder at any time.
        sys.path.insert(0, import_path)
        importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:
        raise _failed(python, f"cannot be imported from {import_path}", error) from error
    if not callable(function):
        raise SourceError(f"{python}: the module {module_name} has no function {function_name}")
    try:
        keys = function()
        if isinstance(keys, (str, bytes)):
            raise TypeError(f"it returned one {type(keys).__name__}")
        return iter(keys)
    except Exception as error:
        raise _failed(python, "cannot be called without arguments for an iterable of keys", error) from error


def _failed(python: str, what: str, error: Exception) -> SourceError:
    return SourceError(f"{python} {what}: {type(error).__name__}: {' '.join(str(error).split())}")
