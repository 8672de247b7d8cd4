"""Pure: attempts that brought no response: which of them say that a host cannot be reached, and how to say that."""

from __future__ import annotations

from coordinator.errors import FetchError

# Kinds of FetchError that count as a failure of the upstream, for its breaker and its rate. Such an error without
# `sent` says that no connection was made: this is so for every key of that host.
UPSTREAM_FAULTS = frozenset({"dns", "connect", "tls", "timeout", "reset"})
# Of a robots.txt that was refused with 429; such an attempt is counted apart from the others.
THROTTLED = "throttled"

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
