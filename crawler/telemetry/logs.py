"""Log lines for people: time, the process's name, the run, the level if above INFO, and the message."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic

NAME_COLUMNS = 12
SAME_TEXT_SECONDS = 60.0
NOISY_LIBRARIES = ("httpx", "httpcore", "asyncio", "hpack", "uvicorn")
# A terminal shows what happens now; elsewhere a line is read days later.
TIME, DATE_AND_TIME = "%H:%M:%S", "%Y-%m-%d %H:%M:%S"

_run: ContextVar[str] = ContextVar("run", default="")


class _Line(logging.Formatter):
    def __init__(self, process: str, time_format: str) -> None:
        super().__init__(datefmt=time_format)
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        run = f"{named_run()}: " if named_run() else ""
        # A key or a reason may come from another program: its control characters must not reach the terminal.
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.getMessage())
        line = f"{self.formatTime(record, self.datefmt)} {self._process:<{NAME_COLUMNS}} {run}{level}{text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(process: str, level: str, time_format: str) -> None:
    """Send this process's log lines to standard error, with its name; `level` is a logging level's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(process, time_format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


class Repeated:
    """Texts that would be logged again and again: each one is said once in SAME_TEXT_SECONDS. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def is_due(self, text: str) -> bool:
        """Whether to say the text now; then it counts as said."""
        now = self._clock()
        if now - self._said_at.get(text, -SAME_TEXT_SECONDS) < SAME_TEXT_SECONDS:
            return False
        self._said_at[text] = now
        return True


def time_format() -> str:
    """The time format of this process, for its children."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    return next((str(one.datefmt) for one in formatters if isinstance(one, _Line)), DATE_AND_TIME)


def name_run(run: str) -> None:
    """Name the run that this task works on, with the tasks that it starts from now on."""
    _run.set(run)


def named_run() -> str:
    """The run that this task works on; empty when none was named."""
    return _run.get()
