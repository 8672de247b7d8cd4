"""The first keys of a source: when none of them is a key, the source is not what the job says, and why is likely."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from coordinator.errors import SourceError
from coordinator.source.chunk import Cursor, Refused

FIRST_KEYS = 1000
# So many of the refused lines are looked at for the likely cause.
_SAMPLES = 50

_CSV = "it looks like a CSV: end its name in .csv, and name the column"
# What most of the refused lines look like (in `key`, where line breaks and NULs are escaped, or in `reason`), and what
# that means; the first that fits counts.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    ("key", r"\\x00", "it looks like UTF-16 without a byte order mark: convert it, as iconv -f UTF-16LE -t UTF-8 does"),
    ("key", r"\\x0[ad](?: \(|$)", "each ends in a line break: yield line.strip()"),
    ("reason", "is not valid UTF-8", "is it in another encoding? convert it, as iconv -f WINDOWS-1252 -t UTF-8 does"),
    ("reason", "contains the separator", "set [request] separator to a text that no key contains"),
)
_CAUSES_OF_URLS: tuple[tuple[str, str, str], ...] = (
    ("key", r"(?i)^[\"'\u201c\u2018<`(]+\s*https?://[^,;]*[,;]?$", "the URLs are in quotes: remove these"),
    (
        "key",
        r"(?i)[,;|\"]\s*https?://|\\x09|^\"[^\"]*\"[,;]",
        f"{_CSV} of URLs in [source] key",
    ),
    ("key", r"(?i)https?://", "something stands before each URL: keep only the URLs, one a line"),
    ("key", r"^[A-Za-z][A-Za-z0-9+.-]*://", "only http:// and https:// can be fetched"),
    ("key", r"(?i)^(?://)?[\w.-]+\.[a-z]{2,}(?::\d+)?(?:[/?#]|$)", "the URLs lack http://: write it before each"),
    ("key", r"[,;]", f"{_CSV} of keys in [source] key"),
    ("key", "", 'if these are ids, a job file says what their URL is: [request] url = "https://HOST/PATH/{key}"'),
)


class FirstKeys:
    """Watches a source that is read from its beginning, until its first key.

    `left` is how many more keys may be refused; 0 when the watch is over.
    """

    def __init__(self, name: str, cursor: Cursor, warn: Callable[[str], None], *, absolute_url: bool) -> None:
        """Watch the source `name` from `cursor` on; with `absolute_url` its keys are URLs.

        `warn` gets a sentence about a source that ends without a key.
        """
        self.left = 0 if cursor != Cursor() else FIRST_KEYS
        self._name = name
        self._warn = warn
        self._absolute_url = absolute_url
        self._refused: list[Refused] = []

    def look(self, keys: Sequence[str], refused: Sequence[Refused], *, ended: bool = False) -> None:
        """See what a source has returned by now. Raises SourceError when its first 1,000 keys were refused."""
        if keys:
            self.left = 0
        if not self.left:
            return
        self.left -= len(refused)
        self._refused += refused[: _SAMPLES - len(self._refused)]
        if self.left <= 0:
            raise SourceError(self._complaint(f"its first {FIRST_KEYS:,} keys are all refused"))
        if ended:
            self.left = 0
            all_refused = self._refused and self._complaint("all of its keys are refused")
            self._warn(all_refused or f"{self._name} is empty: it has no keys")

    def _complaint(self, what: str) -> str:
        first = self._refused[0]
        cause = likely_cause(self._refused, absolute_url=self._absolute_url)
        return f"{self._name}: {what}; {first.place} ({first.key[:60]}) {first.reason}" + (
            f"; {cause}" if cause else ""
        )


def likely_cause(refused: Sequence[Refused], *, absolute_url: bool) -> str:
    """Pure: the likely cause of lines like these, and what to do about it; empty when there is none to see."""
    for field, pattern, cause in (*_CAUSES, *(_CAUSES_OF_URLS if absolute_url else ())):
        if 2 * sum(re.search(pattern, getattr(line, field)) is not None for line in refused) > len(refused):
            return cause
    return ""
