"""Log lines for people: time, who, the level if above INFO, and the message."""

from __future__ import annotations

import logging
import sys

WHO_COLUMNS = 12
NOISY_LIBRARIES = ("httpx", "httpcore", "asyncio", "hpack")


class _Line(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # A key or a reason may come from another program: no control character of it reaches the terminal.
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.getMessage())
        line = f"{self.formatTime(record, self.datefmt)} {self._who:<{WHO_COLUMNS}} {level}{text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(who: str, level: str) -> None:
    """Send this process' log lines to standard error; `level` is a logging level's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(who))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
