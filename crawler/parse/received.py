"""What came for one request, decoded, and what its parser says of the keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from coordinator.model import Outcome
from crawler.job.fields import MEDIAWIKI_ALIASES
from crawler.model import MAX_REASON_CHARACTERS, Again, Headers
from crawler.parse.values import exact_json
from crawler.parse.values.shown import abbreviated
from crawler.text.body import decoded_json, json_in_utf8, text_of
from crawler.text.charset import UTF8, Declares
from crawler.text.media_type import media_type

NOTHING_CARRIED: Mapping[str, Any] = MappingProxyType({})
NOT_READ = object()


class Received:
    """One request's `keys` (`key` when there is one), and the URL, status, headers and body of its response.

    Every key is stored unless the parser says something else of it. `headers.get(name)` finds a header. `source` has
    what the source carries with the only key, by name. `encoding` says how `text` or `json` has decoded the body, as
    pages.encoding does; None before. `unknown` has the names for which `key_for` found no key, `followed` what
    `follow` was given.
    """

    __slots__ = (
        *("_alias_paths", "_aliases", "_key_by_name", "_said"),
        *("body", "encoding", "followed", "headers", "keys", "root", "source", "status", "unknown", "url"),
    )

    def __init__(
        self,
        keys: Sequence[str],
        url: str,
        status: int,
        headers: Headers,
        body: bytes,
        alias_paths: Sequence[str] = MEDIAWIKI_ALIASES,
        source: Mapping[str, Any] = NOTHING_CARRIED,
    ) -> None:
        self.keys = tuple(keys)
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body
        self.source = source
        self.encoding: str | None = None
        self.unknown: list[object] = []
        self.followed: list[tuple[str, str | None]] = []
        self.root: object = NOT_READ  # what selectors have read of the body
        self._said: dict[str, tuple[Outcome, str | None] | Again] = {}
        self._alias_paths = alias_paths
        self._aliases: dict[str, str] | None = None  # {a key, or another name of it: the name that follows}
        self._key_by_name: dict[str, str] | None = None

    @property
    def key(self) -> str:
        """The only key of the request. Raises ValueError when there are several."""
        if len(self.keys) != 1:
            raise ValueError(f"this response is for {len(self.keys)} keys; use response.keys")
        return self.keys[0]

    def json(self) -> Any:
        """The body as JSON; a number that a float would change is a Decimal. Raises ValueError when it is not JSON.

        It is decoded as `text` is; without a byte order mark and a charset also as UTF-16, if it is that.
        """
        body, self.encoding, declared = self.body, UTF8, None
        if not body.isascii() or 0 in body[:4]:
            declared = media_type(self.headers.joined("content-type")).encoding
            body, self.encoding = json_in_utf8(body, declared)
        try:
            return exact_json.loads(body)
        except ValueError:
            text, self.encoding = decoded_json(self.body, declared)
            if text == body:
                raise
        return exact_json.loads(text)  # it was not the UTF-8 that it seemed to be

    def json_lines(self) -> list[bytes]:
        """The lines of a body that has JSON in each, in UTF-8; it is decoded as `json` is."""
        text, self.encoding = decoded_json(self.body, media_type(self.headers.joined("content-type")).encoding)
        return text.split(b"\n")

    def text(self, declares: Declares | None = None) -> str:
        """The body as text, decoded as browsers do it; what stands for no character becomes U+FFFD, and so does NUL.

        What decides: a byte order mark, the charset of Content-Type, what HTML or XML declares; else it is UTF-8 if it
        can be, and windows-1252 if not. `declares`: it is HTML or XML, whatever its media type is.
        """
        decoded = text_of(self.headers.joined("content-type"), self.body, declares)
        self.encoding = decoded.summary
        return decoded.text

    def key_for(self, name: str | int) -> str | None:
        """The key of this request that the upstream calls by this name, or this number; None when there is none.

        That is the key itself, or what the upstream made of it, by the lists at `[parse] alias` and by `alias`.
        """
        if isinstance(name, int):
            name = str(name)
        if name in self.keys:
            return name
        if self._key_by_name is None:
            self._key_by_name = {other: key for key in reversed(self.keys) for other in self._names(key)}
        key = self._key_by_name.get(name)
        if key is None:
            self.unknown.append(name)
        return key

    def name_of(self, key: str) -> str:
        """What the upstream calls a key in the end: the key itself, unless an alias says otherwise."""
        return ([key, *self._names(key)])[-1]

    def alias(self, key: str, name: str) -> None:
        """Say that the upstream calls a key, or a name that it gave a key, by this name."""
        self._known_aliases()[key] = name
        self._key_by_name = None

    def follow(self, key_or_url: str | int, kind: str | None = None) -> None:
        """Fetch another key too, each once: a URL, also one relative to this response's, or what a template takes.

        `kind` is one of the job's [kinds]; without it the key is of this response's kind. Raises ValueError for what is
        neither text nor a whole number.
        """
        if isinstance(key_or_url, bool) or not isinstance(key_or_url, str | int):
            raise ValueError(f"response.follow: {abbreviated(key_or_url)} is no key; give it a text or a whole number")
        self.followed.append((str(key_or_url), kind))

    def gone(self, key: str, reason: str = "the response says that it does not exist") -> None:
        """Say that the upstream does not have this key, or name of a key. Raises ValueError when it is of no key."""
        self._say(key, (Outcome.GONE, _bounded(reason)))

    def failed(self, key: str, reason: str) -> None:
        """Say that the response has nothing usable for this key, or name of a key. Raises ValueError as `gone`."""
        self._say(key, (Outcome.FAILED, _bounded(reason)))

    def unchanged(self, key: str) -> None:
        """Say that nothing is new for this key, or name of a key. Raises ValueError as `gone`."""
        self._say(key, (Outcome.UNCHANGED, None))

    def retry(self, reason: str, after: float | None = None, key: str | None = None) -> None:
        """Say that the response is worth another attempt, for all keys or for one of them. Raises ValueError as `gone`.

        It counts as a failed attempt. The next one is made after `after` seconds, or Retry-After, or the job's backoff.
        """
        if after is not None and not 0 <= after < math.inf:
            raise ValueError(f"retry after {after!r}: give it a number of seconds")
        for name in self.keys if key is None else (key,):
            self._say(name, Again(_one_line(reason), after))

    def wait(self, key: str, reason: str) -> None:
        """Say that a key, or name of a key, is not ready yet: it is requested again, which costs it no attempt."""
        self._say(key, Again(_one_line(reason), waits=True))

    def said_of(self, key: str) -> tuple[Outcome, str | None] | Again | None:
        """What the parser said of a key: (outcome, reason), that it is to be requested again, or None."""
        return self._said.get(key)

    def _say(self, name: str, said: tuple[Outcome, str | None] | Again) -> None:
        key = self.key_for(name)
        if key is None:
            raise ValueError(f"key {name!r} is not one of this request's")
        self._said[key] = said

    def _names(self, key: str) -> Iterator[str]:
        """The other names of a key, each as the one before it is called by the upstream."""
        aliases, name, seen = self._known_aliases(), key, {key}
        while (name := aliases.get(name, key)) not in seen:
            seen.add(name)
            yield name

    def _known_aliases(self) -> dict[str, str]:
        """The aliases; those of the body are read when they are needed first."""
        if self._aliases is None:
            try:
                document = self.json()
            except (ValueError, RecursionError):
                document = None
            self._aliases = {
                _from_name(entry): entry["to"]
                for path in self._alias_paths
                for entry in _list_at(document, path)
                if isinstance(entry, Mapping) and all(isinstance(entry.get(side), str) for side in ("from", "to"))
            }
        return self._aliases


def _bounded(reason: object) -> str:
    return str(reason)[:MAX_REASON_CHARACTERS]


def _one_line(reason: object) -> str:
    """The reason as a line of the history, which goes to Redis in UTF-8: without lone surrogates."""
    return " ".join(_bounded(reason).encode(errors="replace").decode().split())


def _list_at(node: Any, path: str) -> Sequence[Any]:
    """The list at a dotted path; empty when there is none."""
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, list) else ()


def _from_name(entry: Mapping[str, Any]) -> str:
    """The name that an entry is about. MediaWiki percent-encodes it where it is not in normal form C, and says so."""
    name: str = entry["from"]
    return name if entry.get("fromencoded") in (None, False) else unquote(name)
