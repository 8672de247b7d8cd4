"""An HTTP/2 server on 127.0.0.1 that refuses, resets and leaves as its path says, and certificates to reach it."""

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
    """What the server saw; `port` speaks TLS or, without certificate, cleartext."""

    port: int = 0
    connections: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    heads: list[dict[str, str]] = field(default_factory=list)
    peers: list[bytes | None] = field(default_factory=list)


class _Talk(asyncio.Protocol):
    def __init__(self, seen: Http2Server) -> None:
        self._seen = seen
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._seen.connections += 1
        secured = transport.get_extra_info("ssl_object")
        self._seen.peers.append(None if secured is None else secured.getpeercert(binary_form=True))
        self._h2.initiate_connection()
        self._transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    self._answer(event.stream_id, dict(event.headers))
                elif isinstance(event, DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except ProtocolError:
            self._transport.close()
            return
        self._transport.write(self._h2.data_to_send())

    def _answer(self, stream: int, head: dict[str, str]) -> None:
        path = head[":path"]
        self._seen.asked[path] += 1
        self._seen.heads.append(head)
        first = self._seen.asked[path] == 1
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
    seen = Http2Server()
    server = await asyncio.get_running_loop().create_server(lambda: _Talk(seen), "127.0.0.1", 0, ssl=context)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()


def make_certificate(folder: Path, name: str) -> Path:
    """A PEM file with a key and a certificate of its own for localhost, which vouches for itself."""
    path, key, certificate = (folder / f"{name}{ending}" for ending in (".pem", ".key", ".crt"))
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN={name} -addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
        "-addext basicConstraints=critical,CA:FALSE"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    path.write_bytes(key.read_bytes() + certificate.read_bytes())
    return path


def server_side(certificate: Path, *, alpn: str | None = "h2", client: Path | None = None) -> ssl.SSLContext:
    """A server's side of TLS; with `client` it takes nobody but the holder of that certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    if client is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client)
    return context
