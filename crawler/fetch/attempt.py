"""One attempt of a request: the lane that makes it, where the request goes then, and what was sent and received."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.errors import FetchError
from coordinator.model import Outcome
from crawler.fetch.ratelimit_headers import is_throttled
from crawler.fetch.retry_budget import MAX_IN_PLACE_SECONDS
from crawler.model import HttpResponse, Request
from crawler.telemetry.timings import Timings

# To a GET with a condition some servers respond so: bad request, precondition failed, header fields too large; and
# forbidden, where a firewall takes an ETag for an attack. Others do not look at a condition then (RFC 9110, 13.2.1).
_ABOUT_CONDITIONS = frozenset({400, 403, 412, 431})


class FetchResult(NamedTuple):
    """How a request ended. `response` is there when a response decided it; `fetched_at` is seconds since 1970."""

    outcome: Outcome
    reason: str | None
    attempts: int
    fetched_at: float
    response: HttpResponse | None


@dataclass(frozen=True, slots=True)
class RetryInPlace:
    """The request goes back into its upstream's queue after `delay` seconds: for a retry, or for a redirect's URL."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Defer:
    """The request's keys go to the deferred set and are due after `delay` seconds."""

    delay: float


@dataclass(slots=True)
class Lane:
    """One of the worker's places for a request in flight.

    `must_finish`: the upstream may be working on the request, or the parser on its response. A drain waits for it.
    `fault`: why the upstream did not respond to the last attempt. `lent`: another lane works in the place of this one.
    `began_at`: when the last attempt began, on the fetcher's clock. `upstream`: the one that is asked now, None between
    attempts. `slow`: the attempt lasts long. `release`: gives back the memory of the response's body.
    """

    must_finish: bool = False
    fault: FetchError | None = None
    lent: bool = False
    began_at: float = 0.0
    upstream: str | None = None
    slow: bool = False
    release: Callable[[], None] | None = None


@dataclass(slots=True)
class Meter:
    """Requests sent and body bytes received since the last `read`, and how long the stages of the worker take."""

    requests: int = 0
    received: int = 0
    timings: Timings = field(default_factory=Timings)

    def add_response(self, received: int, seconds: float) -> None:
        """Count a response: the bytes of its body, and how long the attempt took."""
        self.received += received
        self.timings.fetch.add(seconds)

    def read(self) -> tuple[int, int, Mapping[str, int]]:
        """Return requests, body bytes and what the times have grown by since the last call; start again from zero."""
        reading = (self.requests, self.received, self.timings.take())
        self.requests = self.received = 0
        return reading


def unsent_after(delay: float) -> RetryInPlace | Defer:
    """Where a request waits that was not sent, so that it costs no retry budget."""
    return RetryInPlace(delay) if delay <= MAX_IN_PLACE_SECONDS else Defer(delay)


def becomes_whole(request: Request, response: HttpResponse) -> bool:
    """Whether the response may be to the conditions, and not about the key: then the request has none any more."""
    if response.status not in _ABOUT_CONDITIONS or not request.conditions:
        return False
    request.is_whole = not is_throttled(response.status, response.headers, response.body)
    return request.is_whole
