"""The engine on pyreqwest (Rust), the fast one.

Do not use its `.bytes()`, `.text()`, `.json()` or `.send()`: they allocate what Content-Length says, which can abort
the process. Here bodies are streamed up to a cap, and names are resolved by our resolver and pinned. Everything has a
native timeout, because a cancelled request goes on in Rust until one of them ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic

import certifi
from pyreqwest.bytes import Bytes
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, RequestError
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.response import Response, ResponseBodyReader

from coordinator.errors import FetchError
from coordinator.url import Target
from crawler.fetch.engines.lenient import LenientReader
from crawler.fetch.engines.protocol import (
    IDEMPOTENT_METHODS,
    IDLE_CONNECTION_SECONDS,
    PRIOR_KNOWLEDGE,
    Caps,
    Http2,
)
from crawler.fetch.engines.pyreqwest_errors import CLIENT_CLOSED, may_resend, pyreqwest_fetch_error
from crawler.fetch.engines.response.body import BodyReader
from crawler.fetch.engines.response.content_encoding import ACCEPT_ENCODING
from crawler.fetch.engines.response.headers import NativeHeaders
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials, Pairs
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
    With `all_headers` a response is read again, by the other engine, when any of its headers is not ASCII.
    Large bodies take their bytes from `memory`. Create it in the process that uses it: a client does not survive a
    fork.
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
        all_headers: bool = False,
        memory: BodyMemory | None = None,
    ) -> None:
        self._memory = memory or BodyMemory()
        self._all_headers = all_headers
        self._caps = caps
        self._concurrency = concurrency
        self._resolver = resolver
        self._http2 = http2
        self._credentials = credentials
        self._user_agent = user_agent
        self._roots = [path.read_bytes() for path in (_bundled_roots(), certificates.ca) if path is not None]
        self._client_certificate = None if certificates.client is None else certificates.client.read_bytes()
        self._lenient = LenientReader(
            caps,
            concurrency=concurrency,
            resolver=resolver,
            http2=http2,
            credentials=credentials,
            certificates=certificates,
            user_agent=user_agent,
            memory=self._memory,
        )
        self._pins: dict[str, str] = {}  # host -> address, in the current client
        self._next_pins: dict[str, str] = {}  # host -> address, new in the next client
        self._renewal: asyncio.Task[None] | None = None
        self._client: Client | None = self._build()
        self._built_at = monotonic()

    async def fetch(
        self, method: str, target: Target, headers: Pairs, with_credentials: bool = True, body: bytes | None = None
    ) -> HttpResponse:
        """Send one request and read its whole response; see Engine.fetch for the kinds of FetchError."""
        if self._lenient.origins and target.origin.text in self._lenient.origins:
            return await self._lenient.fetch(method, target, headers, with_credentials, body)
        if with_credentials and self._credentials.url_secrets:
            target = self._credentials.filled(target)
        host, href = target.origin.host, target.href
        headers = self._credentials.headers_of(headers, with_credentials)
        client = self._client
        address = self._resolver.cached_address(host)
        if address is None or (address != host and self._pins.get(host) != address):
            client = await self._client_for(host)
        if client is None:
            raise FetchError("reset", CLIENT_CLOSED, sent=False)
        started = monotonic()
        try:
            try:
                return await self._send(client, method, href, headers, body)
            except RequestError as error:
                left = self._caps.total - (monotonic() - started)
                if method not in IDEMPOTENT_METHODS or left <= 0 or not may_resend(error):
                    raise pyreqwest_fetch_error(error) from error
            # The server closed an idle connection while this request was on its way: that is no failure of the request.
            try:
                return await self._send(client, method, href, headers, body, left)
            except RequestError as error:
                raise pyreqwest_fetch_error(error) from error
        except FetchError as error:
            if error.again:
                self._lenient.add(target.origin.text)
            raise

    async def close(self) -> None:
        """Close every connection; requests in flight end with FetchError."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # its idle connections close with this last reference to it
        await self._lenient.close()

    async def _send(
        self,
        client: Client,
        method: str,
        url: str,
        headers: Pairs,
        body: bytes | None,
        seconds: float | None = None,
    ) -> HttpResponse:
        """Send a request once. The library reads the URL again, and leaves it as it is."""
        try:
            request = client.request(method, url)
        except ValueError as error:  # a host like xn--a, which is no name of a host
            raise FetchError("url", str(error), sent=False) from error
        try:
            if headers:
                request = request.headers(headers)
            if body is not None:
                request = request.body_bytes(body)
            if seconds is not None:
                request = request.timeout(timedelta(seconds=seconds))
            stream = request.streamed_read_buffer_limit(READ_BYTES).build_streamed()
            response = await stream.__aenter__()
            status, ended = response.status, False
            try:
                head = self._headers_of(response, status)
                # This waits for the whole amount, so fewer bytes mean that the body has ended.
                first = await response.body_reader.read(READ_BYTES)
                ended = first is None or len(first) < READ_BYTES
                if first is None:
                    return HttpResponse(status, head, b"")
                if ended and len(first) <= self._caps.body and "content-encoding" not in response.headers:
                    return HttpResponse(status, head, first.to_bytes())
                return HttpResponse(
                    status, head, *await self._read(first, None if ended else response.body_reader, head)
                )
            finally:
                # Closing costs a switch to the library's thread and back, and a body that has ended needs none.
                if not ended:
                    await stream.__aexit__(None, None, None)
        except ValueError as error:  # its text may quote a header, and so a secret
            raise FetchError("protocol", "the request is not valid HTTP", sent=False) from error
        except BaseException as error:
            # A panic in Rust is a BaseException whose class pyo3 does not export.
            if type(error).__name__ != "PanicException":
                raise
            raise FetchError("protocol", "the HTTP library panicked on this response") from error

    def _headers_of(self, response: Response, status: int) -> NativeHeaders:
        """Raise FetchError if somebody may read a header that is not ASCII, which the library cannot."""
        try:
            if self._all_headers:
                list(response.headers.values())
            elif status != 200:
                response.get_header("location")
            return NativeHeaders(response)
        except ValueError as error:
            raise FetchError("protocol", "a header is not ASCII", again=True) from error

    async def _read(
        self, first: Bytes, rest: ResponseBodyReader | None, headers: NativeHeaders
    ) -> tuple[bytes, str | None, Callable[[], None] | None]:
        """Return what BodyReader.finish does for a body that begins with `first`.

        At most one piece beyond the cap is read.
        """
        body = BodyReader(headers, self._caps.body, self._memory)
        try:
            await body.add(first.to_bytes())
            while rest is not None and (chunk := await rest.read_chunk()) is not None:
                await body.add(chunk.to_bytes())
            return body.finish()
        except BaseException as error:
            body.close()
            if isinstance(error, RequestError):
                raise body.fault(pyreqwest_fetch_error(error)) from error
            raise

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
            .http1_allow_obsolete_multiline_headers_in_responses(True)
            .http1_allow_spaces_after_header_name_in_responses(True)
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
