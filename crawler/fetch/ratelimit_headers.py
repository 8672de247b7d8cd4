"""Pure: how long an upstream asks to wait, by the headers of its responses.

Retry-After (RFC 9110) wins. Then come `RateLimit` of draft-ietf-httpapi-ratelimit-headers, as structured fields
(RFC 8941), and the older pairs of single fields. MediaWiki reports the lag of its database with status 200.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime

from crawler.model import Headers

# Six hours, which is urllib3's bound on a Retry-After too. A longer one is a mistake, or means that we are not wanted.
MAX_PAUSE_SECONDS = 21_600.0
# Clocks may differ by a wrong time zone. A Date further away comes from a cache, or from a clock that was never set.
MAX_CLOCK_DIFFERENCE_SECONDS = 86_400.0
# The shortest wait that www.mediawiki.org/wiki/Manual:Maxlag_parameter asks for.
MIN_LAG_SECONDS = 5.0

REMAINING_AND_RESET = (
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
)
# Only with one of these can a response of status 200 be an error, or ask for a pause. Most responses have none of them,
# so this is checked first.
LIMIT_HEADERS = ("mediawiki-api-error", "ratelimit", *(remaining for remaining, _ in REMAINING_AND_RESET))
MEDIAWIKI_THROTTLE_ERRORS = frozenset({"maxlag", "ratelimited"})

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_WORD = r"[A-Za-z*][\w!#$%&'*+.^`|~:/-]*"
_BARE = rf"(?:{_STRING}|{_WORD}|-?\d{{1,12}}\.\d{{1,3}}|-?\d{{1,15}}|:[\w+/=]*:|\?[01])"
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAMETER = re.compile(rf";\ *({_KEY})(?:=({_BARE}))?", re.ASCII)
# A member of a list, or of a dictionary when it has a key.
_MEMBER = re.compile(rf"(?:({_KEY})=)?({_BARE})((?:;\ *{_KEY}(?:={_BARE})?)*)", re.ASCII)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def is_throttled(status: int, headers: Headers) -> bool:
    """Whether the upstream refused the request because it gets too many: the key is not at fault.

    That is a 429, a 403 that names a limit (as GitHub sends it), and MediaWiki's errors with status 200.
    """
    if status == 429:
        return True
    if status == 403:
        return headers.get("retry-after") is not None or _has_spent_limit(headers)
    if status == 200:
        errors = headers.get("mediawiki-api-error")
        return errors is not None and not MEDIAWIKI_THROTTLE_ERRORS.isdisjoint(errors.replace(",", " ").split())
    return False


def requested_pause(status: int, headers: Headers, now: float) -> float | None:
    """Return the seconds that this response asks all workers to wait, above 0 and at most six hours, or None.

    `now` is seconds since 1970. A successful response asks too, when it says that nothing of a limit remains. Malformed
    headers are ignored. Times are counted from the response's own Date, so that the two clocks need not agree.
    """
    refused = status == 503 or is_throttled(status, headers)
    if refused and (requested := _retry_after(headers, now)) is not None:
        return _bounded(requested)
    limits = [*_resets_of_policies(headers), *_resets_of_pairs(headers, refused, now)]
    if limits:
        return _bounded(max(limits))
    if refused and status == 200:
        lag = _number(headers.get("x-database-lag"))
        return _bounded(max(lag or 0.0, MIN_LAG_SECONDS))
    return None


def _bounded(seconds: float) -> float | None:
    return min(seconds, MAX_PAUSE_SECONDS) if seconds > 0 else None


def _retry_after(headers: Headers, now: float) -> float | None:
    text = headers.get("retry-after")
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = _parse_date(text)
    return None if until is None else until - _date_of_response(headers, now)


def _resets_of_policies(headers: Headers) -> Iterator[float]:
    """Yield the seconds until the reset of each spent policy of `RateLimit`, also in the dictionary form of draft 7.

    A policy without a reset lasts as long as its window in `RateLimit-Policy`.
    """
    if headers.get("ratelimit") is None:
        return
    members = _parse_members(headers, "ratelimit")
    resets = [(name, parameters.get("t")) for _, name, parameters in members if parameters.get("r") == "0"]
    dictionary = {key: value for key, value, _ in members}
    if dictionary.get("remaining") == "0":
        resets.append(("", dictionary.get("reset")))
    policies = _parse_members(headers, "ratelimit-policy") if resets else []
    windows = {name: parameters.get("w") for _, name, parameters in policies}
    for name, reset in resets:
        seconds = _number(reset if reset is not None else windows.get(name))
        if seconds is not None:
            yield seconds


def _resets_of_pairs(headers: Headers, refused: bool, now: float) -> Iterator[float]:
    """Yield the seconds until the reset of each spent limit; in a refusal, a limit without "remaining" is spent too."""
    for remaining, reset in REMAINING_AND_RESET:
        left = headers.get(remaining)
        if (left is None and not refused) or (left is not None and not _is_spent(left)):
            continue
        until = _number(headers.get(reset))
        if until is None:
            continue
        # Upstreams send seconds from now, seconds since 1970 or milliseconds since 1970, and do not say which.
        if until > 1e12:
            until /= 1000
        yield until - _date_of_response(headers, now) if until > 1e9 else until


def _has_spent_limit(headers: Headers) -> bool:
    return any((left := headers.get(remaining)) is not None and _is_spent(left) for remaining, _ in REMAINING_AND_RESET)


def _is_spent(remaining: str) -> bool:
    left = _number(remaining)
    return left is not None and left < 1


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text.strip(" \t")) else None


def _date_of_response(headers: Headers, now: float) -> float:
    """Return the response's own Date if it is near `now`, else `now`; both are seconds since 1970."""
    date = _parse_date(headers.get("date") or "")
    return date if date is not None and abs(date - now) <= MAX_CLOCK_DIFFERENCE_SECONDS else now


def _parse_date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _parse_members(headers: Headers, name: str) -> list[tuple[str | None, str, dict[str, str]]]:
    """Return (key, value, parameters) of each member of a structured list or dictionary, which may have several lines.

    One fault anywhere makes the whole field count as absent (RFC 8941, section 4.2).
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
