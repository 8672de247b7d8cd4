"""What supervisor and child share: the spec that the parent sends, and the exit codes by which the child reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import orjson

# A child's last line begins with this when it is an error message for the user.
ERROR_PREFIX = "error: "
INTERRUPTED_EXIT_CODE = 130
EPOCH_LOST_EXIT_CODE = 4  # between child and parent only: the parent opens the run again
FAILPOINT_VARIABLE = "FAILPOINT"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What one child does, and how its parent treats it.

    `name` is for log lines and the list of processes. `redis` and `database` are URLs. Without a `run` a worker serves
    all runs. `log_level` is the lowest level of log lines, `grace_seconds` how long a drain may take, `debug` asks for
    tracebacks. A child without `restart` is not started again when it dies. One that `reads_input` has the user's
    standard input.
    """

    role: Literal["coordinator", "worker"]
    name: str
    redis: str
    database: str
    run: str | None = None
    log_level: str = "INFO"
    grace_seconds: float = 25.0
    debug: bool = False
    restart: bool = True
    reads_input: bool = False

    def encode(self) -> bytes:
        """The spec as a line of JSON."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> ChildSpec:
        """The spec in a line that `encode` made."""
        return cls(**orjson.loads(line))
