"""Pure: whether an upstream gets too many requests, and how long it asks to wait, by what its responses say.

Retry-After (RFC 9110) wins. Then come `RateLimit` of draft-ietf-httpapi-ratelimit-headers, as structured fields
(RFC 8941), and the older pairs of single fields. MediaWiki reports the lag of its database with status 200.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from crawler.model import Headers

# Six hours, which is urllib3's bound on a Retry-After too. A longer one is a mistake, or means that we are not wanted.
MAX_PAUSE_SECONDS = 21_600.0
# Clocks may differ by a wrong time zone. A Date further away comes from a cache, or from a clock that was never set.
MAX_CLOCK_DIFFERENCE_SECONDS = 86_400.0
# A number is a time since 1970 when that lies at most this far from now: a year.
MAX_EPOCH_DISTANCE_SECONDS = 31_622_400.0
# The longest reset that is read in seconds when nothing says how long the limit's window is.
MAX_RESET_SECONDS = 3600.0
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
# 420 was Twitter's word for 429, 430 is Shopify's.
THROTTLE_STATUSES = frozenset({420, 429, 430})
# Below 500, Retry-After counts with these and with a throttled response; from 500 on it always counts.
RETRY_AFTER_STATUSES = frozenset({408, 413, 421, 425, 498})
# Some upstreams say in milliseconds what Retry-After says in seconds.
RETRY_AFTER_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")
# Statuses with which upstreams refuse for another reason, or for too many requests; then only the body says which.
MAY_MEAN_THROTTLED = frozenset({400, 403})
MAX_LOOKED_AT_BYTES = 4096
# What such a body says of a limit, without case and with nothing but its letters: `rate_limit_exceeded`,
# `rateLimitExceeded` and "Rate limit exceeded" are one. GitHub, Google, Facebook, Stack Exchange, Mashery, Cloudflare.
_THROTTLE_WORDS = re.compile(
    rb"(?:rate|request|requests|call|calls|daily|user|concurrent|usage|quota)limit(?:has|was|is|been)*"
    rb"(?:exceeded|reached)(?!unreg)"
    rb"|(?:exceeded|reached|hit(?:a|the|your))[a-z]{0,40}ratelimit|secondaryratelimit|ratelimited|abusedetection"
    rb"|quotaexceeded|exceeded[a-z]{0,30}quota|toomanyrequests|throttl(?:ed|ing|eviolation)|developerover(?:qps|rate)"
)

_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
# Like 1m30s or 1.5h, and those of ISO 8601 like PT1M.
_DURATION_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(
    "(?:pt?)?" + "".join(rf"(?:(\d{{1,9}}(?:\.\d+)?){unit}t?)?" for unit in _DURATION_UNITS), re.ASCII | re.IGNORECASE
)
_LIMIT_NAME = re.compile("rate-?limit")
_WINDOW = re.compile(r";\s*w=(\d{1,9})\b", re.ASCII)
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_WORD = r"[A-Za-z*][\w!#$%&'*+.^`|~:/-]*"
_BARE = rf"(?:{_STRING}|{_WORD}|-?\d{{1,12}}\.\d{{1,3}}|-?\d{{1,15}}|:[\w+/=]*:|\?[01])"
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAMETER = re.compile(rf";\ *({_KEY})(?:=({_BARE}))?", re.ASCII)
# A member of a list, or of a dictionary when it has a key.
_MEMBER = re.compile(rf"(?:({_KEY})=)?({_BARE})((?:;\ *{_KEY}(?:={_BARE})?)*)", re.ASCII)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def is_throttled(status: int, headers: Headers, body: bytes = b"") -> bool:
    """Whether the upstream refused the request because it gets too many: the key is not at fault.

    That is a 429 or its like, a 403 or 400 that speaks of a limit in its headers or at the beginning of its body (as
    GitHub and Google send it), and MediaWiki's errors with status 200.
    """
    if status in THROTTLE_STATUSES:
        return True
    if status == 200:
        errors = headers.get("mediawiki-api-error")
        return errors is not None and not MEDIAWIKI_THROTTLE_ERRORS.isdisjoint(errors.replace(",", " ").split())
    if status == 403 and (headers.get("retry-after") is not None or _has_spent_limit(headers)):
        return True
    return status in MAY_MEAN_THROTTLED and _speaks_of_limit(body)


def requested_pause(status: int, headers: Headers, now: float, *, throttled: bool | None = None) -> float | None:
    """Return the seconds that this response asks all workers to wait, above 0 and at most six hours, or None.

    `now` is seconds since 1970; `throttled` is what `is_throttled` says of the response, by default of its headers. A
    successful response asks too, when it says that nothing of a limit remains. Malformed headers are ignored. Times are
    counted from the response's own Date, so that the two clocks need not agree.
    """
    refused = status == 503 or (is_throttled(status, headers) if throttled is None else throttled)
    if (refused or status >= 500 or status in RETRY_AFTER_STATUSES) and (
        requested := retry_after(headers, now)
    ) is not None:
        return _bounded(requested)
    limits = [*_resets_of_policies(headers), *_resets_of_pairs(headers, refused, now)]
    if limits:
        return _bounded(max(limits))
    if refused and status == 200:
        lag = _number(headers.get("x-database-lag"))
        return _bounded(max(lag or 0.0, MIN_LAG_SECONDS))
    return None


def retry_after(headers: Headers, now: float) -> float | None:
    """Return the seconds that Retry-After names, None without one that can be read; they may be negative."""
    for name in RETRY_AFTER_MILLISECONDS:
        if (milliseconds := _number(headers.get(name))) is not None:
            return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _seconds_until(text, headers, now)
    # Fractions are not of the standard, but sent; the whole second that follows is never too early.
    return seconds if seconds is None or math.isinf(seconds) else float(math.ceil(seconds))


def _bounded(seconds: float) -> float | None:
    return min(seconds, MAX_PAUSE_SECONDS) if seconds > 0 else None


def _speaks_of_limit(body: bytes) -> bool:
    letters = re.sub(rb"[^a-z]+", b"", body[:MAX_LOOKED_AT_BYTES].lower())
    return _THROTTLE_WORDS.search(letters) is not None


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
    for remaining, reset in _pairs(headers, refused):
        left = headers.get(remaining)
        if not refused if left is None else not _is_spent(left):
            continue
        longest = 0.0 if reset.endswith("-ms") else _longest_reset(headers)
        if (seconds := _seconds_until(headers.get(reset), headers, now, longest)) is not None:
            yield seconds


def _pairs(headers: Headers, refused: bool) -> Iterable[tuple[str, str]]:
    """The fields "remaining" and "reset" of each limit.

    A refusal is read whole, for names like x-ratelimit-reset-requests; most responses only for the usual names.
    """
    if not refused:
        return REMAINING_AND_RESET
    return [(name.replace("reset", "remaining"), name) for name, _ in headers.items() if _speaks_of(name, "reset")]


def _longest_reset(headers: Headers) -> float:
    """The seconds beyond which a reset cannot be meant in seconds.

    A limit is reset within its window, if it names one. Without, a reset beyond an hour is more likely one in
    milliseconds: if it is not, a response tells again, and the other mistake would cost hours.
    """
    policies = [headers.get(name) or "" for name in ("ratelimit-policy", "ratelimit-limit", "x-ratelimit-limit")]
    windows = [float(window) for policy in policies for window in _WINDOW.findall(policy)]
    return 2 * max(windows) if windows else MAX_RESET_SECONDS


def _has_spent_limit(headers: Headers) -> bool:
    spent = any(_is_spent(value) for name, value in headers.items() if _speaks_of(name, "remaining"))
    return spent or next(_resets_of_policies(headers), None) is not None


def _speaks_of(name: str, word: str) -> bool:
    """Whether the word stands behind a limit in a header's name, in time that grows only as the name does."""
    limit = _LIMIT_NAME.search(name)
    return limit is not None and word in name[limit.end() :]


