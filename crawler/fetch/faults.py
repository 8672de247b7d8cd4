"""Pure: attempts that brought no response: which of them say that a host is dead, how to say that, and which are."""

from __future__ import annotations

from coordinator.errors import FetchError

# Kinds of FetchError that count as a failure of the upstream, for its breaker and its rate. Such an error without
# `sent` says that no connection was made: this is so for every key of that host.
UPSTREAM_FAULTS = frozenset({"dns", "connect", "tls", "timeout", "reset"})
# Of a robots.txt that was refused with 429; such an attempt is counted apart from the others.
THROTTLED = "throttled"
MAX_DEAD_ORIGINS = 10_000

# Parts of what resolvers, operating systems and HTTP libraries say, each with the words for people.
_WORDS = (
    ("refused", "connection refused"),
    ("not known", "no such host"),
    ("no address", "no such host"),
    ("unreachable", "network unreachable"),
    ("no route", "no route to it"),
    ("reset by peer", "connection reset"),
)
_WORDS_OF_KIND = {
    "dns": "its name cannot be looked up",
    "connect": "no connection",
    "tls": "no TLS connection",
    "timeout": "no connection in time",
    "reset": "connection reset",
}


def fault_words(fault: FetchError) -> str:
    """Say for people why an upstream cannot be reached: "connection refused", "no such host"."""
    detail = fault.detail.lower()
    found = next((words for part, words in _WORDS if part in detail), None)
    if fault.kind not in UPSTREAM_FAULTS:
        return fault.detail.partition(", so ")[0]
    return found or _WORDS_OF_KIND[fault.kind]


class DeadOrigins:
    """Hosts to which no connection could be made: origin -> its fault, since when, until when."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[FetchError, float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def keep(self, origin: str, fault: FetchError, since: float, until: float) -> None:
        """Keep a fault; one that is kept already is not prolonged."""
        if self._found.get(origin, (None,))[0] is fault:
            return
        if len(self._found) >= MAX_DEAD_ORIGINS:
            self._found.clear()
        self._found[origin] = fault, since, until

    def find(self, origin: str, now: float) -> tuple[FetchError, float, float] | None:
        """The fault of an origin, unless it may be asked again."""
        found = self._found.get(origin)
        if found is not None and found[2] <= now:
            del self._found[origin]
            return None
        return found
