"""Links between hosts of a test: each packet of theirs comes by here, and may be delayed, lost or withheld.

A link is a TUN device, so the packets are those of real TCP, which waits for what is delayed and repeats what is lost.
The kernel's own means (`tc netem`) are not in every kernel.
"""

from __future__ import annotations

import os
import random
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import monotonic

PACKET_BYTES = 2048
TCP = 6
# Between two looks whether the links are closed, when no packet comes.
IDLE_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class Link:
    """The only link of a host; a test may change it at any time.

    `device` is the open TUN device, `address` its IPv4 address in four bytes. Packets in both directions wait `delay`
    seconds, and a part `loss` of them is lost. `blocked` are the TCP ports that the host cannot reach. A link that is
    not `up` carries nothing; it goes down by itself when `fails_at` says so of a packet that the host sends.
    """

    address: bytes
    device: int
    delay: float = 0.0
    loss: float = 0.0
    blocked: frozenset[int] = frozenset()
    up: bool = True
    fails_at: Callable[[bytes], bool] | None = None

    def passes(self, packet: bytes) -> bool:
        """Whether it carries this packet, unless that is lost."""
        return self.up and not (self.blocked and packet[9] == TCP and self.blocked.intersection(ports_of(packet)))


@dataclass(slots=True)
class Router:
    """Carries packets between the links, in a thread; `carried` and `dropped` count them."""

    seed: int
    carried: int = 0
    dropped: int = 0
    _links: dict[bytes, Link] = field(default_factory=dict)
    _by_device: dict[int, Link] = field(default_factory=dict)
    _poll: select.epoll = field(default_factory=select.epoll)
    _waiting: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def add(self, link: Link) -> None:
        """Carry packets from and to this link too."""
        self._links[link.address] = link
        self._by_device[link.device] = link
        self._poll.register(link.device, select.EPOLLIN)

    def start(self) -> None:
        """Begin to carry packets."""
        self._thread = threading.Thread(target=self._carry, name="router")
        self._thread.start()

    def close(self) -> None:
        """Carry nothing more, and close the devices."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._poll.close()
        for device in self._by_device:
            os.close(device)

    def _carry(self) -> None:
        chance = random.Random(self.seed).random
        while not self._ended.is_set():
            wait = self._waiting[0][0] - monotonic() if self._waiting else IDLE_SECONDS
            for device, _ in self._poll.poll(min(max(wait, 0.0), IDLE_SECONDS)):
                self._receive(self._by_device[device], chance)
            now = monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, device, packet = heappop(self._waiting)
                os.write(device, packet)

    def _receive(self, source: Link, chance: Callable[[], float]) -> None:
        """Take the packets that a host sends now."""
        while True:
            try:
                packet = os.read(source.device, PACKET_BYTES)
            except BlockingIOError:
                return
            target = self._links.get(packet[16:20])
            if target is None:  # IPv6, and broadcasts
                continue
            if source.fails_at is not None and source.fails_at(packet):
                source.up = False
            if chance() < source.loss + target.loss or not (source.passes(packet) and target.passes(packet)):
                self.dropped += 1
                continue
            self.carried += 1
            due = monotonic() + source.delay + target.delay
            heappush(self._waiting, (due, self.carried, target.device, packet))


def ports_of(packet: bytes) -> tuple[int, int]:
    """Source and destination port of an IPv4 packet of TCP."""
    header = 4 * (packet[0] & 15)
    return int.from_bytes(packet[header : header + 2]), int.from_bytes(packet[header + 2 : header + 4])
