"""The narrow protocol behind which HTTP engines stand: (method, url, headers) -> (status, headers, bytes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from crawler.model import HttpResponse

PRIOR_KNOWLEDGE: Literal["prior-knowledge"] = "prior-knowledge"
# HTTP/2: never, where the server offers it in TLS, or always, also in the clear (RFC 9113, section 3.3).
Http2 = bool | Literal["prior-knowledge"]


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on one HTTP try: seconds to connect, between reads and in total; bytes of decoded body."""

    connect: float = 10.0
    read: float = 20.0
    total: float = 30.0
    body: int = 16 * 1024 * 1024


class Engine(Protocol):
    """One engine serves one worker process for the whole run; it pools connections by host."""

    async def fetch(
        self, method: str, url: str, headers: tuple[tuple[str, str], ...], with_credentials: bool = True
    ) -> HttpResponse:
        """Send one request and read its whole response; no redirect is followed.

        The job's headers go along, its credentials only `with_credentials`: not to an origin that they are not for.

        Raises FetchError with `kind` one of: dns, address, connect, tls, timeout, reset, protocol, too-large, decode,
        url.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
