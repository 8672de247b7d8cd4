"""Pure: the row of a batch that an error of Postgres is about, and the reason that its page gets."""

from __future__ import annotations

import re
from collections.abc import Sequence

import asyncpg

from coordinator.errors import first_line
from crawler.model import MAX_REASON_CHARACTERS, Page
from crawler.text.body import decoded_json
from crawler.text.charset import is_utf8
from crawler.text.media_type import media_type

# What asyncpg and Postgres raise for a value that cannot be stored, as opposed to a server that cannot store now.
ROW_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
    IndexError,
)
# Only at the beginning of a line: the text of a body that an error's context quotes is never there.
_COPY_LINE = re.compile(r"^COPY (\w+), line (\d+)", re.MULTILINE)


def copy_position(error: Exception) -> tuple[str, int] | None:
    """The table and the index of the row, from 0, at which a COPY failed; None when the error does not say."""
    match = _COPY_LINE.search(getattr(error, "context", None) or "")
    return (match[1], int(match[2]) - 1) if match else None


def reason_of(error: BaseException) -> str:
    """What the error says about a row: its first line and its detail, at most MAX_REASON_CHARACTERS characters."""
    parts = [first_line(error)]
    if isinstance(error, asyncpg.PostgresError):
        parts = [error.args[0] if error.args else first_line(error)]
        if detail := getattr(error, "detail", None):
            parts.append(str(detail))
    return ": ".join(parts)[:MAX_REASON_CHARACTERS]


def decode_anew(pages: Sequence[Page]) -> bool:
    """Decode the JSON bodies that are not the UTF-8 that they seemed to be; returns whether there were any.

    A body in UTF-8 is not looked through before it is stored: Postgres finds the others.
    """
    found = False
    for page in pages:
        if page.body is not None and not is_utf8(page.body):
            found = True
            page.body, page.encoding = decoded_json(page.body, media_type(page.content_type).encoding)
    return found


def is_bare(page: Page) -> bool:
    """Whether the page has no body, content or records: to fail it takes away nothing that Postgres can refuse."""
    return page.body is None and page.content is None and not page.records
