"""The sample upstream, which a test can silence, let throttle, or let respond with other bodies and redirects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from time import monotonic

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream

HELD_RESPONSE_SECONDS = 60.0
# For this time after a 429, requests still arrive that were sent before every worker knew of the pause. It allows for a
# busy machine.
ON_THEIR_WAY_SECONDS = 0.6


class Disturbed(Upstream):
    """The sample upstream under a test's control; `throttled` has the monotonic times of its 429s.

    GET /…/NAME responds with `bodies[NAME]` as JSON, or with a redirect to `redirects[NAME]`, if there is one.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port, size=300)
        self.bodies: Mapping[str, bytes] = {}
        self.redirects: Mapping[str, str] = {}
        self._held = False
        self._refusal: str | None = None
        self.throttled: list[float] = []

    def throttle(self, headers: str) -> None:
        """Respond with 429 and these header lines to the next request only."""
        self._refusal = headers

    @property
    def times(self) -> list[float]:
        """The monotonic time of each request."""
        return [at for at, _ in self.ledger.log()]

    def silence_after(self, began: float) -> float:
        """Seconds from `began` to the next request that was not yet on its way then."""
        return next(at for at in self.times if at > began + ON_THEIR_WAY_SECONDS) - began

    def hold(self) -> None:
        """Give no response to any request from now on."""
        self._held = True

    def release(self) -> None:
        """Respond again; requests that came meanwhile get no response."""
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
        return replace(response, delay=HELD_RESPONSE_SECONDS) if self._held else response
