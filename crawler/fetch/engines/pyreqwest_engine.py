"""The engine on pyreqwest (Rust), the fast one.

Do not use its `.bytes()`, `.text()`, `.json()` or `.send()`: they allocate what Content-Length says, which can abort
the process. Here bodies are streamed up to a cap, and names are resolved by our resolver and pinned. Everything has a
native timeout, because a cancelled request goes on in Rust until one of them ends it.
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
from crawler.fetch.engines.content_encoding import ACCEPT_ENCODING, BodyDecoder
from crawler.fetch.engines.protocol import (
    IDEMPOTENT_METHODS,
    IDLE_CONNECTION_SECONDS,
    PRIOR_KNOWLEDGE,
    SCHEMES,
    Caps,
    Http2,
)
from crawler.fetch.engines.pyreqwest_errors import CLIENT_CLOSED, pyreqwest_fetch_error
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from crawler.model import HttpResponse

READ_BYTES = 64 * 1024
# A new client waits this long for other new hosts, so that one client gets the addresses of all of them.
GATHER_PINS_SECONDS = 0.01
# Building a client takes 3 to 6 ms: at most 20 are built a second, however many new hosts come.
MIN_CLIENT_INTERVAL_SECONDS = 0.05
# Hosts whose addresses a client holds. With more of them the next client begins with the new ones alone.
MAX_PINS = 4096


class PyreqwestEngine:
    """Engine on one pyreqwest client at a time, with HTTP/1.1, or HTTP/2 as `http2` says.

    The caller has at most `concurrency` requests in flight to one host, so at most this many idle connections to it are
    kept. The headers of `credentials` and `user_agent` are sent with every request that has no header of the same name.
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
        self._client_certificate = None if certificates.client is None else certificates.client.read_bytes()
        self._pins: dict[str, str] = {}  # host -> address, in the current client
        self._next_pins: dict[str, str] = {}  # host -> address, new in the next client
        self._renewal: asyncio.Task[None] | None = None
        self._client: Client | None = self._build()
        self._built_at = monotonic()

    async def fetch(
        self, method: str, url: str, headers: tuple[tuple[str, str], ...], with_credentials: bool = True
    ) -> HttpResponse:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        target, host = _parse_url(url)
        headers = self._credentials.headers_of(headers, with_credentials)
        client = self._client
        address = self._resolver.cached_address(host)
        if address is None or (address != host and self._pins.get(host) != address):
            client = await self._client_for(host)
        if client is None:
            raise FetchError("reset", CLIENT_CLOSED, sent=False)
        started = monotonic()
        try:
            return await self._send(client.request(method, target), headers)
        except RequestError as error:
            failed, may_resend = pyreqwest_fetch_error(error)
            left = self._caps.total - (monotonic() - started)
            if not may_resend or method not in IDEMPOTENT_METHODS or left <= 0:
                raise failed from error
        # The server closed an idle connection while this request was on its way: that is no failure of the request.
        try:
            return await self._send(client.request(method, target).timeout(timedelta(seconds=left)), headers)
        except RequestError as error:
            raise pyreqwest_fetch_error(error)[0] from error

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # its idle connections close with this last reference to it

    async def _send(self, request: RequestBuilder, headers: tuple[tuple[str, str], ...]) -> HttpResponse:
        try:
            if headers:
                request = request.headers(headers)
            stream = request.streamed_read_buffer_limit(READ_BYTES).build_streamed()
            response = await stream.__aenter__()
            head, ended = _Headers(response), False
            try:
                # This waits for the whole amount, so fewer bytes mean that the body has ended.
                first = await response.body_reader.read(READ_BYTES)
                if first is None or len(first) < READ_BYTES:
                    ended = True
                    body = self._decode(first, head)
                else:
                    body = await self._read_rest(first, response.body_reader, head)
            finally:
                # Closing costs a switch to the library's thread and back, and a body that has ended needs none.
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

    def _decode(self, first: Bytes | None, headers: _Headers) -> bytes:
        """Return the decoded body that came in one piece."""
        if first is None:
            return b""
        encoding = headers.get("content-encoding")
        if encoding is None and len(first) <= self._caps.body:
            return first.to_bytes()
        body = BodyDecoder(encoding, self._caps.body)
        body.add(first.to_bytes())
        return body.finish()

    async def _read_rest(self, first: Bytes, reader: ResponseBodyReader, headers: _Headers) -> bytes:
        """Return the decoded body that begins with `first`. At most one piece beyond the cap is read."""
        body = BodyDecoder(headers.get("content-encoding"), self._caps.body)
        body.check_length(headers.get("content-length"))
        body.add(first.to_bytes())
        while (chunk := await reader.read_chunk()) is not None:
            body.add(chunk.to_bytes())
        return body.finish()

    async def _client_for(self, host: str) -> Client | None:
        """Return a client that connects to a permitted address of the host; None once closed. Raises FetchError."""
        if self._credentials.proxy is not None:
            self._resolver.check(host)
            return self._client
        address = await self._resolver.address(host)
        return self._client if self._pins.get(host) == address else await self._pin(host, address)

    async def _pin(self, host: str, address: str) -> Client | None:
        """Wait for a client that connects to this address for this host; hosts that are new now share one client."""
        if host.strip("[]") == address:
            return self._client  # the host is written as its address, so the client looks nothing up
        while self._pins.get(host) != address:
            self._next_pins[host] = address
            if self._renewal is None:
                self._renewal = asyncio.create_task(self._renew())
            await asyncio.shield(self._renewal)
        return self._client

    async def _renew(self) -> None:
        """Replace the client by one that has the new pins too.

        The old one is not closed: requests in flight still use it, and its connections close with the last of them.
        """
        try:
            await asyncio.sleep(max(GATHER_PINS_SECONDS, self._built_at + MIN_CLIENT_INTERVAL_SECONDS - monotonic()))
            kept = self._pins if len(self._pins) < MAX_PINS else {}
            self._pins, self._next_pins = {**kept, **self._next_pins}, {}
            if self._client is not None:
                self._client = self._build()
            self._built_at = monotonic()
        finally:
            self._renewal = None

    def _build(self) -> Client:
        caps = self._caps
        # If both timeouts were equal, a connect timeout could be reported as a read timeout.
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
            .pool_idle_timeout(timedelta(seconds=IDLE_CONNECTION_SECONDS))
            .user_agent(self._user_agent)
            .default_headers([("Accept-Encoding", ACCEPT_ENCODING), *self._credentials.headers])
        )
        for root in self._roots:
            builder = builder.add_root_certificate_pem(root)
        if self._client_certificate is not None:
            builder = builder.identity_pem(self._client_certificate)
        if self._credentials.proxy is not None:
            builder = builder.proxy(ProxyBuilder.all(self._credentials.proxy))
        if self._http2:
            # All bodies share the connection's window: with a small one, a body that is read slowly stops the others.
            builder = builder.http2_initial_stream_window_size(2**20).http2_initial_connection_window_size(2**24)
            builder = builder.http2_prior_knowledge() if self._http2 == PRIOR_KNOWLEDGE else builder.http2(True)
        for host, address in self._pins.items():
            builder = builder.resolve(host, address, 0)
        return builder.build()


def _bundled_roots() -> Path | None:
    """Return certifi's root certificates on a system that has none, where no client can be built, not even for http."""
    try:
        ClientBuilder().build()
    except BuilderError:
        return Path(certifi.where())
    return None


class _Headers:
    """Headers that are read from the native response on demand, also after its body was read and closed."""

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    def get(self, name: str) -> str | None:
        try:
            return self._response.get_header(name)
        except ValueError:  # the value is not ASCII, and the library cannot read it
            return None

    def has(self, names: Iterable[str]) -> bool:
        headers = self._response.headers
        for name in names:  # noqa: SIM110 - any() would make a generator for every response
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


def _parse_url(url: str) -> tuple[Url, str]:
    try:
        target = Url(url)
    except ValueError as error:
        raise FetchError("url", str(error), sent=False) from error
    host = target.host_str
    if host is None or target.scheme not in SCHEMES:
        raise FetchError("url", f"{target.scheme}: only http and https can be fetched", sent=False)
    return target, host
