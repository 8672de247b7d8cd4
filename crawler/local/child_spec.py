"""What supervisor and child share: the spec that the parent sends, and the exit codes by which the child reports."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import orjson

from crawler.job.permissions import NOTHING_ALLOWED, Permissions
from crawler.telemetry.logs import DATE_AND_TIME

# A child's last line begins with this when it is an error message for the user.
ERROR_PREFIX = "error: "
INTERRUPTED_EXIT_CODE = 130
DRAINED_EXIT_CODE = 5  # it left because SIGTERM asked it to; whether that was its parent, the parent knows
EPOCH_LOST_EXIT_CODE = 4  # between child and parent only: the parent opens the run again
FAILPOINT_VARIABLE = "FAILPOINT"
# Is given the function that begins a drain.
OnDrain: TypeAlias = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What one child does, and how its parent treats it.

    `name` is for log lines and the list of processes. `redis` and `database` are URLs. A child of a `run` has the job's
    `document` and `folder` from its parent. A worker without one serves all runs, whose jobs are in Postgres and may do
    what the `permissions` say. `log_level` is the lowest level of log lines, `line_format` their format,
    `grace_seconds` how long a drain may take, `debug` asks for tracebacks. A child without `restart` is not started
    again when it dies. One that `reads_input` has the user's standard input.
    """

    role: Literal["coordinator", "worker"]
    name: str
    redis: str
    database: str
    run: str | None = None
    document: Mapping[str, Any] | None = None
    folder: str = "."
    permissions: Permissions = NOTHING_ALLOWED
    log_level: str = "INFO"
    line_format: str = DATE_AND_TIME
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
        fields = orjson.loads(line)
        allowed = {name: tuple(values) for name, values in fields.pop("permissions").items()}
        return cls(permissions=Permissions(**allowed), **fields)


def ending_words(code: int) -> str:
    """How a child ended, by its exit code, as "ended with exit code 1"; a negative one is that of a signal."""
    if code == -signal.SIGPROF:
        return "stood still for too long and was ended"  # see telemetry/pulse
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if code == DRAINED_EXIT_CODE:
        return "was asked to leave by SIGTERM"
    return "gave up its drain" if code == INTERRUPTED_EXIT_CODE else f"ended with exit code {code}"
