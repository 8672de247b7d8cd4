"""Pure: what a body is by its Content-Type, and by its first bytes where that says nothing or is a lie."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from xtractmime import extract_mime

from crawler.text.charset import UTF16, Declares, encoding_of, has_bom, is_utf8

OCTET_STREAM = "application/octet-stream"
# What is behind them is not read: a hostile upstream would fill the cache with it.
MAX_CHARACTERS = 512
# WHATWG MIME Sniffing Standard, section 5.2: the resource header.
_HEADER_BYTES = 1445
# The same, section 3: the binary data bytes, which no text has.
_BINARY_BYTES = bytes((*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)))
_BLANKS = b"\t\n\x0c\r "
# Longer than every pattern of a text that has no binary byte.
_PATTERN_BYTES = 64
# Fetch Standard, "extract a MIME type": the values of several header lines are joined by commas.
_VALUE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_ESSENCE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;|$)")
# MIME Sniffing Standard, "parse a MIME type": what stands behind a quoted value counts for nothing.
_PARAMETER = re.compile(r';\s*([^;=]*)(?:=(?:"((?:\\.|[^"\\])*)"?[^;]*|([^;]*)))?')


class Group(Enum):
    """What is done with a body."""

    JSON = "json"
    HTML = "html"
    XML = "xml"
    TEXT = "text"
    UNKNOWN = "unknown"  # its first bytes say what it is
    CONTENT = "content"  # anything else: kept as bytes


class MediaType(NamedTuple):
    """A Content-Type: its media type in lower case (empty when there is none), the encoding of its charset, its group.

    `encoding` is None too when the charset is a label that the Encoding Standard does not have.
    """

    essence: str
    encoding: str | None
    group: Group

    @property
    def declares(self) -> Declares | None:
        """The kind of document that may declare its encoding."""
        return "html" if self.group is Group.HTML else "xml" if self.group is Group.XML else None


# Beside text/* and what ends in +xml or +json.
_GROUPS = {
    "": Group.UNKNOWN,
    "*/*": Group.UNKNOWN,
    "unknown/unknown": Group.UNKNOWN,
    "application/unknown": Group.UNKNOWN,
    OCTET_STREAM: Group.UNKNOWN,
    "binary/octet-stream": Group.UNKNOWN,
    "text/html": Group.HTML,
    "text/xml": Group.XML,
    "application/xml": Group.XML,
    "text/json": Group.JSON,
    "application/json": Group.JSON,
}
_TEXT_APPLICATIONS = frozenset(
    {
        *("javascript", "x-javascript", "ecmascript", "x-ecmascript", "typescript", "graphql", "sql", "x-sh"),
        *("x-ndjson", "ndjson", "jsonl", "jsonlines", "x-jsonlines", "json-seq", "json5", "x-json", "csv", "x-csv"),
        *("x-www-form-urlencoded", "yaml", "x-yaml", "toml", "n-triples", "n-quads", "trig", "sparql-query"),
    }
)


def media_type(content_type: str | None) -> MediaType:
    """Parse a Content-Type. The last value that is valid counts; it keeps the charset of one of the same media type."""
    return _media_type(content_type[:MAX_CHARACTERS] if content_type else None)


@lru_cache(maxsize=256)
def _media_type(content_type: str | None) -> MediaType:
    essence, label = "", ""
    for value in _VALUE.findall(content_type or ""):
        match = _ESSENCE.match(value)
        if match is None or match[1] == "*/*":
            continue
        found = match[1].lower()
        charset = _charset(value)
        if charset or found != essence:
            label = charset or ""
        essence = found
    return MediaType(essence, encoding_of(label) if label else None, _group(essence))


def _charset(value: str) -> str | None:
    """The first charset that is not empty."""
    parameters = _PARAMETER.findall(value)
    labels = (quoted or bare.strip() for name, quoted, bare in parameters if name.lower() == "charset")
    return next(filter(None, labels), None)


def kept_as(media: MediaType, body: bytes) -> MediaType:
    """The media type by which a body that is not JSON is kept: what it says it is, unless its first bytes know better.

    They are asked when nothing is said. They count against a text when they are those of a picture, sound, archive or
    PDF; and against text/plain, which servers say of what they do not know, when they are no text.
    """
    if media.group is Group.CONTENT or not body:
        return media
    is_unknown = media.group is Group.UNKNOWN
    if not is_unknown and (not _has_binary_bytes(body[:_HEADER_BYTES]) or has_bom(body)):
        return media
    essence = _sniffed(body[:_HEADER_BYTES])
    group = _group(essence)
    content = MediaType(essence, None, Group.CONTENT)
    if group is Group.CONTENT:
        return content
    if is_unknown:
        is_text = group is not Group.UNKNOWN and _is_text(body, says_binary=bool(media.essence))
        return MediaType(essence, media.encoding, group) if is_text else content._replace(essence=OCTET_STREAM)
    is_lie = group is Group.UNKNOWN and media.essence == "text/plain" and media.encoding not in UTF16
    return content if is_lie else media


def _group(essence: str) -> Group:
    group = _GROUPS.get(essence)
    if group is not None:
        return group
    kind, _, name = essence.partition("/")
    if name.endswith("+json"):
        return Group.JSON
    if name.endswith("+xml"):
        return Group.XML
    is_text = kind == "text" or name.endswith(("+yaml", "+json-seq")) or name in _TEXT_APPLICATIONS
    return Group.TEXT if is_text else Group.CONTENT


def _has_binary_bytes(header: bytes) -> bool:
    return len(header.translate(None, _BINARY_BYTES)) < len(header)  # five times as quick as a regular expression


def _is_text(body: bytes, *, says_binary: bool) -> bool:
    """Whether a body whose first bytes are those of a text is one; UTF-8 when it says that it is binary."""
    return has_bom(body) or (b"\0" not in body and (not says_binary or is_utf8(body)))


def _sniffed(header: bytes) -> str:
    """The media type that the standard finds in the first bytes of a body without a Content-Type."""
    if not _has_binary_bytes(header):
        # Blanks before a tag count for nothing, and the library reads past the end of blanks that are all there is.
        header = header.lstrip(_BLANKS)[:_PATTERN_BYTES]
    found: bytes | None = extract_mime(header)
    return found.decode() if found else OCTET_STREAM
