"""Pure: a response's body as the JSON text that goes into pages.body."""

from __future__ import annotations

import codecs
from functools import lru_cache

import orjson

_JSON_STARTS = (b"{", b"[")
# Python has these codecs, but no upstream means them. Punycode takes quadratic time, so that one hostile body could
# stop the worker. The others give lone surrogates, which neither JSON nor Postgres can hold.
_REFUSED_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"})


def json_text(content_type: str | None, body: bytes) -> bytes:
    """A JSON body byte for byte as it came; any other text as one JSON string.

    A body whose content type is JSON is not checked, because Postgres does that. Raises ValueError when a JSON body is
    empty, and when another body is not text.
    """
    media_type = _media_type(content_type)
    if media_type.endswith(("/json", "+json")):
        if not body.strip():
            raise ValueError("body is not JSON: it is empty")
        return body
    if not media_type and body.lstrip()[:1] in _JSON_STARTS:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
        else:
            return body
    return orjson.dumps(decoded(content_type, body))


@lru_cache(maxsize=256)
def _media_type(content_type: str | None) -> str:
    """The media type without its parameters, in lower case. A corpus has few content types, so they are cached."""
    return (content_type or "").partition(";")[0].strip().lower()


def decoded(content_type: str | None, body: bytes) -> str:
    """The body as text, by the charset that Content-Type names, else UTF-8.

    Raises ValueError when it is not text in that charset, or has a NUL character.
    """
    charset = "utf-8"
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"') or charset
    try:
        if codecs.lookup(charset).name.replace("_", "-") in _REFUSED_CHARSETS:
            raise LookupError(f"{charset} is no charset of bodies")
        text = body.decode(charset)
    except (ValueError, LookupError) as error:
        raise ValueError(f"body is not text ({content_type or 'no content type'}): {error}") from error
    if "\0" in text:
        raise ValueError(f"body is not text ({content_type or 'no content type'}): it has a NUL character")
    return text
