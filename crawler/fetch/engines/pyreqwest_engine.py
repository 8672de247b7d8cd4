"""The fast engine: pyreqwest (Rust), used only behind a guard.

Never its `.bytes()`, `.text()`, `.json()` or `.send()`: they trust Content-Length and allocate it, which can abort the
process. Bodies are streamed up to a cap, names are resolved by us and pinned, and native timeouts bound everything,
because a cancelled request keeps running in Rust until one of them ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from time import monotonic

import certifi
from pyreqwest.bytes import Bytes
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, RequestError
from pyreqwest.http import Url
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import RequestBuilder
from pyreqwest.response import Response, ResponseBodyReader

from coordinator.errors import FetchError
from crawler.fetch.engines.content_encoding import ACCEPTED, Body
from crawler.fetch.engines.protocol import PRIOR_KNOWLEDGE, Caps, Http2
from crawler.fetch.engines.pyreqwest_errors import CLOSED, failure
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from crawler.model import HttpResponse

IDLE_SECONDS = 20.0
READ_BYTES = 64 * 1024
GATHER_SECONDS = 0.01
REBUILD_SECONDS = 0.05  # building a client takes 3 to 6 ms: at most 20 a second, however many new hosts come
MAX_PINS = 4096

IDEMPOTENT = frozenset({"GET", "HEAD"})
SCHEMES = frozenset({"http", "https"})


class PyreqwestEngine:
    """Engine on one pyreqwest client at a time, HTTP/1.1 or, with `http2`, HTTP/2 where the server offers it in TLS.

    `concurrency` is the most requests the caller has in flight to one host: so many idle connections are kept.
    The identity's headers and `user_agent` go with every request unless the request brings its own.
    Create it in the process that uses it: a client does not survive a fork.
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
    ) -> None:
        self._caps = caps
        self._concurrency = concurrency
        self._resolver = resolver
        self._http2 = http2
        self._credentials = credentials
        self._user_agent = user_agent
        self._roots = [path.read_bytes() for path in (_bundled_roots(), certificates.ca) if path is not None]
        self._own = None if certificates.client is None else certificates.client.read_bytes()
        self._pins: dict[str, str] = {}  # host -> address, as the current client has them
        self._wanted: dict[str, str] = {}  # the same, for the next client
        self._renewal: asyncio.Task[None] | None = None
        self._client: Client | None = self._build()
        self._built_at = monotonic()

    async def fetch(
        self, method: str, url: str, headers: tuple[tuple[str, str], ...], with_credentials: bool = True
    ) -> HttpResponse:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        target, host = _target(url)
        headers = self._credentials.headers_of(headers, with_credentials)
        client = self._client
        address = self._resolver.known(host)
        if address is None or (address != host and self._pins.get(host) != address):
            client = await self._client_for(host)
        if client is None:
            raise FetchError("reset", CLOSED, sent=False)
        started = monotonic()
        try:
            return await self._send(client.request(method, target), headers)
        except RequestError as error:
            failed, raced = failure(error)
            left = self._caps.total - (monotonic() - started)
            if not raced or method not in IDEMPOTENT or left <= 0:
                raise failed from error
        # The server closed a kept connection while this request was under way: not the request's fault.
        try:
            return await self._send(client.request(method, target).timeout(timedelta(seconds=left)), headers)
        except RequestError as error:
            raise failure(error)[0] from error

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # and its idle connections close as this last reference to it goes

    async def _send(self, request: RequestBuilder, headers: tuple[tuple[str, str], ...]) -> HttpResponse:
        try:
            if headers:
                request = request.headers(headers)
            stream = request.streamed_read_buffer_limit(READ_BYTES).build_streamed()
            response = await stream.__aenter__()
            head, ended = _Headers(response), False
            try:
                # It fills up to the amount: fewer bytes mean that the body has ended.
                first = await response.body_reader.read(READ_BYTES)
                if first is None or len(first) < READ_BYTES:
                    ended = True
                    body = self._whole(first, head)
                else:
                    body = await self._rest(first, response.body_reader, head)
            finally:
                # Leaving costs a switch to the library's thread and back; at its end a body holds nothing any more.
                if not ended:
                    await stream.__aexit__(None, None, None)
            return HttpResponse(response.status, head, body)
        except ValueError as error:  # its text may quote a header, and so a secret
            raise FetchError("protocol", "the request is not valid HTTP", sent=False) from error
        except BaseException as error:
            # A panic in Rust is a BaseException whose class pyo3 does not export.
            if type(error).__name__ != "PanicException":
                raise
            raise FetchError("protocol", "the HTTP library panicked on this response") from error

    def _whole(self, first: Bytes | None, headers: _Headers) -> bytes:
        """The body that came in one piece."""
        if first is None:
            return b""
        encoding = headers.get("content-encoding")
        if encoding is None and len(first) <= self._caps.body:
            return first.to_bytes()
        body = Body(encoding, self._caps.body)
        body.add(first.to_bytes())
        return body.whole()

    async def _rest(self, first: Bytes, reader: ResponseBodyReader, headers: _Headers) -> bytes:
        """The body of which this is the first piece. What exceeds the cap by more than a piece is left unread."""
        body = Body(headers.get("content-encoding"), self._caps.body)
        body.expect(headers.get("content-length"))
        body.add(first.to_bytes())
        while (chunk := await reader.read_chunk()) is not None:
            body.add(chunk.to_bytes())
        return body.whole()

    async def _client_for(self, host: str) -> Client | None:
        if self._credentials.proxy is not None:
            self._resolver.check(host)
            return self._client
        address = await self._resolver.address(host)
        return self._client if self._pins.get(host) == address else await self._pin(host, address)

    async def _pin(self, host: str, address: str) -> Client | None:
        """The client that connects to this address for this host; hosts that appear together share its making."""
        if host.strip("[]") == address:
            return self._client  # an address needs no pin: nothing is looked up
        while self._pins.get(host) != address:
            self._wanted[host] = address
            if self._renewal is None:
                self._renewal = asyncio.create_task(self._renew())
            await asyncio.shield(self._renewal)
        return self._client

    async def _renew(self) -> None:
        """Replace the client by one that has the wanted pins too.

        The old one is let go, not closed: requests in flight hold it, and its connections close with the last of them.
        """
        try:
            await asyncio.sleep(max(GATHER_SECONDS, self._built_at + REBUILD_SECONDS - monotonic()))
            kept = self._pins if len(self._pins) < MAX_PINS else {}
            self._pins, self._wanted = {**kept, **self._wanted}, {}
            if self._client is not None:
                self._client = self._build()
            self._built_at = monotonic()
        finally:
            self._renewal = None

    def _build(self) -> Client:
        caps = self._caps
        # A connect timeout as long as the read timeout would be reported, or missed, as a read that stalled.
        connect = min(caps.connect, caps.read * 0.9)
        builder = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .connect_timeout(timedelta(seconds=connect))
            .read_timeout(timedelta(seconds=caps.read))
            .timeout(timedelta(seconds=caps.total))
            .pool_max_idle_per_host(self._concurrency)
            .pool_idle_timeout(timedelta(seconds=IDLE_SECONDS))
            .user_agent(self._user_agent)
            .default_headers([("Accept-Encoding", ACCEPTED), *self._credentials.headers])
        )
        for root in self._roots:
            builder = builder.add_root_certificate_pem(root)
        if self._own is not None:
            builder = builder.identity_pem(self._own)
        if self._credentials.proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(self._credentials.proxy))
        if self._http2:
            # Bodies share the connection's window, so one that is read slowly would hold up the others.
            builder = builder.http2_initial_stream_window_size(2**20).http2_initial_connection_window_size(2**24)
            builder = builder.http2_prior_knowledge() if self._http2 == PRIOR_KNOWLEDGE else builder.http2(True)
        for host, address in self._pins.items():
            builder = builder.resolve(host, address, 0)
        return builder.build()


