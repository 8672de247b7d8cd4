"""Limits as users write them, in a job file and on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from coordinator.errors import UsageError
from coordinator.settings import LimitSettings, Window
from coordinator.url import InvalidUrl, parse
from crawler.job.fields import (
    RATE,
    RATE_FORMS,
    UPSTREAM_HOST,
    UPSTREAM_PATH,
    Rate,
    Section,
    number,
    read_section,
    value,
)

_RATE = re.compile(RATE)
_PORT = re.compile(r":(?:[0-9]+|\*)$")
_SECONDS_BY_UNIT = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# One request in a year is the lowest rate: Redis' clock has no room for much longer.
LONGEST_WINDOW_SECONDS = 366 * 86400.0


# fmt: off
class LimitEntry(Section, frozen=True, kw_only=True):
    """The budget of one upstream for the whole run, all workers on all machines together.

    NAME is a host with all of its ports (`en.wikipedia.org`), one port of a host (`en.wikipedia.org:8443`), a pattern
    over hosts that share one budget (`*.wikipedia.org`), a part of a host (`api.example.org/v2/*`), or `*`: every other
    host, each for itself. However a host is written (`EN.wikipedia.org.`, an IDN or its punycode, `127.1`), it is one.
    """

    rate: Annotated[Rate, value(
        'Requests a second, or a text with its unit: s, min (or m), h or d. Several in a list hold at once. '
        '"none" is no bound. "auto" finds the rate: up to the first refusal, then just below it.',
        ["50/s", "5000/h"], write=RATE_FORMS, absent="no bound")] | None = None
    ceiling: Annotated[Rate, value(
        'What an "auto" rate never exceeds.',
        "200/s", write=RATE_FORMS, absent="no bound")] | None = None
    concurrency: Annotated[int, number(
        "Requests in flight at this upstream. 0 means no bound.",
        8, 0, 100_000, absent="no bound")] | None = None
# fmt: on


def limits_in(values: Mapping[str, Any]) -> dict[str, LimitSettings]:
    """The entries of `[limits]` by upstream. Raises UsageError, also for two entries that mean the same upstream."""
    limits: dict[str, LimitSettings] = {}
    for name, given in values.items():
        upstream = upstream_named(name, f"job: [limits.{name!r}]")
        if upstream in limits:
            raise UsageError(f"job: [limits.{name!r}] stands there twice: {upstream} is named in another way, too")
        entry = read_section(LimitEntry, f"limits.{name}", given)
        where = f"job: [limits.{name}]"
        limits[upstream] = limit_of(entry.rate, entry.ceiling, entry.concurrency or None, where)
    return limits


def upstream_named(name: str, where: str) -> str:
    """The upstream's name as URLs are written: lower case, punycode, no dot at the end, no port that means any.

    Raises UsageError, which begins with `where`, for a bad name.
    """
    error = UsageError(
        f"{where}: write a host like en.wikipedia.org, host:port, *.wikipedia.org, api.example.org/v2/*, or *"
    )
    authority, slash, path = name.partition("/")
    if not re.fullmatch(UPSTREAM_HOST, authority) or (slash and not re.fullmatch(UPSTREAM_PATH, path)):
        raise error
    host, _, port = authority.rpartition(":") if _PORT.search(authority) else (authority, "", "*")
    try:
        host = parse(f"http://{host}").origin.upstream_host
    except InvalidUrl:
        if "*" not in host:  # in a pattern, a part of a number need not be a number
            raise error from None
        host = host.lower()
    if port != "*" and not 0 < int(port) < 65536:
        raise error
    return host + ("" if port == "*" else f":{int(port)}") + (parse(f"http://host/{path}").path if slash else "")


def limit_of(rate: Any, ceiling: Any, concurrency: int | None, where: str) -> LimitSettings:
    """The limit that these values state; `ceiling` is what an "auto" rate never exceeds.

    Raises UsageError, which begins with `where`.
    """
    if rate == "auto":
        return LimitSettings(_windows(ceiling, f"{where} ceiling"), auto=True, concurrency=concurrency)
    if ceiling is not None:
        raise UsageError(f'{where} ceiling: only rate = "auto" has one; write rate = "auto", or leave it out')
    return LimitSettings(_windows(rate, f"{where} rate"), concurrency=concurrency)


def _windows(value: Any, where: str) -> tuple[Window, ...]:
    if value is None or value == "none":
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    found = [_window(part, where) for part in parts]
    if not found or len({window.seconds for window in found}) < len(found):
        raise UsageError(f'{where}: write one rate for each length of time, as ["50/s", "5000/h"]')
    return tuple(sorted(found, key=lambda window: window.seconds))


def _window(value: Any, where: str) -> Window:
    count, seconds = value, 1.0
    if isinstance(value, str):
        match = _RATE.fullmatch(value.strip())
        if match:
            count, seconds = float(match[1]), _SECONDS_BY_UNIT[match[2] or "s"]
    if isinstance(count, bool) or not isinstance(count, int | float):
        raise UsageError(f"{where}: {RATE_FORMS}")
    if not seconds / LONGEST_WINDOW_SECONDS <= count <= 1e6 * seconds:
        raise UsageError(f"{where}: {RATE_FORMS}")
    # Less than one request in a window means one request in a window that is longer.
    return Window(float(count), seconds) if count >= 1 else Window(1.0, seconds / count)
