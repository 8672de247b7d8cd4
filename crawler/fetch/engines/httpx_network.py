"""The network below httpx: it connects to our resolver's addresses, and notices responses without a request."""

# ruff: noqa: ASYNC109 - these timeouts are part of httpcore's interface

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from coordinator.url import Target
from crawler.fetch.engines.protocol import IDLE_CONNECTION_SECONDS, PRIOR_KNOWLEDGE, Http2
from crawler.fetch.engines.response.head import HeadReader
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import Certificates

HTTP2_PREFACE = b"PRI * HTTP/2.0"  # RFC 9113, section 3.4


class ExactUrl(httpx.URL):
    """A URL whose request target is sent as it stands: httpx's own would quote it anew, and drop dots."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.origin.text)
        self._path = target.path.encode("ascii")

    @property
    def raw_path(self) -> bytes:
        """The request target."""
        return self._path


class PinnedTransport(httpx.AsyncHTTPTransport):
    """The transport of httpx on addresses of our resolver; with a proxy, the proxy resolves the names."""

    def __init__(
        self, resolver: Resolver, *, concurrency: int, http2: Http2, certificates: Certificates, proxy: str | None
    ) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        if certificates.ca is not None:
            context.load_verify_locations(certificates.ca)
        if certificates.client is not None:
            context.load_cert_chain(certificates.client)
        super().__init__(verify=context)
        # httpcore has a parameter for the network backend, httpx has none. Tests fail if httpx renames this attribute.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=None if proxy is None else _proxy(proxy, context),
            max_connections=None,
            max_keepalive_connections=concurrency,
            keepalive_expiry=IDLE_CONNECTION_SECONDS,
            http1=http2 != PRIOR_KNOWLEDGE,
            http2=bool(http2),
            network_backend=_PinnedBackend(resolver if proxy is None else None),
        )


def _proxy(url: str, context: ssl.SSLContext) -> httpcore.Proxy:
    proxy = httpx.Proxy(url)
    # The connection to an http proxy has no TLS, and httpcore refuses a context for it.
    return httpcore.Proxy(
        str(proxy.url), auth=proxy.raw_auth, ssl_context=context if proxy.url.scheme == "https" else None
    )


def came_before_its_request(response: httpx.Response) -> bool:
    """Whether the head of an HTTP/1 response was read before its request was sent.

    httpcore keeps bytes that follow a response, and reads them as the response to the next request. So a surplus
    response of a broken server would be stored under another key. An HTTP/2 response names the stream of its request.
    """
    stream = response.extensions.get("network_stream")
    return isinstance(stream, _WatchedStream) and response.http_version != "HTTP/2" and not stream.read_since_write


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, resolver: Resolver | None) -> None:
        self._resolver = resolver
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = host if self._resolver is None else await self._resolver.address(host)
        stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
        return _WatchedStream(stream)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _WatchedStream(httpcore.AsyncNetworkStream):
    """A connection that mends the heads of HTTP/1, and records whether anything was read since the last write.

    On a connection that is reused, what is read first after a write is the head of the response to that request.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head = HeadReader()
        self._is_http2 = False
        self.read_since_write = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.read_since_write = True
        while True:
            chunk = await self._stream.read(max_bytes, timeout)
            if self._is_http2:
                return chunk
            readable = self._head.feed(chunk)
            if readable or not chunk:
                return readable

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.read_since_write = False
        self._is_http2 = self._is_http2 or buffer.startswith(HTTP2_PREFACE)
        if not self._head.mended:
            self._head = HeadReader()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _WatchedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._head.mended:
            return True  # httpcore closes an idle connection that has something to read; this one is in doubt
        return self._stream.get_extra_info(info)
