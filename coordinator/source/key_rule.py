"""Pure: which lines are keys, and how a bad line is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.source.chunk import Refused
from coordinator.url import CANONICAL_ORIGIN, InvalidUrl, parse

# In UTF-8. It bounds rows, stream entries and URLs.
MAX_KEY_BYTES = 8192
# Of a bad line only the beginning is kept.
SHOWN_CHARACTERS = 200

# C0, DEL and C1 controls, and lone surrogates, which stand for bytes that are not UTF-8 (surrogateescape).
_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# What the standard removes from a URL: these at its ends, and tabs and line ends wherever they stand.
_REMOVED_AT_ENDS = "".join(map(chr, range(33)))
_REMOVED = re.compile(r"[\t\n\r]")
# Blanks around a key in a line of text are not part of it, nor is a byte order mark between files that were joined.
BLANKS = "\t \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\ufeff"
# What can be user:password@ in a URL, also in one that is relative, and in a malformed one that has no authority.
_SECRET = re.compile(r"(?s)(?<=://).*@|^\s*[/\\]\s*[/\\].*@|^(?!\w+://)[^/@:]*+:.*@")


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What a key must look like.

    With `absolute_url` it is an http or https URL as browsers read it, without user:password@ (keys become rows, which
    must not have secrets) and without control characters, except those that browsers remove. Without, it is any
    printable text, of which a template makes a URL. `separator` joins several keys in one request, so no key may
    contain it.
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
        printable = _REMOVED.sub("", key.strip(_REMOVED_AT_ENDS)) if self.absolute_url and "\0" not in key else key
        if control := _CONTROL.search(printable):
            return f"contains a control character (U+{ord(control[0]):04X})"
        if not key.strip():
            return "is empty"
        if self.separator and self.separator in key:
            return f"contains the separator {self.separator!r}, which joins the keys of one request"
        return _url_reason(key) if self.absolute_url else None


def showable(text: str) -> str:
    """The beginning of a text without a secret or a control character in it: about 200 characters."""
    shown = _SECRET.sub("***@", text[:MAX_KEY_BYTES], count=1)[:SHOWN_CHARACTERS]
    return re.sub(f"[{_UNPRINTABLE}]", _escape, shown)[:SHOWN_CHARACTERS]


def refuse(key: str, line: int, reason: str, file: str = "", *, is_row: bool = False) -> Refused:
    """A bad line in a form that can be shown and stored: no secret, no control character, about 200 characters.

    When the text must be changed for this, or is that of a row, which another row may have as its key, its place is
    added: so no two lines become the same text.
    """
    shown = showable(key)
    refused = Refused(shown, line, reason, re.sub(f"[{_UNPRINTABLE}]", _escape, file))
    return refused if shown == key and not is_row else replace(refused, key=f"{shown} ({refused.place})")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _url_reason(key: str) -> str | None:
    try:
        parse(key)
    except InvalidUrl as error:
        return str(error)
    return None


def _compile_fast_pattern(absolute_url: bool, separator: str | None) -> re.Pattern[str]:
    # 2048 characters are never more than MAX_KEY_BYTES, nor are an origin and 1700 of them. The usual separators | and
    # , are excluded by the character class. One of several characters, or one of a URL's host, needs a lookahead.
    in_class = separator is not None and len(separator) == 1 and re.fullmatch(r"[^\w.:/?#-]", separator) is not None
    banned = _UNPRINTABLE + (re.escape(separator) if separator and in_class else "")
    lookahead = f"(?s:(?!.*{re.escape(separator)}))" if separator and not in_class else ""
    if absolute_url:
        body = rf"{CANONICAL_ORIGIN}(?:[/?#][^\s{banned}]{{0,1700}})?"
    else:
        # Neither begins nor ends with a blank: a reader of lines strips these.
        body = rf"[^\s\ufeff{banned}][^{banned}]{{0,2047}}(?<![\s\ufeff])"
    return re.compile(lookahead + body)
