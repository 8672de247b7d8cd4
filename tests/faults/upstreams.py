"""Upstreams that do what none should: say nothing for a while, answer with what Postgres cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ops.connection import Reply
from ops.upstream import Upstream

SILENCE = 60.0


class Disturbed(Upstream):
    """The small upstream, which a test can silence; GET /body/NAME answers with `bodies[NAME]`, called JSON."""

    def __init__(self, bodies: Mapping[str, bytes] | None = None) -> None:
        super().__init__(size=300)
        self._bodies = bodies or {}
        self._held = False

    def hold(self) -> None:
        """Answer nothing that is asked from now on."""
        self._held = True

    def release(self) -> None:
        """Answer again; what was asked meanwhile stays unanswered."""
        self._held = False

    def reply(self, method: str, target: bytes, condition: str) -> Reply:
        """Answer one request."""
        reply = super().reply(method, target, condition)
        _, _, name = target.decode("latin-1").partition("/body/")
        if name:
            reply = Reply(200, self._bodies[name])
        return replace(reply, delay=SILENCE) if self._held else reply
