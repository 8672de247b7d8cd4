"""What a failed request of pyreqwest means; its classes are not reliable, so the messages of its causes are read."""

from __future__ import annotations

from collections.abc import Sequence

from pyreqwest.exceptions import RequestError

from coordinator.errors import FetchError

# What hyper, rustls and tokio say; pinned by tests against the real library.
CONNECTING = "client error (Connect)"
SENDING = "client error (SendRequest)"
TIMED_OUT = frozenset({"operation timed out", "deadline has elapsed"})
CLOSED = "Client was closed"
ENDED_EARLY = frozenset(
    {
        CLOSED,
        "connection closed before message completed",
        "end of file before message length reached",
        "unexpected EOF during chunk size line",
    }
)

# HTTP/2: RST_STREAM and GOAWAY. The library has sent again by itself what the server never looked at.
RESET_BY_PEER = ("stream error received", "connection error received")


def failure(error: RequestError) -> tuple[FetchError, bool]:
    """The error in our words, and whether it may be a race with the closing of a kept connection."""
    causes = [cause["message"] for cause in error.details["causes"] or [{"message": error.message}]]
    kind = classify(causes)
    raced = kind == "reset" and SENDING in causes and not causes[-1].startswith(RESET_BY_PEER)
    # Only the innermost cause is told: the outer ones quote the URL, which may hold a secret.
    return FetchError(kind, causes[-1], sent=CONNECTING not in causes), raced


def classify(causes: Sequence[str]) -> str:
    """The kind of a failed request by the messages of its causes, outermost first; classes are not reliable here."""
    last = causes[-1]
    if last in TIMED_OUT:
        return "timeout"
    if CONNECTING in causes:
        if "dns error" in causes:
            return "dns"
        return "connect" if "(os error " in last else "tls"
    if "(os error " in last or last in ENDED_EARLY or last.startswith(RESET_BY_PEER):
        return "reset"
    return "protocol"
