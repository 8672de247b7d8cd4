"""A worker's parser process: `python -m crawler.pool.child FD` parses what comes over a socket, one after another."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from select import poll
from time import sleep
from typing import Any, BinaryIO

from coordinator.errors import ShardcrawlError
from coordinator.model import EntryId, Outcome, ShardId
from crawler.model import HttpResponse, Item, OpenBlock, Page
from crawler.parse import hook
from crawler.pool.protocol import LENGTH, ParseResult, ParserSetup, ParseTask, content, frame, stuck, value_of
from crawler.telemetry import logs

# Seconds that a parse may go on when nobody waits for it any more.
GRACE = 1.0
_NOWHERE = OpenBlock(ShardId(0), EntryId(""), 0, 0)
_KEPT = "kept"


class _Headers:
    """Headers of a response that another process received."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        self._items = items

    def get(self, name: str) -> str | None:
        wanted = name.lower()
        return next((value for key, value in self._items if key == wanted), None)

    def has(self, names: Iterable[str]) -> bool:
        wanted = set(names)
        return any(key in wanted for key, _ in self._items)

    def items(self) -> list[tuple[str, str]]:
        return list(self._items)


def main() -> None:
    """Parse until the worker closes its end, or is gone; signals that ask for a drain are the worker's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    threading.Thread(target=_leave_with, args=(channel,), daemon=True).start()
    try:
        _serve(channel.makefile("rb"), channel)
    except (BrokenPipeError, ConnectionResetError):
        return


def parsed(parser: hook.Hook, task: ParseTask) -> list[ParseResult]:
    """What the parser makes of one response, key by key."""
    pages = [Page(Item(key, b"", _NOWHERE), None, Outcome.STORED, etag=_KEPT) for key in task.keys]
    parser.apply(pages, task.url, HttpResponse(task.status, _Headers(task.headers), task.body))
    return [_result_of(page) for page in pages]


def _result_of(page: Page) -> ParseResult:
    try:
        records = content(page.records)
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
        page.fail(stuck(error))
        records = content([])
    return ParseResult(page.outcome, page.reason, page.etag is None, records)


def _serve(incoming: BinaryIO, channel: socket.socket) -> None:
    setup: ParserSetup = _next(incoming)
    logs.configure("parser", setup.level)
    try:
        parser = hook.load(setup.job)
    except ShardcrawlError as error:
        channel.sendall(frame(str(error)))
        return
    assert parser is not None
    channel.sendall(frame(None))
    while (task := _next(incoming)) is not None:
        channel.sendall(frame(parsed(parser, task)))


def _next(incoming: BinaryIO) -> Any:
    """The next frame's value; None when the other end is closed."""
    head = incoming.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    inside = incoming.read(length)
    return value_of(inside) if len(inside) == length else None


def _leave_with(channel: socket.socket) -> None:
    """End this process when the other end is closed, even in the midst of a parse that never ends."""
    waiting = poll()
    waiting.register(channel, 0)  # told of a hang-up only
    waiting.poll()
    sleep(GRACE)
    os._exit(0)


if __name__ == "__main__":
    main()
