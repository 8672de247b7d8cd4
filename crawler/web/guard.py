"""Who may ask for what: host, origin and token are checked before anything else, and each response is locked down.

A page of somebody else cannot act here: the token is in a header that no browser adds by itself. It cannot read here
either: a browser names the host by which it came, and one that is not listed (DNS rebinding) is refused.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crawler.telemetry.logs import Repeated

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 10_000
ACTIONS_PATH = "/api/actions/"
# A log line of an action has no more characters of each thing that was sent.
MOST_LOGGED = 100
_SAFE_METHODS = ("GET", "HEAD")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]*)?", re.IGNORECASE)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Access:
    """What is allowed: the names by which browsers may come, and the token without which nothing can be changed.

    Without a token, and when it `only_reads`, nothing can be changed at all.
    """

    hosts: frozenset[str] = frozenset()
    token: str = ""
    only_reads: bool = False

    @property
    def may_act(self) -> bool:
        """Whether anybody can change anything."""
        return bool(self.token) and not self.only_reads


def refusal(access: Access, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Pure: the status and the reason why a request is refused; None when it is not. Names of headers in lower case."""
    host = headers.get("host", "")
    if not _is_known_host(host, access.hosts):
        return 421, f"this page is not known as {host[:100]!r}: start `shardcrawl serve` with --host NAME"
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return 403, "another page sent this request"
    comes_from, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
    if comes_from not in ("none", "same-origin") and (mode != "navigate" or method not in _SAFE_METHODS):
        return 403, "another page sent this request"
    if method in _SAFE_METHODS:
        return None
    if access.only_reads:
        return 403, "this page only reads: it was started with --read-only"
    if not access.token:
        return 403, "this page only reads: start `shardcrawl serve` with SHARDCRAWL_TOKEN in its environment"
    given = headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), access.token.encode()):
        return 401, "the token is missing or wrong: it is the SHARDCRAWL_TOKEN of `shardcrawl serve`"
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return 415, "send JSON"
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
        return 413, f"send at most {MAX_REQUEST_BYTES:,} bytes, and say how many"
    return None


def _is_known_host(host: str, known: frozenset[str]) -> bool:
    """Whether browsers may come by this name. An address cannot be rebound, nor can this machine's own name."""
    if (found := _HOST.fullmatch(host)) is None:
        return False
    name = (found[1] or found[2]).lower()
    try:
        return bool(ip_address(name))
    except ValueError:
        return name == "localhost" or name in known


class PageGuard:
    """Refuses requests, and adds to each response what a browser must not do with it.

    Actions that it refuses are logged: one line a minute for each reason, however many there are.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._repeated = Repeated()
        self._refused: Counter[int] = Counter()  # since the last line, by status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the pages do that."""
        if scope["type"] != "http":
            return

        async def send_locked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = refusal(self._access, scope["method"], Headers(scope=scope))
        if refused is not None and scope["method"] not in _SAFE_METHODS:
            self._log(scope, *refused)
        app = self._app if refused is None else JSONResponse({"error": refused[1]}, refused[0])
        await app(scope, receive, send_locked)

    def _log(self, scope: Scope, status: int, reason: str) -> None:
        self._refused[status] += 1
        if not self._repeated.is_due(str(status)):
            return
        more = self._refused.pop(status) - 1
        others = f" ({more:,} more since the last such line)" if more else ""
        action = scope["path"].removeprefix(ACTIONS_PATH)[:MOST_LOGGED]
        host = (scope.get("client") or ["?"])[0]
        words = (action, host, reason, others)
        logger.warning(
            "%s by the page is refused, from %s: %s%s", *words, extra={"event": "action_refused", "action": action}
        )
