"""What a worker and its parser process say to each other: frames, each its length in 8 bytes and a pickle.

Both ends are the same program, one started by the other. The first frame to the child is an Assignment, its first one
back None, or the words why the parser cannot be used there. Then each Asked is answered, in order, by a list of Told.
Those two are tuples, which pickle takes apart in C.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from coordinator.errors import first_line
from coordinator.model import Outcome
from crawler.job.job import Job

LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class ParserSetup:
    """Whose parser it is, and from which level on it logs."""

    job: Job
    level: str


class ParseTask(NamedTuple):
    """One response to parse; `headers` as Headers.items gives them."""

    keys: Sequence[str]
    url: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class ParseResult(NamedTuple):
    """How one key ended: `emptied` says that its page keeps nothing but the reason.

    `records` are a pickle of their own, so that one that cannot be read costs its own key.
    """

    outcome: Outcome
    reason: str | None
    emptied: bool
    records: bytes


def content(value: Any) -> bytes:
    """The value as it stands in a frame."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def frame(value: Any) -> bytes:
    """A frame with this value."""
    inside = content(value)
    return LENGTH.pack(len(inside)) + inside


def value_of(inside: bytes) -> Any:
    """What a frame has in it, which the other end of the socket made."""
    return pickle.loads(inside)  # noqa: S301 - never from a network: both ends are this program


def stuck(error: Exception) -> str:
    """The reason of a key that has a record which pickle refuses."""
    return f"parse: a record that cannot leave the parser's process: {type(error).__name__}: {first_line(error)}"
