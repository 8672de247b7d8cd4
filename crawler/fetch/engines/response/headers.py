"""The headers of a response, read on demand from what each engine's library has.

A value is UTF-8 where it can be, else latin-1 (RFC 9110, section 5.5, leaves its bytes open).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyreqwest.response import Response


class RawHeaders:
    """Headers as bytes, which httpx keeps as they were received."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def get(self, name: str) -> str | None:
        """Do what Headers.get does."""
        wanted = name.lower().encode("latin-1")
        return next((_text(value) for key, value in self._raw if key.lower() == wanted), None)

    def joined(self, name: str) -> str | None:
        """Do what Headers.joined does."""
        wanted = name.lower().encode("latin-1")
        return ", ".join(_text(value) for key, value in self._raw if key.lower() == wanted) or None

    def has(self, names: Iterable[str]) -> bool:
        """Do what Headers.has does."""
        wanted = {name.encode("latin-1") for name in names}
        return any(key.lower() in wanted for key, _ in self._raw)

    def items(self) -> list[tuple[str, str]]:
        """Do what Headers.items does."""
        return [(key.decode("latin-1").lower(), _text(value)) for key, value in self._raw]


class NativeHeaders:
    """Headers in pyreqwest's response, also after its body was read and closed.

    The library cannot read a value that is not ASCII; here it is missing. Raises ValueError at once when that is the
    Content-Type, which is asked for in any case.
    """

    __slots__ = ("_content_type", "_response")

    def __init__(self, response: Response) -> None:
        values = response.get_header_all("content-type")
        self._content_type = values[0] if len(values) == 1 else ", ".join(values) or None
        self._response = response

    def get(self, name: str) -> str | None:
        """Do what Headers.get does."""
        try:
            return self._response.get_header(name)
        except ValueError:
            return None

    def joined(self, name: str) -> str | None:
        """Do what Headers.joined does."""
        if name == "content-type":
            return self._content_type
        try:
            return ", ".join(self._response.get_header_all(name)) or None
        except ValueError:
            return None

    def has(self, names: Iterable[str]) -> bool:
        """Do what Headers.has does."""
        headers = self._response.headers
        for name in names:  # noqa: SIM110 - any() would make a generator for every response
            if name in headers:
                return True
        return False

    def items(self) -> list[tuple[str, str]]:
        """Do what Headers.items does."""
        headers = self._response.headers
        try:
            return list(headers.items())
        except ValueError:
            pass
        readable: list[tuple[str, str]] = []
        for name in dict.fromkeys(headers.keys()):
            try:
                readable.extend((name, value) for value in headers.getall(name))
            except ValueError:
                continue
        return readable


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
