"""The limits of upstreams, as the job file states them."""

from __future__ import annotations

from dataclasses import dataclass

ANY_UPSTREAM = "*"


@dataclass(frozen=True, slots=True)
class Window:
    """At most `count` requests in any `seconds`."""

    count: float
    seconds: float

    def __str__(self) -> str:
        unit = _UNITS.get(self.seconds) or f"{self.seconds:g} s"
        return f"{self.count:,.10g}/{unit}"


_UNITS = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "d"}


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits.UPSTREAM]`: the budget of a whole run at one upstream.

    All `windows` hold at once, shortest first; without any the rate has no bound. With `auto` the rate is found by
    experiment, and the windows are what it must never exceed. `concurrency` is the most requests in flight; None means
    no bound.
    """

    windows: tuple[Window, ...] = ()
    auto: bool = False
    concurrency: int | None = None

    @property
    def needs_slots(self) -> bool:
        """Whether each request needs a slot."""
        return self.auto or bool(self.windows)

    @property
    def rate_text(self) -> str:
        """The rate in words for people."""
        bounds = " and ".join(str(window) for window in self.windows)
        if self.auto:
            return f"auto, at most {bounds}" if bounds else "auto"
        return bounds or "none"

    @property
    def rate(self) -> float | None:
        """The lowest rate of the windows, in requests a second; None without any."""
        return min((window.count / window.seconds for window in self.windows), default=None)


# The limit of a host for which the job states none.
POLITE = LimitSettings((Window(10.0, 1.0),), concurrency=8)
