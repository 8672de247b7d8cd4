"""The protocol of a worker and its child process: frames, each a length of 8 bytes and a pickle.

Both ends are the same program, and the worker starts the child. The first frame to the child is a ChildSetup. The child
sends back None when its handler is ready, or a text that says why it cannot be used. After that each frame to the child
is a task, and each frame back is the result of the oldest task without one.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any

from crawler.telemetry.logs import DATE_AND_TIME

LENGTH = struct.Struct(">Q")
# The exit code of a child that has no memory for its task.
OUT_OF_MEMORY = 12


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """What a child needs before its first task.

    `handler` is "module:function". The function is called once with `value` and returns what turns a task into a
    result. `seconds` is how long a task may take, `memory` how many bytes the process may take beside those that it
    has with its handler ready. The others are for the child's log lines.
    """

    handler: str
    value: Any
    seconds: float
    name: str
    log_level: str
    line_format: str = DATE_AND_TIME
    run: str = ""
    memory: int | None = None


def pickled(value: Any) -> bytes:
    """The value as a pickle."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def unpickled(content: bytes) -> Any:
    """The value in a pickle that the other end of the socket made."""
    return pickle.loads(content)  # noqa: S301 - never from a network: both ends are this program


def frame(value: Any) -> bytes:
    """A frame with this value."""
    content = pickled(value)
    return LENGTH.pack(len(content)) + content
