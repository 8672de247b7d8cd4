"""What a parent tells a child process, and how a child tells its end: shared by supervisor and child."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import orjson

# Before a child's last line, when that is an error message for the user.
ERROR_PREFIX = "error: "
INTERRUPTED_EXIT_CODE = 130
EPOCH_LOST_EXIT_CODE = 4  # between child and parent only: the parent opens the run again
FAILPOINT_VARIABLE = "FAILPOINT"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What one child does, and how its parent treats it.

    `who` is its name in log lines and in the list of processes. Without a `run` a worker serves all runs. `level` is
    the lowest level of log lines, `grace_seconds` how long a drain may take, `debug` wants tracebacks. A child without
    `restart` is not started again when it dies; one that `reads_input` has the user's standard input.
    """

    role: Literal["coordinator", "worker"]
    who: str
    redis: str
    database: str
    run: str | None = None
    level: str = "INFO"
    grace_seconds: float = 25.0
    debug: bool = False
    restart: bool = True
    reads_input: bool = False

    def encode(self) -> bytes:
        """The spec as a line of JSON."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> ChildSpec:
        """The spec from its line."""
        return cls(**orjson.loads(line))
