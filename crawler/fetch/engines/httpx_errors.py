"""What a failed request of httpx means."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import h11
import httpx
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamReset

from coordinator.errors import FetchError

DETAIL_CHARS = 200  # h11 quotes what it could not read

# What httpcore and h11 say; pinned by tests against the real libraries.
ENDED_EARLY = ("Server disconnected", "peer closed connection")


def failure(error: httpx.TransportError) -> FetchError:
    """The error in our words; a connection that was not made sent nothing."""
    detail = (str(error) or type(error).__name__)[:DETAIL_CHARS]
    if isinstance(error, httpx.LocalProtocolError):  # its text quotes the request, which may hold a secret
        if any(isinstance(cause, h11.LocalProtocolError) for cause in _causes(error)):
            return FetchError("protocol", "the request is not valid HTTP", sent=False)
        return FetchError("protocol", "HTTP/2 broke down on this response")
    if isinstance(error, httpx.ConnectTimeout):
        return FetchError("timeout", "connecting took too long", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return FetchError("timeout", "the server went silent")
    if isinstance(error, httpx.ProxyError):
        return FetchError("connect", f"the proxy refuses: {detail}", sent=False)
    if isinstance(error, httpx.ConnectError):
        kind = "tls" if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)) else "connect"
        return FetchError(kind, detail, sent=False)
    if isinstance(error, httpx.NetworkError) or detail.startswith(ENDED_EARLY) or _left(error) is not None:
        return FetchError("reset", detail)
    return FetchError("protocol", detail)


def may_go_again(error: httpx.TransportError) -> bool:
    """Whether an idempotent request may be sent again at once: the server closed a connection, or never looked at it.

    A stream that was reset for another reason than REFUSED_STREAM (RFC 9113, section 8.7) is the request's own failure.
    """
    left = _left(error)
    if isinstance(left, StreamReset):
        return left.error_code == ErrorCodes.REFUSED_STREAM
    return failure(error).kind == "reset"


def _left(error: BaseException) -> StreamReset | ConnectionTerminated | None:
    """The RST_STREAM or GOAWAY that ended the request; httpcore carries the event in its exception."""
    for cause in _causes(error):
        for word in cause.args:
            if isinstance(word, StreamReset | ConnectionTerminated):
                return word
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
