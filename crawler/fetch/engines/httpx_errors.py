"""Exceptions of httpx as FetchError."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

import h11
import httpx
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamReset

from coordinator.errors import FetchError

MAX_DETAIL_CHARACTERS = 200  # h11 quotes the bytes that it could not read

# Messages of httpcore and h11; tests with the real libraries notice when they change.
EARLY_END_PREFIXES = ("Server disconnected", "peer closed connection")


def httpx_fetch_error(error: httpx.TransportError) -> FetchError:
    """Return the FetchError for an exception of httpx; `sent` is false when no connection was made."""
    detail = (str(error) or type(error).__name__)[:MAX_DETAIL_CHARACTERS]
    if isinstance(error, httpx.LocalProtocolError):  # its text quotes the request, which may hold a secret
        if any(isinstance(cause, h11.LocalProtocolError) for cause in _causes(error)):
            return FetchError("protocol", "the request is not valid HTTP", sent=False)
        return FetchError("protocol", "HTTP/2 broke down on this response")
    if isinstance(error, httpx.ConnectTimeout):
        return FetchError("timeout", "connecting took too long", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return FetchError("timeout", "the server sent nothing in time")
    if isinstance(error, httpx.ProxyError):
        return FetchError("connect", f"the proxy refuses: {detail}", sent=False)
    if isinstance(error, httpx.ConnectError):
        if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):
            return FetchError("tls", detail, sent=False)
        # anyio says only that all attempts failed; the last of its causes is what the system said.
        errnos = [cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno]
        return FetchError("connect", os.strerror(errnos[-1]) if errnos else detail, sent=False)
    if isinstance(error, httpx.NetworkError) or detail.startswith(EARLY_END_PREFIXES) or _http2_end(error) is not None:
        return FetchError("reset", detail)
    return FetchError("protocol", detail)


def may_be_sent_again(error: httpx.TransportError) -> bool:
    """Whether an idempotent request may be sent again at once: the server closed the connection, or did not process it.

    Of HTTP/2 streams that the server reset, only those with REFUSED_STREAM are sent again (RFC 9113, section 8.7).
    """
    http2_end = _http2_end(error)
    if isinstance(http2_end, StreamReset):
        return http2_end.error_code == ErrorCodes.REFUSED_STREAM
    return httpx_fetch_error(error).kind == "reset"


def _http2_end(error: BaseException) -> StreamReset | ConnectionTerminated | None:
    """Return the RST_STREAM or GOAWAY that ended the request; httpcore puts the event into its exception."""
    for cause in _causes(error):
        for argument in cause.args:
            if isinstance(argument, StreamReset | ConnectionTerminated):
                return argument
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
