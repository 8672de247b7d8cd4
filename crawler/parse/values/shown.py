"""Pure: a value as an error message shows it."""

from __future__ import annotations

from typing import Any

MAX_SHOWN_CHARACTERS = 60


def abbreviated(value: Any) -> str:
    """The value as Python writes it, at most MAX_SHOWN_CHARACTERS characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
