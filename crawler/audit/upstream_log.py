"""Reads the requested keys from an upstream's own log.

A line is one of nginx's or Apache's (common or combined: the request stands in quotes), or its last field is a path or
a URL. The log may be compressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from coordinator.errors import SourceError, UsageError
from coordinator.source.input.files import SourceFile
from coordinator.source.input.pieces import DAMAGE_ERRORS, pieces
from crawler.fetch.template import Template
from crawler.job.request.settings import RequestSettings

_REQUEST = re.compile(r'"[A-Z]+ (\S.*?) HTTP/[0-9.]+"')
_TARGET = re.compile(r"/|https?://", re.IGNORECASE)


class UpstreamLog:
    """One log. When its keys were read, `other_lines` is how many lines are no requests, `other_line` one of them."""

    def __init__(self, log: Path, request: RequestSettings) -> None:
        self._log = log
        self._keys_in = _splitter(request)
        self.other_lines = 0
        self.other_line = ""

    def keys(self) -> Iterator[str]:
        """Every key that was requested, in the log's order, encoded as it was sent.

        Raises UsageError when the log cannot be read.
        """
        for line in self._lines():
            fields = line.split()
            request = _REQUEST.search(line)
            if request or (fields and _TARGET.match(fields[-1])):
                yield from self._keys_in((request[1] if request else fields[-1]).replace("\0", "\\0"))
            elif fields:
                self.other_lines += 1
                self.other_line = line.strip()

    def _lines(self) -> Iterator[str]:
        try:
            raw = SourceFile(str(self._log)).open()
            rest = b""
            try:
                for piece in pieces(raw):
                    *whole, rest = (rest + piece).split(b"\n")
                    yield from (line.decode(errors="backslashreplace") for line in whole)
            finally:
                raw.close()
            yield rest.decode(errors="backslashreplace")
        except (SourceError, *DAMAGE_ERRORS) as error:
            raise UsageError(f"--requests {self._log}: {error}; name a file that can be read") from error


def _splitter(request: RequestSettings) -> Callable[[str], Sequence[str]]:
    """The function from a logged path or URL to its keys.

    With one key in a request the whole path or URL stands for the key. Several keys are between the template's ends.
    """
    parsed = Template(request).parsed
    if parsed is None or request.keys_per_request == 1:
        return lambda logged: [logged]
    origin, head, tail = parsed
    separator = quote(request.separator, safe="")

    def split(logged: str) -> Sequence[str]:
        for begin in (origin.text + head, head):
            if logged.startswith(begin) and logged.endswith(tail):
                return logged[len(begin) : len(logged) - len(tail)].split(separator)
        return [logged]

    return split
