"""Log lines: for people with time, the process's name, the run, the level if above INFO, and the message; or as JSON.

A line of JSON has an `event` too, whose name stays the same when the words of its text change. Names are given where
something is logged, as `extra={"event": …}`; with it perhaps a `run`, and the `action` of somebody at the page.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from time import monotonic

import orjson

NAME_COLUMNS = 12
SAME_TEXT_SECONDS = 60.0
NOISY_LIBRARIES = ("httpx", "httpcore", "asyncio", "hpack", "uvicorn")
# A terminal shows what happens now; elsewhere a line is read days later.
TIME, DATE_AND_TIME = "%H:%M:%S", "%Y-%m-%d %H:%M:%S"
JSON = "json"
# The event of a line that was given none, and of one that other code has written to standard error.
NO_EVENT, OUTPUT_EVENT = "message", "output"
# When nobody reads the lines, further ones are left out.
MAX_WAITING_LINES = 10_000
LAST_LINES_SECONDS = 1.0

logger = logging.getLogger(__name__)
_run: ContextVar[str] = ContextVar("run", default="")


class _Line(logging.Formatter):
    def __init__(self, process: str, time_format: str) -> None:
        super().__init__(datefmt=time_format)
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        run = f"{named_run()}: " if named_run() else ""
        text = _escaped(record.getMessage())
        line = f"{self.formatTime(record, self.datefmt)} {self._process:<{NAME_COLUMNS}} {run}{level}{text}"
        if record.exc_info:  # no line of it looks like one of the log
            line += "".join(f"\n  {_escaped(one)}" for one in self.formatException(record.exc_info).split("\n"))
        return line


def _escaped(text: str) -> str:
    """A key or a reason may come from another program: its control characters must not reach the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class _JsonLine(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(datefmt=JSON)
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": at, "level": record.levelname.lower(), "process": self._process}
        named = {"run": getattr(record, "run", named_run()), "action": getattr(record, "action", "")}
        line |= {name: text for name, text in named.items() if text}
        line |= {"event": getattr(record, "event", NO_EVENT), "text": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # A key may have half of a pair of surrogates, which JSON cannot say.
        return orjson.dumps({name: text.encode(errors="replace").decode() for name, text in line.items()}).decode()


class _InThread(logging.Handler):
    """Writes lines in a thread of its own: a pipe that nobody reads holds up neither the caller nor its event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING_LINES)
        self._left_out = 0
        self._descriptor = sys.stderr.fileno()  # the file object has a lock, for which an exit would wait
        self._thread = threading.Thread(target=self._write, name="log lines", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(self.format(record))
        except Exception:  # noqa: BLE001 - like every handler of the standard library: who logs goes on
            self.handleError(record)

    def put(self, line: str) -> None:
        """Write a line as it is, soon."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """Write what waits, unless nobody reads it."""
        try:
            self._lines.put(None, timeout=LAST_LINES_SECONDS)
            self._thread.join(LAST_LINES_SECONDS)
        except queue.Full:
            pass
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError):  # nobody reads them any more
                os.write(self._descriptor, f"{line}\n".encode(errors="replace"))
            if left_out := self._left_out:
                self._left_out -= left_out
                text = f"{left_out:,} log lines were left out, because nobody read them"
                logger.warning("%s", text, extra={"event": "lines_left_out"})


def configure(process: str, level: str, line_format: str, *, in_thread: bool = False) -> None:
    """Send this process's log lines to standard error, with its name; `level` is a logging level's name.

    `line_format` is JSON, or for people the format of the time. `in_thread`: whoever logs never waits for who reads.
    """
    handler = _InThread() if in_thread else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine(process) if line_format == JSON else _Line(process, line_format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def pass_on(line: str) -> None:
    """Log a line that another process of ours has logged; as JSON also one that is none of ours."""
    if not line.startswith('{"time":'):
        logger.info("%s", line, extra={"event": OUTPUT_EVENT})
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _InThread):
            handler.put(line)


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


def line_format() -> str:
    """The format of this process's lines, for its children."""
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    return next((str(one.datefmt) for one in formatters if isinstance(one, _Line | _JsonLine)), DATE_AND_TIME)


def name_run(run: str) -> None:
    """Name the run that this task works on, with the tasks that it starts from now on."""
    _run.set(run)


def named_run() -> str:
    """The run that this task works on; empty when none was named."""
    return _run.get()
