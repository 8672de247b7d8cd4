"""Pure: which lines are keys, and how a bad line is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.source.chunk import Refused

# In UTF-8. It bounds rows, stream entries and URLs.
MAX_KEY_BYTES = 8192
# Of a bad line only the beginning is kept.
SHOWN_CHARACTERS = 200

# C0, DEL and C1 controls, and lone surrogates, which stand for bytes that are not UTF-8 (surrogateescape).
_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
# A backslash ends the authority too: browsers and some clients read it as a slash, and would see another host.
_AUTHORITY = re.compile(r"[^/?#\\]*")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]<>^|%\"{}`]+)(?::([0-9]{1,5}))?")
# What can be user:password@ in a URL, also in a malformed one that has no authority.
_SECRET = re.compile(r"(?s)(?<=://).*@|^(?!\w+://)[^/@]*:.*@")


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What a key must look like.

    With `absolute_url` it is an http:// or https:// URL with a host, without spaces and without user:password@ (keys
    become rows, which must not have secrets). Without, it is any printable text, of which a template makes a URL.
    `separator` joins several keys in one request, so no key may contain it.
    """

    absolute_url: bool
    separator: str | None = None
    _fast_pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the pattern of `surely_key`."""
        object.__setattr__(self, "_fast_pattern", _compile_fast_pattern(self.absolute_url, self.separator))

    @property
    def surely_key(self) -> Callable[[str], object | None]:
        """A fast check: what it returns is true only for keys. It is false for unusual keys too; then call `reason`."""
        return self._fast_pattern.fullmatch

    def reason(self, key: str) -> str | None:
        """Why this text is not a key; None when it is one."""
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
    """A bad line in a form that can be shown and stored: no secret, no control character, about 200 characters.

    When the text must be changed for this, its line number is added, so that no two lines become the same text.
    """
    shown = _SECRET.sub("***@", key[:MAX_KEY_BYTES], count=1)[:SHOWN_CHARACTERS]
    shown = re.sub(f"[{_UNPRINTABLE}]", _escape, shown)[:SHOWN_CHARACTERS]
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


def _compile_fast_pattern(absolute_url: bool, separator: str | None) -> re.Pattern[str]:
    # 2048 characters are never more than MAX_KEY_BYTES. The usual separators "|" and "," are excluded by the character
    # class. One of several characters, or one that a URL's host can contain, needs a lookahead.
    in_class = separator is not None and len(separator) == 1 and re.fullmatch(r"[^\w.:/?#-]", separator) is not None
    banned = _UNPRINTABLE + (re.escape(separator) if separator and in_class else "")
    lookahead = f"(?s:(?!.*{re.escape(separator)}))" if separator and not in_class else ""
    if absolute_url:
        body = rf"https?://[0-9A-Za-z._-]{{1,253}}(?::[1-5]?[0-9]{{1,4}})?(?:[/?#][^\s{banned}]{{0,1700}})?"
    else:
        body = rf"[^\s#{banned}][^{banned}]{{0,2047}}"
    return re.compile(lookahead + body)
