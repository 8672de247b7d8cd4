"""Pure: a response's body as the JSON text that goes into pages.body."""

from __future__ import annotations

import codecs
from functools import lru_cache

import orjson

_OPENERS = (b"{", b"[")
# Python knows these as charsets too. Punycode takes quadratic time, so that one hostile body could stop the
# worker; the others give lone surrogates, which neither JSON nor Postgres can hold. No upstream means them.
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"})


def json_text(content_type: str | None, body: bytes) -> bytes:
    """A JSON body as it came, without a round trip through Python; any other text as one JSON string.

    What says that it is JSON is left to Postgres to judge. Raises ValueError when the body is not text.
    """
    kind = _kind(content_type)
    if kind.endswith(("/json", "+json")):
        if not body.strip():
            raise ValueError("body is not JSON: it is empty")
        return body
    if not kind and body.lstrip()[:1] in _OPENERS:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
        else:
            return body
    return orjson.dumps(decoded(content_type, body))


@lru_cache(maxsize=256)
def _kind(content_type: str | None) -> str:
    """The media type alone, in lower case; a corpus has few, and each comes millions of times."""
    return (content_type or "").partition(";")[0].strip().lower()


def decoded(content_type: str | None, body: bytes) -> str:
    """The body as text, by the charset that Content-Type names, else UTF-8. Raises ValueError when it is neither."""
    charset = "utf-8"
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"') or charset
    try:
        if codecs.lookup(charset).name.replace("_", "-") in _NO_CHARSETS:
            raise LookupError(f"{charset} is no charset of bodies")
        text = body.decode(charset)
    except (ValueError, LookupError) as error:
        raise ValueError(f"body is not text ({content_type or 'no content type'}): {error}") from error
    if "\0" in text:
        raise ValueError(f"body is not text ({content_type or 'no content type'}): it has a NUL character")
    return text
