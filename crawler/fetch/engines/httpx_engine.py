"""The engine on httpx: slower than pyreqwest, but pure Python, and a test can replace its transport."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http.cookiejar import DefaultCookiePolicy

import httpx

from coordinator.errors import FetchError
from crawler.fetch.engines.content_encoding import ACCEPT_ENCODING, BodyDecoder
from crawler.fetch.engines.httpx_errors import httpx_fetch_error, may_be_sent_again
from crawler.fetch.engines.httpx_network import PinnedTransport, came_before_its_request
from crawler.fetch.engines.protocol import IDEMPOTENT_METHODS, SCHEMES, Caps, Http2
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from crawler.model import HttpResponse

SURPLUS_RESPONSE = "the connection held a response to no request"


class HttpxEngine:
    """Engine on one httpx client, with HTTP/1.1, or HTTP/2 as `http2` says.

    The caller has at most `concurrency` requests in flight, so at most this many idle connections are kept. The headers
    of `credentials` and `user_agent` are sent with every request that has no header of the same name.
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
            headers=[("User-Agent", user_agent), ("Accept-Encoding", ACCEPT_ENCODING), *credentials.headers],
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
            raise httpx_fetch_error(error) from error
        return HttpResponse(response.status_code, _Headers(response.headers.raw), body)

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        await self._client.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._send_once(request)
        except httpx.TransportError as error:
            if request.method not in IDEMPOTENT_METHODS or not may_be_sent_again(error) or self._client.is_closed:
                raise
        # The server closed an idle connection while this request was on its way: that is no failure of the request.
        return await self._send_once(request)

    async def _send_once(self, request: httpx.Request) -> httpx.Response:
        response = await self._client.send(request, stream=True)
        if came_before_its_request(response):
            await response.aclose()  # its body is unread, so this closes the connection too
            raise httpx.ReadError(SURPLUS_RESPONSE)
        return response

    async def _read(self, response: httpx.Response) -> bytes:
        body = BodyDecoder(response.headers.get("content-encoding"), self._caps.body)
        async for chunk in response.aiter_raw():
            body.add(chunk)
        return body.finish()


class _Headers:
    """The headers of a response as httpx received them."""

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
