"""Heads of HTTP/1 responses as upstreams send them -> heads that a strict reader takes.

What is taken: folded lines, lines that are no header (left out), control characters in a value (each becomes a blank),
blanks before a colon, bare LF, odd versions and reasons, an empty Content-Length, a Transfer-Encoding of other words
than "chunked". Else what says how long the body is, is left for the strict reader to judge: a control character there
stays, and is refused (RFC 9112, section 11.1).
"""

from __future__ import annotations

import re

from coordinator.errors import FetchError

MAX_HEADERS = 256
MAX_HEAD_BYTES = 408 * 1024  # as hyper, the library under pyreqwest
MAX_INFORMATIONAL = 100

_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_STATUS = re.compile(rb"HTTP/(\d)(?:\.(\d))?[ \t]+([1-9]\d\d)(?!\d)", re.IGNORECASE)
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_STRICT = re.compile(
    rb"HTTP/1\.[01] [1-9]\d\d(?: %b)?\r?\n(?:%b:%b\r?\n)*\r?\n" % (_VALUE, _NAME.pattern, _VALUE),
)
_CODING = re.compile(rb"[\x20-\x7e\x80-\xff]*")
_CONTROLS = bytes(code for code in range(32) if code != ord("\t")) + b"\x7f"
_BLANKS = bytes.maketrans(_CONTROLS, b" " * len(_CONTROLS))
_LENGTH, _TRANSFER = b"content-length", b"transfer-encoding"
_FRAMING = frozenset({_LENGTH, _TRANSFER})
# A header that says nothing of the body's length to whoever reads it strictly.
_ODD_FRAMING = re.compile(
    rb"\ntransfer-encoding:(?![ \t]*chunked[ \t]*\r?\n)|\ncontent-length:[ \t]*\r?\n"
    rb"|\ntransfer-encoding:[^\n]*\n(?:[^\n]*\n)*transfer-encoding:",
    re.IGNORECASE,
)


class HeadReader:
    """Finds the head of one response in what a connection brings, and makes it strict; the rest passes as it is.

    `mended` is whether it changed anything. Informational heads (1xx) before the head are treated alike.
    """

    def __init__(self) -> None:
        self.mended = False
        self._buffer = bytearray()
        self._searched = 0
        self._informational = 0
        self._passed = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what a strict reader may have now, heads only whole. An empty chunk says that nothing more comes.

        Raises FetchError("protocol") for a head with more headers or bytes than the limits, and for too many of them.
        """
        if self._passed:
            return chunk
        self._buffer += chunk
        heads = b""
        while chunk and self._begins_with_http():
            end = _END.search(self._buffer, max(0, self._searched - 2))
            size = len(self._buffer) if end is None else end.end()
            if size > MAX_HEAD_BYTES or self._buffer.count(b"\n", 0, size) > MAX_HEADERS + 2:
                raise FetchError("protocol", f"more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them")
            if end is None:
                self._searched = size
                return heads
            head = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._searched = 0
            tidied = head if _STRICT.fullmatch(head) and not _ODD_FRAMING.search(head) else tidy_head(head)
            self.mended |= tidied is not head
            heads += tidied
            if tidied[9:10] != b"1":
                break
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise FetchError("protocol", f"more than {MAX_INFORMATIONAL} informational heads before the response")
        self._passed = True
        return heads + bytes(self._buffer)

    def _begins_with_http(self) -> bool:
        """Whether a head begins here, or may begin. Empty lines before it are removed (RFC 9112, section 2.2)."""
        if self._buffer.startswith((b"\r", b"\n")):
            self._buffer = self._buffer.lstrip(b"\r\n")
            self.mended = True
        return b"HTTP/".startswith(bytes(self._buffer[:5]).upper())


def tidy_head(head: bytes) -> bytes:
    """Return a whole head as a strict reader takes it; one that does not begin with an HTTP status as it is."""
    lines = _FOLD.sub(b" ", head).split(b"\n")
    status = _STATUS.match(lines[0])
    if status is None:
        return head
    version = b"1.0" if status[1] == b"0" or (status[1], status[2]) == (b"1", b"0") else b"1.1"
    fields = [b"HTTP/%b %b" % (version, status[3])]
    last_coding = b""
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t")
        if not colon or not _NAME.fullmatch(name):
            continue
        value = value.removesuffix(b"\r").strip(b" \t")
        kind = name.lower()
        if kind not in _FRAMING:
            fields.append(b"%b: %b" % (name, value.translate(_BLANKS).strip(b" \t")))
        elif kind == _TRANSFER:
            last_coding = value.rpartition(b",")[2].strip(b" \t")
        elif value:
            fields.append(b"%b: %b" % (name, value))
    # RFC 9112, section 6.1: the last coding says whether the body is chunked. Other ones are words that mean nothing.
    if last_coding.lower() == b"chunked" or not _CODING.fullmatch(last_coding):
        fields.append(b"Transfer-Encoding: " + last_coding)
    return b"\r\n".join([*fields, b"", b""])
