"""What lies below httpx: our resolver, connection by connection, and a watch over answers nobody asked for."""

# ruff: noqa: ASYNC109 - httpcore's interface has these timeouts

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from crawler.fetch.engines.protocol import PRIOR_KNOWLEDGE, Http2
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import Certificates

IDLE_SECONDS = 20.0


class PinnedTransport(httpx.AsyncHTTPTransport):
    """The network of httpx, with names resolved by our resolver when a connection is made; a proxy does so itself."""

    def __init__(
        self, resolver: Resolver, *, concurrency: int, http2: Http2, certificates: Certificates, proxy: str | None
    ) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        if certificates.ca is not None:
            context.load_verify_locations(certificates.ca)
        if certificates.client is not None:
            context.load_cert_chain(certificates.client)
        super().__init__(verify=context)
        # httpx has no parameter for the network backend, httpcore has; a test would see this attribute go.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=None if proxy is None else _proxy(proxy, context),
            max_connections=None,
            max_keepalive_connections=concurrency,
            keepalive_expiry=IDLE_SECONDS,
            http1=http2 != PRIOR_KNOWLEDGE,
            http2=bool(http2),
            network_backend=_PinnedBackend(resolver if proxy is None else None),
        )


def _proxy(url: str, context: ssl.SSLContext) -> httpcore.Proxy:
    proxy = httpx.Proxy(url)
    # An http proxy is spoken to in the clear, and httpcore takes no context for it.
    return httpcore.Proxy(
        str(proxy.url), auth=proxy.raw_auth, ssl_context=context if proxy.url.scheme == "https" else None
    )


def came_unasked(response: httpx.Response) -> bool:
    """Whether the head of an HTTP/1 answer was there before its request was sent.

    httpcore keeps bytes that follow an answer and takes them for the next one, so that a broken server's stray answer
    would be stored under another key. Over HTTP/2 answers carry the number of their request.
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
    """A connection that knows whether anything was read from it since it was last written to."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.read_since_write = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.read_since_write = True
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.read_since_write = False
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _WatchedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
