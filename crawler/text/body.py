"""Pure: what a page keeps of a body: JSON as it came, any other text as one JSON string, anything else as bytes."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

import orjson

from crawler.text.charset import UNDECODABLE, UTF8, UTF16, Declares, Decoded, decode, is_utf8
from crawler.text.media_type import MAX_CHARACTERS, OCTET_STREAM, Group, kept_as, media_type

# The first bytes of JSON in UTF-8.
_JSON_STARTS = b'{["-0123456789tfn'


class Kept(NamedTuple):
    """The fields of a page that hold its body; see Page."""

    body: bytes | None = None
    content: bytes | None = None
    content_type: str | None = None
    encoding: str | None = None


def is_plain_json(content_type: str | None, body: bytes) -> bool:
    """Whether a body that is not empty says that it is JSON and begins like JSON in UTF-8: it is stored as it came.

    It is not looked through, because nearly every body comes here: Postgres finds one that is something else.
    """
    named = content_type and content_type[:MAX_CHARACTERS]
    return _says_plain_json(named) and body[0] in _JSON_STARTS and body[1:2] != b"\0"


@lru_cache(maxsize=256)
def _says_plain_json(content_type: str | None) -> bool:
    media = media_type(content_type)
    return media.group is Group.JSON and media.encoding in (None, UTF8)


def kept(content_type: str | None, body: bytes, coding: str | None = None) -> Kept:
    """What is stored of a body that is not empty; `coding` names the content coding that could not be undone.

    JSON is not checked, because Postgres does that. Raises ValueError when a body that says it is JSON is blank.
    """
    media = media_type(content_type)
    if coding is not None:
        return Kept(None, body, media.essence or OCTET_STREAM, coding)
    if media.group is Group.JSON:
        if body.isspace():
            raise ValueError("body is not JSON: it is empty")
        utf8, summary = json_in_utf8(body, media.encoding)
        return Kept(utf8, None, content_type, summary)
    if media.group is Group.UNKNOWN:
        utf8, summary = json_in_utf8(body, media.encoding)
        if utf8.lstrip().startswith((b"{", b"[")) and _is_json(utf8):
            return Kept(utf8, None, content_type, summary)
    media = kept_as(media, body)
    if media.group is Group.CONTENT:
        return Kept(None, body, media.essence)
    decoded = decode(body, media.encoding, media.declares)
    text = orjson.dumps(decoded.text)
    if decoded.encoding == UNDECODABLE:  # the text says nothing, so the bytes are kept beside it
        return Kept(text, body, media.essence, decoded.summary)
    return Kept(text, None, None, decoded.summary)


def text_of(content_type: str | None, body: bytes, declares: Declares | None = None) -> Decoded:
    """A body as text, whatever its media type; `declares` is the kind of document that it is, if that is known.

    Never raises.
    """
    media = media_type(content_type)
    if media.group is Group.UNKNOWN:
        media = kept_as(media, body)
    return decode(body, media.encoding, declares or media.declares)


def json_in_utf8(body: bytes, encoding: str | None) -> tuple[bytes, str]:
    """JSON in UTF-8, and the text of pages.encoding; `encoding` is that of its Content-Type.

    What seems to be UTF-8 is returned as it is, and not looked through. JSON begins with a character of ASCII, so a
    zero among its first four bytes says that it is UTF-16 or UTF-32 (RFC 4627, section 3).
    """
    if (encoding is None or encoding == UTF8) and body[:1] < b"\x80" and 0 not in body[:4]:
        return body, UTF8
    return decoded_json(body, encoding)


def decoded_json(body: bytes, encoding: str | None) -> tuple[bytes, str]:
    """JSON decoded by its encoding, in UTF-8, and the text of pages.encoding. Never raises.

    What is UTF-8 is no other encoding, whatever the charset says: many servers say ISO-8859-1 of all, some UTF-16. Only
    ISO-2022-JP writes its characters in ASCII.
    """
    found = json.detect_encoding(body).replace("-le", "le").replace("-be", "be")
    if found.startswith("utf-32"):  # which the Encoding Standard does not have
        return body.decode(found, "replace").encode(), found
    if found in UTF16:
        encoding = found
    elif encoding and encoding != "iso-2022-jp" and is_utf8(body):
        encoding = UTF8
    decoded = decode(body, encoding)
    return decoded.text.encode(), decoded.summary


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return _is_json_of_large_numbers(body)
    return True


def _is_json_of_large_numbers(body: bytes) -> bool:
    try:
        json.loads(body, parse_float=str, parse_int=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