def _is_spent(remaining: str) -> bool:
    left = _number(remaining)
    return left is not None and left < 1


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text := text.strip(" \t")) else None


def _seconds_until(text: str | None, headers: Headers, now: float, longest: float = math.inf) -> float | None:
    """Return the seconds from the response's Date until a moment, in whichever form its upstream gives it.

    A number is a time since 1970, in seconds or a thousandth, millionth or billionth of them, when that is near `now`;
    else it is seconds from now, or milliseconds when it is larger than `longest`. Other forms are durations like 1m30s,
    the three forms of an HTTP-date, and ISO 8601.
    """
    if text is None:
        return None
    text = text.strip(" \t")
    number = _number(text.partition(",")[0])  # a proxy may have joined two lines
    if number is not None:
        for unit in (1.0, 1e3, 1e6, 1e9):
            if abs(number / unit - now) <= MAX_EPOCH_DISTANCE_SECONDS:
                return number / unit - _date_of_response(headers, now)
        return number if number <= longest else number / 1000
    if text and (duration := _DURATION.fullmatch(text)):
        parts = zip(duration.groups("0"), _DURATION_UNITS.values(), strict=True)
        return sum(float(count) * unit for count, unit in parts)
    until = http_date(text)
    return None if until is None else until - _date_of_response(headers, now)


def _date_of_response(headers: Headers, now: float) -> float:
    """Return the response's own Date if it is near `now`, else `now`; both are seconds since 1970."""
    date = http_date(headers.get("date") or "")
    return date if date is not None and abs(date - now) <= MAX_CLOCK_DIFFERENCE_SECONDS else now


def http_date(text: str) -> float | None:
    """The moment in one of the three forms of an HTTP-date, or in ISO 8601: seconds since 1970; None in other texts."""
    try:
        date = datetime.fromisoformat(text) if text[:4].isdigit() else parsedate_to_datetime(text)
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
