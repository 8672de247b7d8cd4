"""Why an upstream cannot be reached, in words for people; from what resolvers, systems and both engines say."""

from __future__ import annotations

import pytest

from coordinator.errors import FetchError
from crawler.fetch.faults import UPSTREAM_FAULTS, fault_words


@pytest.mark.parametrize(
    ("kind", "detail", "words"),
    [
        ("dns", "dead.example: Name or service not known", "no such host"),
        ("dns", "dead.example: No address associated with hostname", "no such host"),
        ("dns", "dead.example: nodename nor servname provided, or not known", "no such host"),
        ("dns", "dead.example: Temporary failure in name resolution", "its name cannot be looked up"),
        ("dns", "dead.example: no response in 10 s", "its name cannot be looked up"),
        ("connect", "Connection refused (os error 111)", "connection refused"),
        ("connect", "[Errno 111] Connection refused", "connection refused"),
        ("connect", "All connection attempts failed", "no connection"),
        ("connect", "Network is unreachable (os error 101)", "network unreachable"),
        ("connect", "No route to host (os error 113)", "no route to it"),
        ("timeout", "operation timed out", "no connection in time"),
        ("timeout", "deadline has elapsed", "no connection in time"),
        ("timeout", "connecting took too long", "no connection in time"),
        ("tls", "invalid peer certificate: UnknownIssuer", "no TLS connection"),
        ("reset", "Connection reset by peer (os error 104)", "connection reset"),
        ("reset", "connection closed before message completed", "connection reset"),
        (
            "robots",
            "robots.txt of https://a.example cannot be read (status 503), so nothing may be fetched there",
            "robots.txt of https://a.example cannot be read (status 503)",
        ),
    ],
)
def test_a_fault_in_words(kind: str, detail: str, words: str) -> None:
    assert fault_words(FetchError(kind, detail)) == words


def test_every_fault_of_an_upstream_has_words() -> None:
    assert all(fault_words(FetchError(kind, "")) for kind in UPSTREAM_FAULTS)
