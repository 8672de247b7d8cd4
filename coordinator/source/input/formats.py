"""Pure: what a source is by its first bytes: compressed, UTF-16, or something that has no lines of keys."""

from __future__ import annotations

import re

from coordinator.errors import SourceError

# With this many bytes, or with a whole line, every compression and byte order mark is known.
HEAD_BYTES = 16
# More of them, if they are there, also show a tar archive.
LONG_HEAD_BYTES = 512

_COMPRESSED = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<zstd>\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)|(?P<xz>\xfd7zXZ\x00)"
    rb"|(?P<bzip2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))"
)
_COMPRESSION_OF_SUFFIX = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
_UNPACK = "unpack it, and name the file of keys in it"
_EXPORT = "write its keys as text, one a line"
_EXPORT_JSON = f"{_EXPORT}, as jq -r '.[]' does; the name of JSON Lines ends in .jsonl"
_RENAME = "give it a name that ends in "
# Only what no text begins with, and the beginnings of markup: a list of keys must never be taken for one of these.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK\x03\x04.{26}(?:\[Content_Types\]\.xml|_rels/|docProps/|xl/)", "an Office file (as Excel's .xlsx)", _EXPORT),
    (rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis", "an OpenDocument file (as .ods)", _EXPORT),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", _UNPACK),
    (rb".{257}ustar[\x00 ]", "a tar archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb"\x04\x22\x4d\x18", "lz4 data", _UNPACK),
    (rb"\x1f[\x9d\xa0]", "compress (.Z) data", _UNPACK),
    (rb"LZIP\x01", "lzip data", _UNPACK),
    (rb"\x5d\x00\x00.{3}", "lzma data", _UNPACK),
    (rb"\xff\x06\x00\x00sNaPpY", "snappy data", _UNPACK),
    (rb"PAR1(?=.{0,8}[\x00-\x08\x0e-\x1f])", "a Parquet file", _RENAME + ".parquet"),
    (rb"ARROW1\x00|FEA1(?=.{0,8}[\x00-\x08\x0e-\x1f])", "an Arrow file", _EXPORT),
    (rb"ORC(?=.{0,8}[\x00-\x08\x0e-\x1f])", "an ORC file", _EXPORT),
    (rb"Obj\x01", "an Avro file", _EXPORT),
    (rb"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (rb"%PDF-", "a PDF", _EXPORT),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (as Excel's .xls)", _EXPORT),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "an image", "name a text of keys, one a line"),
    (rb"\x7fELF", "a program", "name a text of keys, one a line"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "text in UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    (rb"(?i:\s*<(?:!doctype\b|html\b))", "HTML", _EXPORT),
    (rb"\s*<(?:\?xml\b|urlset\b|sitemapindex\b)", "XML", f"{_EXPORT} (in a sitemap they are in <loc>)"),
    (
        rb"\s*(?:\{\s*\"|\[\s*[\[{\"]|[\[{]\s*\n)",
        "JSON",
        f"{_EXPORT}, as jq -r '.[]' does; the name of JSON Lines ends in .jsonl",
    ),
)
_OTHER = re.compile(
    b"|".join(rb"(?P<f%d>%b)" % (number, pattern) for number, (pattern, _, _) in enumerate(_OTHERS)), re.DOTALL
)
_UTF_8_BOM = b"\xef\xbb\xbf"
_UTF_16_BOM = re.compile(rb"(?P<utf_16_le>\xff\xfe(?!\x00\x00))|(?P<utf_16_be>\xfe\xff)")


def compression_of(head: bytes) -> str | None:
    """The compression of bytes that begin so, whatever the file's name is: "gzip", "zstd", "xz", "bzip2", or None."""
    found = _COMPRESSED.match(head)
    return found.lastgroup if found else None


def require_compression(head: bytes, name: str) -> None:
    """Raise SourceError when the name of a file promises a compression that these first bytes do not have."""
    promised = _COMPRESSION_OF_SUFFIX.get(name[name.rfind(".") :])
    if promised and head and compression_of(head) is None:
        raise SourceError(f"{name} is not {promised} data; if it is plain text, rename it")


def wide_encoding_of(head: bytes) -> str | None:
    """The codec of a text that begins with a byte order mark of UTF-16; None for all others, which are UTF-8."""
    found = _UTF_16_BOM.match(head)
    return found.lastgroup if found else None


def require_lines(head: bytes, name: str, *, may_be: str = "") -> None:
    """Raise SourceError, with what to do, when these are the first bytes of a format that is no list of keys.

    `may_be` names one of these formats that is right after all.
    """
    if found := _OTHER.match(head.removeprefix(_UTF_8_BOM)):
        _, what, advice = _OTHERS[int(str(found.lastgroup)[1:])]
        if what == may_be:
            return
        raise SourceError(f"{name} is {what}: {advice}")
