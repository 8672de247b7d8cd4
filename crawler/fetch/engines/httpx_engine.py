"""The engine on httpx: slower than pyreqwest, but pure Python, and a test can replace its transport."""

from __future__ import annotations

import asyncio
from http.cookiejar import DefaultCookiePolicy

import httpx

from coordinator.errors import FetchError
from coordinator.url import Target
from crawler.fetch.engines.httpx_errors import httpx_fetch_error, may_be_sent_again
from crawler.fetch.engines.httpx_network import ExactUrl, PinnedTransport, came_before_its_request
from crawler.fetch.engines.protocol import IDEMPOTENT_METHODS, Caps, Http2
from crawler.fetch.engines.response.body import BodyReader
from crawler.fetch.engines.response.content_encoding import ACCEPT_ENCODING
from crawler.fetch.engines.response.headers import RawHeaders
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials, Pairs
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
        memory: BodyMemory | None = None,
    ) -> None:
        self._memory = memory or BodyMemory()
        self._caps = caps
        self._credentials = credentials
        self._resolver = resolver
        self._transport = transport or PinnedTransport(
            resolver, concurrency=concurrency, http2=http2, certificates=certificates, proxy=credentials.proxy
        )
        self._client = httpx.AsyncClient(
            transport=self._transport,
            headers=[("User-Agent", user_agent), ("Accept-Encoding", ACCEPT_ENCODING), *credentials.headers],
            timeout=httpx.Timeout(caps.read, connect=caps.connect, pool=None),
            follow_redirects=False,
            trust_env=False,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def fetch(
        self, method: str, target: Target, headers: Pairs, with_credentials: bool = True, body: bytes | None = None
    ) -> HttpResponse:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        if with_credentials and self._credentials.url_secrets:
            target = self._credentials.filled(target)
        try:
            url = ExactUrl(target)
            request = self._client.build_request(
                method, url, headers=self._credentials.headers_of(headers, with_credentials), content=body
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise FetchError("url", str(error), sent=False) from error
        request.url = url  # the client has made a plain one of it
        if target.origin.host.endswith("."):
            request.extensions["sni_hostname"] = target.origin.host.rstrip(".")
        if self._client.is_closed:
            raise FetchError("reset", "the engine is closed", sent=False)
        if self._credentials.proxy is not None:
            self._resolver.check(target.origin.host)
        reader: BodyReader | None = None
        try:
            async with asyncio.timeout(self._caps.total):
                response = await self._send(request)
                try:
                    found = RawHeaders(response.headers.raw)
                    reader = BodyReader(found, self._caps.body, self._memory)
                    async for chunk in response.aiter_raw():
                        await reader.add(chunk)
                    return HttpResponse(response.status_code, found, *reader.finish())
                finally:
                    await response.aclose()
        except BaseException as error:
            if reader is not None:
                reader.close()
            if not isinstance(error, TimeoutError | httpx.TransportError):
                raise
            raise self._fetch_error(error, reader) from error

    def _fetch_error(self, error: TimeoutError | httpx.TransportError, reader: BodyReader | None) -> FetchError:
        if isinstance(error, TimeoutError):
            failed = FetchError("timeout", f"not done in {self._caps.total:g} s")
        else:
            failed = httpx_fetch_error(error)
        return failed if reader is None else reader.fault(failed)

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
        # Not by the client, which reads the Location of every redirect, and raises for what it cannot read.
        response = await self._transport.handle_async_request(request)
        response.request = request
        if came_before_its_request(response):
            await response.aclose()  # its body is unread, so this closes the connection too
            raise httpx.ReadError(SURPLUS_RESPONSE)
        return response
