"""Upstreams that do what none should: say nothing for a while, throttle, respond with what Postgres cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from time import monotonic

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream

SILENCE = 60.0
# Seconds in which requests come that were under way when the upstream asked for silence: within the fleet's poll, and
# what a busy machine adds.
UNDER_WAY = 0.6


class Disturbed(Upstream):
    """The small upstream, which a test can silence or let throttle; `throttled` are the monotonic times of its 429s.

    GET /…/NAME responds with `bodies[NAME]`, called JSON, or with a redirect to `redirects[NAME]`, where there is one.
    """

    def __init__(self) -> None:
        super().__init__(size=300)
        self.bodies: Mapping[str, bytes] = {}
        self.redirects: Mapping[str, str] = {}
        self._held = False
        self._refusal: str | None = None
        self.throttled: list[float] = []

    def throttle(self, headers: str) -> None:
        """Respond to the next request, and no other, with 429 and these header lines."""
        self._refusal = headers

    @property
    def times(self) -> list[float]:
        """When each request came, in monotonic seconds."""
        return [at for at, _ in self.ledger.log()]

    def silence_after(self, began: float) -> float:
        """Seconds from then until somebody asked again, but for what was under way."""
        return next(at for at in self.times if at > began + UNDER_WAY) - began

    def hold(self) -> None:
        """Respond to nothing that is asked from now on."""
        self._held = True

    def release(self) -> None:
        """Respond again; what was asked meanwhile gets no response."""
        self._held = False

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        """Respond to one request."""
        response = super().respond(method, target, condition)
        if self._refusal is not None:
            response, self._refusal = CannedResponse(429, headers=self._refusal), None
            self.throttled.append(monotonic())
            return response
        name = target.decode("latin-1").rpartition("/")[2]
        if name in self.bodies:
            response = CannedResponse(200, self.bodies[name])
        elif name in self.redirects:
            response = CannedResponse(302, headers=f"Location: {self.redirects[name]}\r\n")
        return replace(response, delay=SILENCE) if self._held else response
