"""Pure: the URL of a request for one key or several."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from coordinator.source.key_rule import KeyRule
from crawler.job.models import RequestSettings
from crawler.job.request_checks import split_template


class Template:
    """The job's request template; without one every key is a URL itself. Raises UsageError when it is malformed."""

    def __init__(self, settings: RequestSettings) -> None:
        self._separator = quote(settings.separator, safe="")
        self._head: str | None = None
        self._tail = ""
        self._rule = KeyRule(absolute_url=True)
        if settings.url is None:
            return
        self._head, self._tail = split_template(settings.url)

    def fault(self, key: str) -> str | None:
        """Return why no request can be made for a key, or None. With a template every key can be requested."""
        return None if self._head is not None or self._rule.surely_key(key) else self._rule.reason(key)

    def url(self, keys: Sequence[str]) -> str:
        """Return the URL of one request for these keys: percent-encoded, and joined by the encoded separator."""
        if self._head is None:
            return keys[0]
        if len(keys) == 1:
            return f"{self._head}{quote(keys[0], safe='')}{self._tail}"
        return self._head + self._separator.join(quote(key, safe="") for key in keys) + self._tail
