"""Log lines that a person reads: time, who, level when it matters, what."""

from __future__ import annotations

import logging
import sys


class _Line(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # A key or a reason may come from outside: no control character reaches the terminal.
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.getMessage())
        line = f"{self.formatTime(record, self.datefmt)} {self._who:<12} {level}{text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(who: str, level: str) -> None:
    """Send this process' log lines to standard error; `level` is a logging level's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(who))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "asyncio", "hpack"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
