"""Exceptions of pyreqwest as FetchError; their classes are not reliable, so the messages of their causes are read."""

from __future__ import annotations

from collections.abc import Sequence

from pyreqwest.exceptions import RequestError

from coordinator.errors import FetchError

# Messages of hyper, rustls and tokio; tests with the real library notice when they change.
CONNECTING = "client error (Connect)"
SENDING = "client error (SendRequest)"
TIMED_OUT = frozenset({"operation timed out", "deadline has elapsed"})
CLIENT_CLOSED = "Client was closed"
EARLY_END_MESSAGES = frozenset(
    {
        CLIENT_CLOSED,
        "connection closed before message completed",
        "end of file before message length reached",
        "unexpected EOF during chunk size line",
    }
)

# A head that another reader may understand.
UNREADABLE_HEAD_MESSAGES = frozenset(
    {
        "invalid HTTP header parsed",
        "invalid content-length parsed",
        "invalid HTTP status-code parsed",
        "invalid HTTP version parsed",
        "message head is too large",
    }
)

# HTTP/2: RST_STREAM and GOAWAY. The library itself sends a request again that the server did not process.
HTTP2_RESET_PREFIXES = ("stream error received", "connection error received")


def pyreqwest_fetch_error(error: RequestError) -> FetchError:
    """Return the FetchError. Raise it at once: a variable of a frame in its traceback would keep both for long."""
    causes = _causes(error)
    # Only the innermost cause is kept: the outer ones quote the URL, which may hold a secret.
    unreadable = causes[-1] in UNREADABLE_HEAD_MESSAGES
    return FetchError(error_kind(causes), causes[-1], sent=CONNECTING not in causes, again=unreadable)


def may_resend(error: RequestError) -> bool:
    """Whether an idempotent request may be sent again at once: the server has perhaps closed an idle connection."""
    causes = _causes(error)
    return error_kind(causes) == "reset" and SENDING in causes and not causes[-1].startswith(HTTP2_RESET_PREFIXES)


def _causes(error: RequestError) -> list[str]:
    return [cause["message"] for cause in error.details["causes"] or [{"message": error.message}]]


def error_kind(causes: Sequence[str]) -> str:
    """Return the kind of FetchError for the messages of an exception's causes, the outermost first."""
    last = causes[-1]
    if last in TIMED_OUT:
        return "timeout"
    if CONNECTING in causes:
        if "dns error" in causes:
            return "dns"
        return "connect" if "(os error " in last else "tls"
    if "(os error " in last or last in EARLY_END_MESSAGES or last.startswith(HTTP2_RESET_PREFIXES):
        return "reset"
    return "protocol"
