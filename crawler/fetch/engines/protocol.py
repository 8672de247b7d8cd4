"""The protocol of every HTTP engine: (method, target, headers) -> (status, headers, body)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from coordinator.url import Target
from crawler.model import HttpResponse

PRIOR_KNOWLEDGE: Literal["prior-knowledge"] = "prior-knowledge"
# HTTP/2: False is never, True where the server offers it in TLS, "prior-knowledge" always, also without TLS
# (RFC 9113, section 3.3).
Http2 = bool | Literal["prior-knowledge"]

# Requests that may be sent again at once when the server closed the connection (RFC 9110, section 9.2.2).
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD"})
IDLE_CONNECTION_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on one attempt: seconds to connect, between reads and in total; bytes of the decoded body."""

    connect: float = 10.0
    read: float = 20.0
    total: float = 30.0
    body: int = 16 * 1024 * 1024


class Engine(Protocol):
    """An HTTP client. One engine serves one worker, and keeps idle connections to each host."""

    async def fetch(
        self,
        method: str,
        target: Target,
        headers: tuple[tuple[str, str], ...],
        with_credentials: bool = True,
        body: bytes | None = None,
    ) -> HttpResponse:
        """Send one request and read its whole response; no redirect is followed.

        The job's headers are sent too, and its credentials only if `with_credentials`.

        Raises FetchError with `kind` one of: dns, address, connect, tls, timeout, reset, protocol, too-large, decode,
        url. A protocol error with `again` should be sent again at once, see FetchError.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
