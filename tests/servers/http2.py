"""An HTTP/2 server on 127.0.0.1 that refuses, resets or closes as the requested path says, and certificates for TLS."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived
from h2.exceptions import ProtocolError

from tests.servers.misbehaving import BODY


@dataclass
class Http2Server:
    """What the server received: connections, requests by path, their heads, and the certificates of clients.

    `port` speaks TLS, or cleartext without a certificate.
    """

    port: int = 0
    connections: int = 0
    requested: Counter[str] = field(default_factory=Counter)
    heads: list[dict[str, str]] = field(default_factory=list)
    peers: list[bytes | None] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1
        secured = transport.get_extra_info("ssl_object")
        self._server.peers.append(None if secured is None else secured.getpeercert(binary_form=True))
        self._h2.initiate_connection()
        self._transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    self._respond(event.stream_id, dict(event.headers))
                elif isinstance(event, DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except ProtocolError:
            self._transport.close()
            return
        self._transport.write(self._h2.data_to_send())

    def _respond(self, stream: int, head: dict[str, str]) -> None:
        path = head[":path"]
        self._server.requested[path] += 1
        self._server.heads.append(head)
        first = self._server.requested[path] == 1
        if path == "/refused" or (path == "/refused-once" and first):
            self._h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        elif path == "/cancelled":
            self._h2.reset_stream(stream, ErrorCodes.CANCEL)
        elif path == "/left-at-once" and first:
            self._h2.close_connection(last_stream_id=0)
            self._transport.write(self._h2.data_to_send())
            self._transport.close()
        elif path == "/cut":
            self._h2.send_headers(stream, [(":status", "200"), ("content-length", "5000")])
            self._h2.send_data(stream, BODY)
            self._h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
        elif path == "/headers":
            lines = [(f"x-{number}", "0123456789" * 10) for number in range(5_000)]
            self._h2.send_headers(stream, [(":status", "200"), *lines], end_stream=True)
        else:
            self._h2.send_headers(stream, [(":status", "200")])
            self._h2.send_data(stream, BODY, end_stream=True)
            if path == "/left-afterwards":
                self._h2.close_connection()


@asynccontextmanager
async def http2_server(context: ssl.SSLContext | None) -> AsyncIterator[Http2Server]:
    """The server, listening until the context ends."""
    server = Http2Server()
    listener = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def make_certificate(folder: Path, name: str) -> Path:
    """A PEM file with a key and a self-signed certificate for localhost and 127.0.0.1."""
    path, key, certificate = (folder / f"{name}{ending}" for ending in (".pem", ".key", ".crt"))
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN={name} -addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
        "-addext basicConstraints=critical,CA:FALSE"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    path.write_bytes(key.read_bytes() + certificate.read_bytes())
    return path


def server_context(certificate: Path, *, alpn: str | None = "h2", client: Path | None = None) -> ssl.SSLContext:
    """The TLS context of a server; with `client` it accepts only clients with that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    if client is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client)
    return context
