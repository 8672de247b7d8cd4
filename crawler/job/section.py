"""One table of a job document, read key by key: what is wrong, unknown or not there yet is an error in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from coordinator.errors import NotYet, UsageError

# Documented in the command reference, not in this version: refused by name, never ignored.
LATER = {
    "source": ("table", "query"),
    "parse": ("records", "columns", "links"),
    "request": ("method", "body"),
    "run": (),
    "retry": ("in_place",),
    "store": ("parquet", "schema"),
}


class Section:
    """One table of the job document; hands out checked values and then tells what nobody asked for."""

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(f"job: [{name}] is no table; write [{name}] and its keys below it")
        self._name = name
        self._values = dict(values)
        self._known: list[str] = []

    def text(self, key: str) -> str | None:
        """A string that is not empty."""
        value = self._take(key, str, "text in quotes")
        if value is not None and not value:
            raise UsageError(f"job: [{self._name}] {key} is empty; write a text, or leave it out")
        return None if value is None else str(value)

    def whole(self, key: str, default: int, lowest: int = 1, highest: int = 2**31) -> int:
        """A whole number within bounds."""
        value = self._take(key, int, "a whole number")
        return default if value is None else int(self._bounded(key, value, lowest, highest))

    def number(self, key: str, default: float, lowest: float = 0.0, highest: float = 1e9) -> float:
        """A number within bounds."""
        value = self._take(key, (int, float), "a number")
        return default if value is None else float(self._bounded(key, value, lowest, highest))

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.choice(key)
        return default if value is None else value

    def choice(self, key: str) -> bool | None:
        """true or false; None when it is not there."""
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"job: [{self._name}] {key} is {value!r}; write true or false")
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        """A table within this one."""
        value = self._take(key, dict, "a table")
        return {} if value is None else dict(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._take(key, list, "a list of texts")
        if value is not None and not all(isinstance(item, str) for item in value):
            raise UsageError(f"job: [{self._name}] {key} must be a list of texts")
        return tuple(value or ())

    def raw(self, key: str) -> Any:
        """Whatever stands there."""
        self._known.append(key)
        return self._values.pop(key, None)

    def end(self) -> None:
        """Raise UsageError for the first key that nobody asked for."""
        for key in self._values:
            if key in LATER.get(self._name, ()):
                raise NotYet(f"job: [{self._name}] {key}: not yet in this version; leave it out")
            near = difflib.get_close_matches(key, self._known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._known)}"
            raise UsageError(f"job: [{self._name}] has no key {key!r}; {hint}")

    def _take(self, key: str, kind: type | tuple[type, ...], called: str) -> Any:
        self._known.append(key)
        value = self._values.pop(key, None)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UsageError(f"job: [{self._name}] {key} is {value!r}; it must be {called}")
        return value

    def _bounded(self, key: str, value: float, lowest: float, highest: float) -> float:
        if not lowest <= value <= highest:
            raise UsageError(f"job: [{self._name}] {key} is {value}; it must be from {lowest} to {highest}")
        return value
