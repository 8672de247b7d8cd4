"""Pure: pages in Postgres' binary COPY format, JSON bodies and content byte for byte as they came.

The format is described in Postgres' manual under COPY, "Binary Format": a signature, then for each row the number
of fields and for each field its length (-1: null) and bytes; jsonb is a version byte, 1, and the JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from coordinator.model import KeyContext, Outcome
from coordinator.queue.sharding import digest
from crawler.model import Page

COLUMNS = (
    "run_id",
    "digest",
    "key",
    "url",
    "outcome",
    "reason",
    "status",
    "attempts",
    "fetched_at",
    "etag",
    "last_modified",
    "body_digest",
    "content_digest",
    "final_url",
    "encoding",
    "content_type",
    "content",
    "body",
)
# Only pages of a run that follows what pages name have these.
WHERE_FOUND = ("kind", "depth", "page_no", "origin", "list", "batch")
SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
# Postgres counts microseconds from 2000-01-01; this is that moment in seconds since 1970.
POSTGRES_EPOCH_SECONDS = 946_684_800
# Each packs one field, or two: the field's length in bytes, then its value. A row begins with its number of fields.
_FIELD_COUNT_RUN_ID_DIGEST = Struct(">hiii16s").pack
_LENGTH = Struct(">i").pack
_SMALLINT = Struct(">ih").pack
_ATTEMPTS_FETCHED_AT = Struct(">ihiq").pack
_DEPTH_PAGE_NO = Struct(">iiii").pack
_BIGINT = Struct(">iq").pack
_JSONB_VERSION = Struct(">ib").pack
_NULL = _LENGTH(-1)


def encode_pages(pages: Sequence[Page], run_id: int, batch: int | None = None) -> list[bytes]:
    """The COPY stream of these pages, in their order, as pieces to be joined.

    With the number of their `batch` they have the columns WHERE_FOUND, too.
    """
    pieces: list[bytes] = [SIGNATURE]
    put = pieces.append
    columns = len(COLUMNS) if batch is None else len(COLUMNS) + len(WHERE_FOUND)
    for page in pages:
        key = _text(page.item.key)
        put(_FIELD_COUNT_RUN_ID_DIGEST(columns, 4, run_id, 16, page.item.digest))
        put(key)
        put(key if page.url == page.item.key else _text(page.url))
        put(_OUTCOMES[page.outcome])
        put(_text(page.reason))
        put(_NULL if page.status is None else _SMALLINT(2, page.status))
        put(_ATTEMPTS_FETCHED_AT(2, page.attempts, 8, round((page.fetched_at - POSTGRES_EPOCH_SECONDS) * 1_000_000)))
        put(_text(page.etag))
        put(_text(page.last_modified))
        put(_NULL if page.body_digest is None else _bytea(page.body_digest))
        if page.content_digest is None and page.final_url is None:
            put(_OWN_BODY)
        else:
            put((_NULL if page.content_digest is None else _bytea(page.content_digest)) + _text(page.final_url))
        if page.content is None:
            put(_UTF8_BODY if page.encoding == "utf-8" else _text(page.encoding) + _NULL + _NULL)
        else:
            put(_text(page.encoding) + _text(page.content_type) + _LENGTH(len(page.content)))
            put(page.content)
        if page.body is None:
            put(_NULL)
        else:
            put(_JSONB_VERSION(len(page.body) + 1, 1))
            put(page.body)
        if batch is not None:
            put(_where_found(page.item.context, batch))
    put(TRAILER)
    return pieces


def _where_found(context: KeyContext, batch: int) -> bytes:
    return b"".join(
        (
            _text(context.kind or None),
            _DEPTH_PAGE_NO(4, context.depth, 4, context.page_no),
            _bytea(context.origin) if context.origin else _NULL,
            _bytea(digest(context.list_key, KeyContext(context.kind))) if context.list_key else _NULL,
            _BIGINT(8, batch),
        )
    )


def _bytea(value: bytes) -> bytes:
    return _LENGTH(len(value)) + value


def storable(text: str) -> bytes:
    """A text in UTF-8, with escapes for characters that Postgres' text cannot hold: a reason may quote any."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace")


def _text(text: str | None) -> bytes:
    return _NULL if text is None else _bytea(storable(text))


# The content digest and the final URL of nearly every page whose content is its body.
_OWN_BODY = _NULL + _NULL
# The encoding, the content type and the content of nearly every page.
_UTF8_BODY = _text("utf-8") + _NULL + _NULL
_OUTCOMES = {outcome: _text(outcome.value) for outcome in Outcome}
