"""Pure: keys -> the URL that asks for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from coordinator.errors import UsageError
from coordinator.settings import RequestSettings
from coordinator.source.key_rule import KeyRule

_PLACE = re.compile(r"\{([^{}]*)\}")


class Template:
    """A request template, or none: then every key is its own absolute URL. Raises UsageError when malformed."""

    def __init__(self, settings: RequestSettings) -> None:
        self._separator = quote(settings.separator, safe="")
        self._head: str | None = None
        self._tail = ""
        self._rule = KeyRule(absolute_url=True)
        if settings.url is None:
            return
        self._head, self._tail = _split(settings.url)

    def fault(self, key: str) -> str | None:
        """Why a key cannot be asked for as it stands, None when it can; one that a template encodes always can."""
        return None if self._head is not None or self._rule.quick(key) else self._rule.reason(key)

    def url(self, keys: Sequence[str]) -> str:
        """The URL of one request for these keys; each is percent-encoded, and they are joined by the separator."""
        if self._head is None:
            return keys[0]
        if len(keys) == 1:
            return f"{self._head}{quote(keys[0], safe='')}{self._tail}"
        return self._head + self._separator.join(quote(key, safe="") for key in keys) + self._tail


def _split(url: str) -> tuple[str, str]:
    places = _PLACE.findall(url)
    wrong = [place for place in places if place not in ("key", "keys")]
    if wrong:
        raise UsageError(f"[request] url: unknown placeholder {{{wrong[0]}}}; use {{key}} or {{keys}}")
    if len(places) != 1:
        raise UsageError(f"[request] url: {len(places)} placeholders; put {{key}} or {{keys}} in it once")
    head, _, tail = url.partition(f"{{{places[0]}}}")
    if "{" in head + tail or "}" in head + tail:
        raise UsageError("[request] url: a single { or }; write %7B and %7D for braces of the URL itself")
    try:
        parts = urlsplit(head)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError as error:
        raise UsageError(f"[request] url: {error}; write it like https://host/path?id={{key}}") from None
    if not complete:
        raise UsageError(f"[request] url: {url!r} is no absolute http or https URL")
    if "@" in parts.netloc:
        raise UsageError("[request] url: user:password@ would be stored with every page; write an Authorization header")
    if not (parts.path or parts.query or parts.fragment):
        raise UsageError("[request] url: the host may not depend on the key; make the source yield URLs instead")
    if "#" in head:
        raise UsageError("[request] url: what follows # is never sent, so the key cannot stand there")
    if any(char == " " or not char.isprintable() for char in url):
        raise UsageError("[request] url: it has a space or a control character; write %20 for a space")
    return head, tail
