"""Hosts that swallow packets: the kernel drops each SYN to a listening socket whose queue is full."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

# One connection is queued although the backlog is 0; the others make sure that the queue is full.
CONNECTIONS_TO_FILL = 3


@contextmanager
def silent_hosts(count: int) -> Iterator[list[str]]:
    """The URLs, without a path, of so many loopback addresses at which a connection is never made nor refused."""
    with ExitStack() as stack:
        urls = []
        for number in range(1, count + 1):
            listener = stack.enter_context(socket.socket())
            listener.bind((f"127.0.9.{number}", 0))
            listener.listen(0)
            for _ in range(CONNECTIONS_TO_FILL):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.connect(listener.getsockname())
            urls.append("http://{}:{}".format(*listener.getsockname()))
        yield urls
