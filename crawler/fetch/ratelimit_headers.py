"""Pure: how long an upstream asks to be left alone, by the headers of its answers.

Retry-After (RFC 9110) wins. Then `RateLimit` of draft-ietf-httpapi-ratelimit-headers, as structured fields (RFC 8941),
and the pairs of single fields that came before it. MediaWiki says that its database lags in an answer of status 200.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime

from crawler.model import Headers

# urllib3's bound on a Retry-After, six hours: a longer one is a mistake or a refusal in disguise.
LONGEST_PAUSE = 21_600.0
# Clocks may differ by a wrong time zone; a Date further away comes from a cache or a dead battery.
SANE_DATE = 86_400.0
# What www.mediawiki.org/wiki/Manual:Maxlag_parameter asks for at least.
SHORTEST_LAG = 5.0

REMAINING = (
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
)
# By one of these a good answer can say that it is none, or ask for a pause. Most have none, so it is asked first.
SPEAKING = ("mediawiki-api-error", "ratelimit", *(remaining for remaining, _ in REMAINING))
MEDIAWIKI_THROTTLES = frozenset({"maxlag", "ratelimited"})

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_WORD = r"[A-Za-z*][\w!#$%&'*+.^`|~:/-]*"
_BARE = rf"(?:{_STRING}|{_WORD}|-?\d{{1,12}}\.\d{{1,3}}|-?\d{{1,15}}|:[\w+/=]*:|\?[01])"
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAMETER = re.compile(rf";\ *({_KEY})(?:=({_BARE}))?", re.ASCII)
# A member of a list, or of a dictionary when it has a key.
_MEMBER = re.compile(rf"(?:({_KEY})=)?({_BARE})((?:;\ *{_KEY}(?:={_BARE})?)*)", re.ASCII)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def throttled(status: int, headers: Headers) -> bool:
    """Whether the upstream did not do what was asked because too much is asked of it; the key is not to blame.

    That is a 429, a 403 that names a limit (GitHub's way), and MediaWiki's error answers of status 200.
    """
    if status == 429:
        return True
    if status == 403:
        return headers.get("retry-after") is not None or _spent(headers)
    if status == 200:
        errors = headers.get("mediawiki-api-error")
        return errors is not None and not MEDIAWIKI_THROTTLES.isdisjoint(errors.replace(",", " ").split())
    return False


def requested_pause(status: int, headers: Headers, now: float) -> float | None:
    """Seconds, above 0 and at most six hours, that this answer asks everybody to wait; None when it asks for none.

    `now` is seconds since 1970. A good answer asks too, when it says that nothing of a limit remains. What is malformed
    asks for nothing; times are counted from the answer's own Date, so that the two clocks need not agree.
    """
    refused = status == 503 or throttled(status, headers)
    if refused and (requested := _retry_after(headers, now)) is not None:
        return _bounded(requested)
    limits = [*_ratelimit(headers), *_pairs(headers, refused, now)]
    if limits:
        return _bounded(max(limits))
    if refused and status == 200:
        lag = _number(headers.get("x-database-lag"))
        return _bounded(max(lag or 0.0, SHORTEST_LAG))
    return None


def _bounded(seconds: float) -> float | None:
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else None


def _retry_after(headers: Headers, now: float) -> float | None:
    text = headers.get("retry-after")
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = _date(text)
    return None if until is None else until - _date_of(headers, now)


def _ratelimit(headers: Headers) -> Iterator[float]:
    """Seconds until each spent policy of `RateLimit` has something again; of its draft 7 too, which was a dictionary.

    A policy that does not say when lasts as long as its window in `RateLimit-Policy`.
    """
    if headers.get("ratelimit") is None:
        return
    members = _members(headers, "ratelimit")
    resets = [(name, its.get("t")) for _, name, its in members if its.get("r") == "0"]
    whole = {key: value for key, value, _ in members}
    if whole.get("remaining") == "0":
        resets.append(("", whole.get("reset")))
    windows = {name: its.get("w") for _, name, its in _members(headers, "ratelimit-policy")} if resets else {}
    for name, reset in resets:
        seconds = _number(reset if reset is not None else windows.get(name))
        if seconds is not None:
            yield seconds


def _pairs(headers: Headers, refused: bool, now: float) -> Iterator[float]:
    """Seconds until each spent limit's reset; a refusal that does not say what remains means that nothing does."""
    for remaining, reset in REMAINING:
        left = headers.get(remaining)
        if (left is None and not refused) or (left is not None and not _is_spent(left)):
            continue
        until = _number(headers.get(reset))
        if until is None:
            continue
        if until > 1e12:  # milliseconds since 1970: no header says how it counts, and all three ways are about
            until /= 1000
        yield until - _date_of(headers, now) if until > 1e9 else until


def _spent(headers: Headers) -> bool:
    return any((left := headers.get(remaining)) is not None and _is_spent(left) for remaining, _ in REMAINING)


def _is_spent(remaining: str) -> bool:
    left = _number(remaining)
    return left is not None and left < 1


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text.strip(" \t")) else None


def _date_of(headers: Headers, now: float) -> float:
    """The answer's own Date when it is sane, else `now`; both in seconds since 1970."""
    date = _date(headers.get("date") or "")
    return date if date is not None and abs(date - now) <= SANE_DATE else now


def _date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _members(headers: Headers, name: str) -> list[tuple[str | None, str, dict[str, str]]]:
    """(key, value, parameters) of a structured list or dictionary that may stand on several lines.

    One fault anywhere voids it all, as RFC 8941 wants (4.2).
    """
    text = ", ".join(value.strip(" \t") for field, value in headers.items() if field == name)
    members: list[tuple[str | None, str, dict[str, str]]] = []
    position = 0
    while member := _MEMBER.match(text, position):
        key, value, parameters = member.groups()
        members.append((key, value, {match[1]: match[2] or "?1" for match in _PARAMETER.finditer(parameters)}))
        position = member.end()
        if position == len(text):
            return members
        comma = _COMMA.match(text, position)
        if comma is None:
            break
        position = comma.end()
    return []
