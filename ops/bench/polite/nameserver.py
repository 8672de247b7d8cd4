"""A name server on loopback that counts its queries, and a command that makes it the only one."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

PORT = 53  # resolv.conf can name no other
ADDRESS = "127.0.0.153"
_A, _IN, _RESPONSE_FLAGS = 1, 1, 0x8580


class NameServer(asyncio.DatagramProtocol):
    """Responds to the n-th query for an A record with `address_of(name, n)` and a TTL of 0; to others without a record.

    `queries` counts the A queries by name. It needs root, for its port and for `command`.
    """

    def __init__(self, address_of: Callable[[str, int], str]) -> None:
        self.queries: Counter[str] = Counter()
        self._address_of = address_of

    @staticmethod
    def possible() -> bool:
        """Whether this process may start one."""
        return os.geteuid() == 0 and shutil.which("unshare") is not None

    @staticmethod
    def command(folder: Path) -> tuple[str, ...]:
        """A command that runs its arguments where this is the only name server; its files are in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "resolv.conf"
        configuration.write_text(f"nameserver {ADDRESS}\n")
        script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, str(configuration))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(ADDRESS, PORT))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Respond to a query (RFC 1035, section 4): its header and question, and a record that points to the name."""
        labels, place = [], 12
        while size := data[place]:
            labels.append(data[place + 1 : place + 1 + size].decode("latin-1"))
            place += size + 1
        end = place + 5
        (kind,) = struct.unpack_from(">H", data, place + 1)
        record = b""
        if kind == _A:
            name = ".".join(labels).lower()
            self.queries[name] += 1
            packed = IPv4Address(self._address_of(name, self.queries[name])).packed
            record = struct.pack(">HHHIH", 0xC00C, _A, _IN, 0, 4) + packed
        head = data[:2] + struct.pack(">HHHHH", _RESPONSE_FLAGS, 1, 1 if record else 0, 0, 0)
        self._transport.sendto(head + data[12:end] + record, addr)
