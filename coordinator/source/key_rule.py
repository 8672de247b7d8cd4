"""Which lines are keys, and how a bad line is shown: pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.source.chunk import Refused

MAX_KEY_BYTES = 8192
"""Bytes of UTF-8 that a key may have; rows, stream entries and URLs stay bounded by it."""

SHOWN_CHARACTERS = 200
"""Characters of a bad line that are kept."""

# C0, DEL and C1 controls, and lone surrogates, which are how bytes that are no UTF-8 arrive here (surrogateescape).
_UNFIT = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# A backslash ends the authority too: browsers and some clients read it as a slash, and must not see another host.
_AUTHORITY = re.compile(r"[^/?#\\]*")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]<>^|%\"{}`]+)(?::([0-9]{1,5}))?")
# Whatever could be user:password@ of a URL, also of one so badly written that it has no authority.
_SECRET = re.compile(r"(?s)(?<=://).*@|^(?!\w+://)[^/@]*:.*@")


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What a key must look like.

    `absolute_url`: an http:// or https:// URL with a host, without spaces and without user:password@ (keys become
    rows, and rows are no place for secrets). Otherwise a key is any printable text that a template turns into a URL.
    `separator` joins several keys in one request, so no key may contain it.
    """

    absolute_url: bool
    separator: str | None = None
    _quick: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the fast path."""
        object.__setattr__(self, "_quick", _quick_pattern(self.absolute_url, self.separator))

    @property
    def quick(self) -> Callable[[str], object | None]:
        """Truthy for keys that are good beyond doubt, and for no blank line or comment; the others ask `reason`."""
        return self._quick.fullmatch

    def reason(self, key: str) -> str | None:
        """Why this text is no key; None when it is one."""
        if len(key) > MAX_KEY_BYTES // 4 and len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
            return f"is longer than {MAX_KEY_BYTES} bytes"
        if _SURROGATE.search(key):
            return "is not valid UTF-8"
        if control := _CONTROL.search(key):
            return f"contains a control character (U+{ord(control[0]):04X})"
        if not key.strip():
            return "is empty"
        if self.separator and self.separator in key:
            return f"contains the separator {self.separator!r}, which joins the keys of one request"
        return _url_reason(key) if self.absolute_url else None


def refuse(key: str, line: int, reason: str) -> Refused:
    """A bad line as it may be shown and stored: no secret, no control character, at most about 200 characters.

    Text that had to be changed gets its line number, so that two lines never look the same by it.
    """
    shown = _SECRET.sub("***@", key[:MAX_KEY_BYTES], count=1)[:SHOWN_CHARACTERS]
    shown = re.sub(f"[{_UNFIT}]", _escape, shown)[:SHOWN_CHARACTERS]
    return Refused(key if shown == key else f"{shown} (line {line})", line, reason)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _url_reason(key: str) -> str | None:
    scheme = _SCHEME.match(key)
    if not scheme:
        return "does not start with http:// or https://"
    if any(letter.isspace() for letter in key):
        return "contains a space"
    authority = _AUTHORITY.match(key, scheme.end())
    name = authority[0] if authority else ""
    if "@" in name:
        return "contains user information before the host"
    host = _HOST_PORT.fullmatch(name)
    if not host:
        return "has no valid host"
    if host[1] and int(host[1]) > 65535:
        return "has no valid port"
    return None


def _quick_pattern(absolute_url: bool, separator: str | None) -> re.Pattern[str]:
    # 2048 characters are never more than MAX_KEY_BYTES. A separator of several characters, or one that a URL's host
    # can contain, needs a lookahead; the usual "|" or "," only narrows the character class.
    narrow = separator is not None and len(separator) == 1 and re.fullmatch(r"[^\w.:/?#-]", separator) is not None
    banned = _UNFIT + (re.escape(separator) if separator and narrow else "")
    ahead = f"(?s:(?!.*{re.escape(separator)}))" if separator and not narrow else ""
    if absolute_url:
        body = rf"https?://[0-9A-Za-z._-]{{1,253}}(?::[1-5]?[0-9]{{1,4}})?(?:[/?#][^\s{banned}]{{0,1700}})?"
    else:
        body = rf"[^\s#{banned}][^{banned}]{{0,2047}}"
    return re.compile(ahead + body)
