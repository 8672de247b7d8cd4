"""Pure: bytes to text as browsers decode them. Labels and decoders are those of the WHATWG Encoding Standard.

The order is theirs too: a byte order mark, the charset that Content-Type names, what the document declares (HTML, XML),
UTF-8 if the bytes are UTF-8, and at last windows-1252, which decodes every byte.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

# HTML Standard, "prescan a byte stream to determine its encoding": a declaration must stand in these bytes.
PRESCAN_BYTES = 1024
# The same, "change the encoding": a later declaration counts too. Here only if the bytes are no UTF-8.
LATE_DECLARATION_BYTES = 65_536
UTF8 = "utf-8"
UTF16 = ("utf-16le", "utf-16be")
REPLACEMENT = "\ufffd"
# The encoding of labels that browsers decode to nothing, because a page could hide scripts in them: ISO-2022-KR and
# -CN, HZ. The whole text is one U+FFFD.
UNDECODABLE = "replacement"
_FALLBACK = "windows-1252"
_BOMS = ((b"\xef\xbb\xbf", UTF8), (b"\xff\xfe", "utf-16le"), (b"\xfe\xff", "utf-16be"))
# The encodings whose bytes can say U+FFFD themselves, and Python's names of their decoders.
_CAN_SAY_REPLACEMENT = {
    UTF8: UTF8,
    "utf-16le": "utf-16le",
    "utf-16be": "utf-16be",
    "gb18030": "gb18030",
    "gbk": "gb18030",
}
_BOM_BYTES = tuple(bom for bom, _ in _BOMS)
_XML_ENCODING = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']\s*([^"'\s]+)""")
_XML_UTF16 = ((b"<\0?\0x\0", "utf-16le"), (b"\0<\0?\0x", "utf-16be"))

Declares: TypeAlias = Literal["html", "xml"]


class Decoded(NamedTuple):
    """A text, and how it was decoded: the encoding's name, and how many characters U+FFFD stand for what it was not."""

    text: str
    encoding: str
    replaced: int = 0

    @property
    def summary(self) -> str:
        """The text of pages.encoding: `utf-8`, or `utf-8, 3 replaced`."""
        return f"{self.encoding}, {self.replaced} replaced" if self.replaced else self.encoding


@lru_cache(maxsize=256)
def encoding_of(label: str) -> str | None:
    """The encoding that a label names, in lower case; None for a label that the standard does not have."""
    if label.lower() == UTF8:
        return UTF8
    # Imported where it is needed: it takes 70 ms and 4 MB, and most runs meet nothing but JSON in UTF-8.
    import turbohtml

    try:
        name = turbohtml.parse(b"", encoding=label).encoding
    except (LookupError, UnicodeError):
        return None
    return name.lower() if name else None


def decode(body: bytes, encoding: str | None = None, declares: Declares | None = None) -> Decoded:
    """Decode a body; `encoding` is that of its Content-Type, `declares` the kind of document that may name one itself.

    What stands for no character becomes U+FFFD, and so does NUL, which Postgres cannot store. Never raises.
    """
    for bom, name in _BOMS:
        if body.startswith(bom):
            return _decoded(body[len(bom) :], name)
    named = encoding or (declares and _declared(body[:PRESCAN_BYTES], declares))
    if named in (None, UTF8):
        try:
            return _without_nul(body.decode(), UTF8)
        except UnicodeDecodeError:
            pass
    if named is None and declares == "html":
        named = _declared(body[:LATE_DECLARATION_BYTES], declares)
    return _decoded(body, named or _FALLBACK)


def is_utf8(body: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def has_bom(body: bytes) -> bool:
    """Whether the body begins with a byte order mark."""
    return body.startswith(_BOM_BYTES)


def _declared(head: bytes, declares: Declares) -> str | None:
    """The encoding that the beginning of a document names, None when it names none."""
    for start, name in _XML_UTF16:
        if head.startswith(start):
            return name
    if declares == "html" and b"charset" in head.lower():  # else no <meta> can name one
        import turbohtml

        found = turbohtml.parse(head)
        # "tentative" is said of the fallback, and of a declared encoding that is never used.
        if found.encoding and (found.encoding_confidence == "certain" or found.encoding != _FALLBACK):
            return found.encoding.lower()
    match = _XML_ENCODING.match(head)
    named = encoding_of(match[1].decode("latin-1")) if match else None
    # Whoever could read this declaration has read no UTF-16.
    return UTF8 if named in UTF16 else named


def _decoded(body: bytes, name: str) -> Decoded:
    if name == UTF8:
        text = body.decode(UTF8, "replace")
    else:
        import turbohtml.detect  # noqa: F401 - it registers the standard's decoders as whatwg-*

        text = body.decode(f"whatwg-{name}", "replace")
    replaced = text.count(REPLACEMENT)
    if replaced and name in _CAN_SAY_REPLACEMENT:
        replaced -= body.decode(_CAN_SAY_REPLACEMENT[name], "ignore").count(REPLACEMENT)
    return _without_nul(text, name, replaced)


def _without_nul(text: str, name: str, replaced: int = 0) -> Decoded:
    if "\0" in text:
        replaced += text.count("\0")
        text = text.replace("\0", REPLACEMENT)
    return Decoded(text, name, replaced)
