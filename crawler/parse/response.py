"""The response as the user's parser sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import orjson

from coordinator.model import Outcome
from crawler.model import MAX_REASON_CHARACTERS, Headers
from crawler.parse.body import decoded

_LONG_NUMBER = re.compile(rb"[0-9]{20}")


class Response:
    """What a parser sees of one request: its `keys` (`key` when there is one), and the URL, status, headers and body.

    Every key is stored unless the parser says `gone(key)` or `failed(key, reason)`. `headers.get(name)` finds a header.
    """

    __slots__ = ("_outcomes", "body", "headers", "keys", "status", "url")

    def __init__(self, keys: Sequence[str], url: str, status: int, headers: Headers, body: bytes) -> None:
        self.keys = tuple(keys)
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body
        self._outcomes: dict[str, tuple[Outcome, str]] = {}

    @property
    def key(self) -> str:
        """The only key of the request. Raises ValueError when there are several."""
        if len(self.keys) != 1:
            raise ValueError(f"this response is for {len(self.keys)} keys; use response.keys")
        return self.keys[0]

    def json(self) -> Any:
        """The body as JSON; whole numbers of any size are exact. Raises ValueError when it is not JSON."""
        # orjson reads a whole number from 2^64 on as a float, and an id would lose its last digits.
        if _LONG_NUMBER.search(self.body):
            return json.loads(self.body)
        return orjson.loads(self.body)

    def text(self) -> str:
        """The body as text, by the charset that Content-Type names, else UTF-8. Raises ValueError if it is not text."""
        return decoded(self.headers.get("content-type"), self.body)

    def gone(self, key: str, reason: str = "the response says that it does not exist") -> None:
        """Say that the upstream does not have this key. Raises ValueError for a key of another request."""
        self._set_outcome(key, Outcome.GONE, reason)

    def failed(self, key: str, reason: str) -> None:
        """Say that the response has nothing usable for this key. Raises ValueError for a key of another request."""
        self._set_outcome(key, Outcome.FAILED, reason)

    def outcome_of(self, key: str) -> tuple[Outcome, str] | None:
        """What the parser said of a key: (outcome, reason), or None."""
        return self._outcomes.get(key)

    def _set_outcome(self, key: str, outcome: Outcome, reason: str) -> None:
        if key not in self.keys:
            raise ValueError(f"key {key!r} is not one of this request's")
        self._outcomes[key] = (outcome, str(reason)[:MAX_REASON_CHARACTERS])