def _bundled_roots() -> Path | None:
    """Root certificates for a system that has none; without any, not even plain http would work."""
    try:
        ClientBuilder().build()
    except BuilderError:
        return Path(certifi.where())
    return None


class _Headers:
    """Headers read from the native response on demand; it stays valid after its body was read and closed."""

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    def get(self, name: str) -> str | None:
        try:
            return self._response.get_header(name)
        except ValueError:  # a byte that is not ASCII; the library gives no way to read it
            return None

    def has(self, names: Iterable[str]) -> bool:
        headers = self._response.headers
        for name in names:  # noqa: SIM110 - any() makes a generator for every answer
            if name in headers:
                return True
        return False

    def items(self) -> list[tuple[str, str]]:
        headers = self._response.headers
        try:
            return list(headers.items())
        except ValueError:
            pass
        readable: list[tuple[str, str]] = []
        for name in dict.fromkeys(headers.keys()):
            try:
                readable.extend((name, value) for value in headers.getall(name))
            except ValueError:
                continue
        return readable


def _target(url: str) -> tuple[Url, str]:
    try:
        target = Url(url)
    except ValueError as error:
        raise FetchError("url", str(error), sent=False) from error
    host = target.host_str
    if host is None or target.scheme not in SCHEMES:
        raise FetchError("url", f"{target.scheme}: only http and https can be fetched", sent=False)
    return target, host
