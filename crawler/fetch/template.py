"""Pure: the target of a request for one key or several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from coordinator.source.key_rule import KeyRule
from coordinator.url import InvalidUrl, Origin, Target, parse
from crawler.job.models import RequestSettings
from crawler.job.request_checks import split_template

# So many characters are never more bytes than a key may have.
QUICK_CHARACTERS = 2048
# Stands in the place of the key while the template is parsed.
_MARK = "0key0"
# Before a key, this could make a dot of it: the standard reads %2e as one.
_HALF_ENCODED = re.compile("%2?$")


class Template:
    """The job's request template; without one every key is a URL itself. Raises UsageError when it is malformed.

    `parsed` is the origin of all keys, and what stands before and after the key in the request target; None when these
    depend on the key.
    """

    def __init__(self, settings: RequestSettings) -> None:
        self._separator = quote(settings.separator, safe="")
        self._rule = KeyRule(absolute_url=True)
        self._ends = None if settings.url is None else split_template(settings.url)
        self.parsed = None if self._ends is None else _parse_once(*self._ends)
        self._around = 0 if self._ends is None else len(parse(_MARK.join(self._ends)).path) - len(_MARK)

    @property
    def sample(self) -> Target | None:
        """The target for some key; None without a template, because then keys can have any host."""
        return None if self._ends is None else self.target(["key"])

    def target(self, keys: Sequence[str]) -> Target:
        """Return the target of one request for these keys: percent-encoded, and joined by the encoded separator.

        Raises InvalidUrl when there is no template and the key is no URL, and for a key that is a segment of dots.
        """
        if self._ends is None:
            key = keys[0]
            # The source has checked each key, but a block may come from another program.
            if (len(key) > QUICK_CHARACTERS or not key.isprintable()) and (reason := self._rule.reason(key)):
                raise InvalidUrl(reason)
            return parse(key)
        key = _quoted(keys[0]) if len(keys) == 1 else self._separator.join(map(_quoted, keys))
        if self.parsed is None or key[:1] in ("", "."):
            head, tail = self._ends
            target = parse(f"{head}{key}{tail}")
            if len(target.path) < self._around + len(key):
                raise InvalidUrl("would be . or .. in the path of its URL, and so stand for another page")
            return target
        origin, path, tail = self.parsed
        return Target(origin, f"{path}{key}{tail}")


def _quoted(key: str) -> str:
    return key if key.isascii() and key.isalnum() else quote(key, safe="")  # most need nothing


def _parse_once(head: str, tail: str) -> tuple[Origin, str, str] | None:
    """`Template.parsed` of what stands before and after the key in the template.

    What the standard does to a path or a query, it does to each character alone, and to nothing that `quote` leaves.
    Only a whole segment of dots means something else, and such a key is parsed.
    """
    if _HALF_ENCODED.search(head):
        return None
    origin, path = parse(f"{head}{_MARK}{tail}")
    before, mark, after = path.partition(_MARK)
    return (origin, before, after) if mark and _MARK not in head + tail else None
