"""The second engine: httpx, slower, pure Python, with HTTP/2 and room for mocks and transports of one's own."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from http.cookiejar import DefaultCookiePolicy

import httpx

from coordinator.errors import FetchError
from crawler.fetch.engine import Answer, Caps
from crawler.fetch.httpx_network import PinnedTransport, came_unasked
from crawler.fetch.resolve import Resolver

IDEMPOTENT = frozenset({"GET", "HEAD"})
SCHEMES = frozenset({"http", "https"})
DETAIL_CHARS = 200  # h11 quotes what it could not read

# What httpcore and h11 say; pinned by tests against the real libraries.
ENDED_EARLY = ("Server disconnected", "peer closed connection")
UNASKED = "the connection held an answer that nobody had asked for"


class HttpxEngine:
    """Engine on one httpx client, HTTP/1.1 or, with `http2`, HTTP/2 where the server offers it in TLS.

    `concurrency` is the most requests the caller has in flight: so many idle connections are kept.
    `headers` and `user_agent` go with every request unless the request brings its own.
    `transport` replaces the network, and with it the resolver.
    """

    def __init__(
        self,
        caps: Caps,
        *,
        concurrency: int,
        resolver: Resolver,
        http2: bool = False,
        headers: tuple[tuple[str, str], ...] = (),
        user_agent: str = "shardcrawl",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._caps = caps
        self._client = httpx.AsyncClient(
            transport=transport or PinnedTransport(resolver, concurrency=concurrency, http2=http2),
            headers=[("User-Agent", user_agent), ("Accept-Encoding", "gzip, deflate"), *headers],
            timeout=httpx.Timeout(caps.read, connect=caps.connect, pool=None),
            follow_redirects=False,
            trust_env=False,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))

    async def fetch(self, method: str, url: str, headers: tuple[tuple[str, str], ...]) -> Answer:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        try:
            request = self._client.build_request(method, url, headers=headers)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise FetchError("url", str(error), sent=False) from error
        if request.url.scheme not in SCHEMES or not request.url.host:
            raise FetchError("url", f"{request.url.scheme}: only http and https can be fetched", sent=False)
        if (request.url.port or 0) > 65535:
            raise FetchError("url", f"no such port: {request.url.port}", sent=False)
        if self._client.is_closed:
            raise FetchError("reset", "the engine is closed", sent=False)
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
            raise _failure(error) from error
        return Answer(response.status_code, _Headers(response.headers.raw), body)

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        await self._client.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._send_once(request)
        except httpx.TransportError as error:
            if request.method not in IDEMPOTENT or _failure(error).kind != "reset" or self._client.is_closed:
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
        cap = self._caps.body
        decoder = _Decoder(response.headers.get("content-encoding", "identity").lower())
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += decoder.decode(chunk, cap + 1 - len(body))
            if len(body) > cap:
                raise FetchError("too-large", f"the body exceeds {cap} bytes")
        decoder.finish()
        return bytes(body)


class _Headers:
    """Headers as httpx received them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def get(self, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self._raw if key.lower() == wanted), None)

    def items(self) -> list[tuple[str, str]]:
        return [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in self._raw]


class _Decoder:
    """Undoes one content encoding without ever making more output than there is room for."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate: zlib._Decompress | None = None

    def decode(self, chunk: bytes, room: int) -> bytes:
        """The decoded chunk, at most `room` bytes of it; raises FetchError("decode")."""
        if self._encoding == "identity":
            return chunk
        decoded = b""
        try:
            while chunk and len(decoded) < room:
                if self._inflate is None or self._starts_member(chunk):
                    self._inflate = zlib.decompressobj(_window_bits(self._encoding, chunk))
                elif self._inflate.eof:
                    break  # padding after the end, which nothing asks us to understand
                decoded += self._inflate.decompress(chunk, room - len(decoded))
                chunk = self._inflate.unused_data
        except zlib.error as error:
            raise FetchError("decode", str(error)) from error
        return decoded

    def _starts_member(self, chunk: bytes) -> bool:
        """A gzip body may consist of several members, one after the other (RFC 1952, section 2.2)."""
        return self._inflate is not None and self._inflate.eof and "gzip" in self._encoding and chunk[0] == 0x1F

    def finish(self) -> None:
        """Raises FetchError("decode") if the encoded body was cut short."""
        if self._inflate is not None and not self._inflate.eof:
            raise FetchError("decode", "the compressed body ended early")


def _window_bits(encoding: str, start: bytes) -> int:
    """zlib's parameter for an encoding; deflate should have a zlib header, and some servers leave it out."""
    if encoding in {"gzip", "x-gzip"}:
        return 31
    if encoding == "deflate":
        return 15 if start[0] & 0x0F == 8 else -15
    raise FetchError("decode", "the body has a content encoding that was not asked for")


def _failure(error: httpx.TransportError) -> FetchError:
    """The error in our words; a connection that was not made sent nothing."""
    detail = (str(error) or type(error).__name__)[:DETAIL_CHARS]
    if isinstance(error, httpx.LocalProtocolError):  # its text quotes the request, which may hold a secret
        return FetchError("protocol", "the request is not valid HTTP", sent=False)
    if isinstance(error, httpx.ConnectTimeout):
        return FetchError("timeout", "connecting took too long", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return FetchError("timeout", "the server went silent")
    if isinstance(error, httpx.ConnectError):
        return FetchError("tls" if _is_tls(error) else "connect", detail, sent=False)
    if isinstance(error, httpx.NetworkError) or detail.startswith(ENDED_EARLY):
        return FetchError("reset", detail)
    return FetchError("protocol", detail)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
