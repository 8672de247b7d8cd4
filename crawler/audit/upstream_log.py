"""Reads the requested keys from an upstream's own log, where the last field of each line is a path or a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from coordinator.errors import UsageError
from crawler.job.models import RequestSettings


def logged_keys(log: Path, request: RequestSettings) -> Iterator[str]:
    """Every key that was requested, in the log's order, encoded as it was sent.

    Raises UsageError when the log cannot be read.
    """
    keys_in = _splitter(request)
    try:
        with log.open(encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                if fields := line.split():
                    yield from keys_in(fields[-1].replace("\0", "\\0"))
    except OSError as error:
        raise UsageError(f"--requests {log}: {error.strerror or error}; name a file that can be read") from error


def _splitter(request: RequestSettings) -> Callable[[str], Sequence[str]]:
    """The function from a logged path or URL to its keys.

    With one key in a request the whole path or URL stands for the key. Several keys are between the template's ends.
    """
    if request.url is None or request.keys_per_request == 1:
        return lambda logged: [logged]
    head, _, rest = request.url.partition("{")
    tail = rest.partition("}")[2].partition("#")[0]
    parts = urlsplit(head)
    path = head.removeprefix(f"{parts.scheme}://{parts.netloc}")
    separator = quote(request.separator, safe="")

    def split(logged: str) -> Sequence[str]:
        for begin in (head, path):
            if logged.startswith(begin) and logged.endswith(tail):
                return logged[len(begin) : len(logged) - len(tail)].split(separator)
        return [logged]

    return split
