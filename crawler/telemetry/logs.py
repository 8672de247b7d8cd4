"""Log lines for people: time, the process's name, the level if above INFO, and the message."""

from __future__ import annotations

import logging
import sys

NAME_COLUMNS = 12
NOISY_LIBRARIES = ("httpx", "httpcore", "asyncio", "hpack")


class _Line(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # A key or a reason may come from another program: its control characters must not reach the terminal.
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.getMessage())
        line = f"{self.formatTime(record, self.datefmt)} {self._process:<{NAME_COLUMNS}} {level}{text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(process: str, level: str) -> None:
    """Send this process's log lines to standard error, with its name; `level` is a logging level's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
