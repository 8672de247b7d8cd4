"""Hosts of a test: network namespaces with a name and one link each. They end with the test's process at the latest."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.live.shell import Shell
from tests.servers.links import Link, Router

NETWORK = "10.77.0.0/24"
_TUN = "/dev/net/tun"
# From linux/if_tun.h and linux/sched.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET, _CLONE_NEWUTS = 0x40000000, 0x04000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class NoHosts(Exception):
    """Hosts cannot be made here."""


@dataclass(slots=True, eq=False)
class Host:
    """A host. `shell` starts commands on it, in a folder that all hosts share."""

    name: str
    address: str
    link: Link
    shell: Shell
    _namespaces: tuple[int, int]

    async def vanish(self) -> None:
        """It is gone at once: nothing that it sends or that is sent to it arrives, and its processes are dead."""
        self.link.up = False
        await self.shell.kill_rest()

    def enter(self) -> None:
        """Move the calling thread to this host: what it starts and where it listens is there."""
        for descriptor in self._namespaces:
            _checked(_LIBC.setns(descriptor, 0), "setns")

    def close(self) -> None:
        """Forget the namespaces: they end with the last process in them."""
        for descriptor in self._namespaces:
            os.close(descriptor)


class Hosts:
    """Makes hosts, which reach each other by way of `router`. `made` are those that there are."""

    def __init__(self, folder: Path, router: Router) -> None:
        self.router = router
        self._folder = folder
        self.made: list[Host] = []

    def add(self, name: str) -> Host:
        """Make a host. Raises NoHosts."""
        address = NETWORK.replace("0/24", str(len(self.made) + 1))
        device, *namespaces = _in_thread(lambda: _new_namespaces(name, address))
        link = Link(socket.inet_aton(address), device)
        self.router.add(link)
        paths = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in namespaces]
        shell = Shell(self._folder, on_host=("nsenter", f"--net={paths[0]}", f"--uts={paths[1]}", "--"))
        host = Host(name, address, link, shell, (namespaces[0], namespaces[1]))
        self.made.append(host)
        return host

    async def close(self) -> None:
        """Kill what runs on the hosts, and remove them."""
        for host in self.made:
            await host.shell.kill_rest()
        self.router.close()
        for host in self.made:
            host.close()


@asynccontextmanager
async def new_hosts(folder: Path, seed: int = 1) -> AsyncIterator[Hosts]:
    """A network without hosts yet; all that were made are gone at its end. Raises NoHosts."""
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or not Path(_TUN).exists():
        raise NoHosts(f"hosts in network namespaces need root, {_TUN}, and the programs ip and nsenter")
    hosts = Hosts(folder, Router(seed))
    hosts.router.start()
    try:
        yield hosts
    finally:
        await hosts.close()


def _new_namespaces(name: str, address: str) -> Sequence[int]:
    """Move this thread to new namespaces with a link of this address; returns its device and the namespaces, open."""
    _checked(_LIBC.unshare(_CLONE_NEWNET | _CLONE_NEWUTS), "unshare")
    socket.sethostname(name)
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI))
    for words in ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"):
        subprocess.run(["ip", *words.split()], check=True)
    return device, *(os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "uts"))


def _in_thread(call: Callable[[], Sequence[int]]) -> Sequence[int]:
    """Call it in a thread of its own, which ends: it may leave the namespaces of this process. Raises NoHosts."""
    results: list[Sequence[int]] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except (OSError, subprocess.CalledProcessError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="new host")
    thread.start()
    thread.join()
    if errors:
        raise NoHosts(f"no host in network namespaces can be made here: {errors[0]}")
    return results[0]


def _checked(result: int, name: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
