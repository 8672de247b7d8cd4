"""The second engine: httpx, slower, pure Python, with HTTP/2 and room for mocks and transports of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http.cookiejar import DefaultCookiePolicy

import httpx

from coordinator.errors import FetchError
from crawler.fetch.engines.content_encoding import ACCEPTED, Body
from crawler.fetch.engines.httpx_errors import failure, may_go_again
from crawler.fetch.engines.httpx_network import PinnedTransport, came_unasked
from crawler.fetch.engines.protocol import Caps, Http2
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from crawler.model import HttpResponse

IDEMPOTENT = frozenset({"GET", "HEAD"})
SCHEMES = frozenset({"http", "https"})

UNASKED = "the connection held an answer that nobody had asked for"


class HttpxEngine:
    """Engine on one httpx client, HTTP/1.1 or, with `http2`, HTTP/2 where the server offers it in TLS.

    `concurrency` is the most requests the caller has in flight: so many idle connections are kept.
    The identity's headers and `user_agent` go with every request unless the request brings its own.
    `transport` replaces the network, and with it the resolver.
    """

    def __init__(
        self,
        caps: Caps,
        *,
        concurrency: int,
        resolver: Resolver,
        http2: Http2 = False,
        credentials: Credentials = NO_CREDENTIALS,
        certificates: Certificates = NO_CERTIFICATES,
        user_agent: str = "shardcrawl",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._caps = caps
        self._credentials = credentials
        self._resolver = resolver
        self._client = httpx.AsyncClient(
            transport=transport
            or PinnedTransport(
                resolver, concurrency=concurrency, http2=http2, certificates=certificates, proxy=credentials.proxy
            ),
            headers=[("User-Agent", user_agent), ("Accept-Encoding", ACCEPTED), *credentials.headers],
            timeout=httpx.Timeout(caps.read, connect=caps.connect, pool=None),
            follow_redirects=False,
            trust_env=False,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def fetch(
        self, method: str, url: str, headers: tuple[tuple[str, str], ...], with_credentials: bool = True
    ) -> HttpResponse:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        try:
            request = self._client.build_request(
                method, url, headers=self._credentials.headers_of(headers, with_credentials)
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise FetchError("url", str(error), sent=False) from error
        if request.url.scheme not in SCHEMES or not request.url.host:
            raise FetchError("url", f"{request.url.scheme}: only http and https can be fetched", sent=False)
        if (request.url.port or 0) > 65535:
            raise FetchError("url", f"no such port: {request.url.port}", sent=False)
        if self._client.is_closed:
            raise FetchError("reset", "the engine is closed", sent=False)
        if self._credentials.proxy is not None:
            self._resolver.check(request.url.host)
        try:
            async with asyncio.timeout(self._caps.total):
                response = await self._send(request)
                try:
                    body = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise FetchError("timeout", f"not done in {self._caps.total:g} s") from error
        except httpx.TransportError as error:
            raise failure(error) from error
        return HttpResponse(response.status_code, _Headers(response.headers.raw), body)

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        await self._client.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._send_once(request)
        except httpx.TransportError as error:
            if request.method not in IDEMPOTENT or not may_go_again(error) or self._client.is_closed:
                raise
        # The server closed a kept connection while this request was under way: not the request's fault.
        return await self._send_once(request)

    async def _send_once(self, request: httpx.Request) -> httpx.Response:
        response = await self._client.send(request, stream=True)
        if came_unasked(response):
            await response.aclose()  # unread, so its connection is closed too
            raise httpx.ReadError(UNASKED)
        return response

    async def _read(self, response: httpx.Response) -> bytes:
        body = Body(response.headers.get("content-encoding"), self._caps.body)
        async for chunk in response.aiter_raw():
            body.add(chunk)
        return body.whole()


class _Headers:
    """Headers as httpx received them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def get(self, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self._raw if key.lower() == wanted), None)

    def has(self, names: Iterable[str]) -> bool:
        wanted = {name.encode("latin-1") for name in names}
        return any(key.lower() in wanted for key, _ in self._raw)

    def items(self) -> list[tuple[str, str]]:
        return [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in self._raw]
