"""A child process as its worker sees it: start, send, receive, end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, cast

from coordinator.errors import ShardcrawlError
from crawler.pool import child as child_module
from crawler.pool.protocol import LENGTH, OUT_OF_MEMORY, ChildSetup, frame, unpickled

# How long an idle child has to exit before it is killed.
EXIT_SECONDS = 2.0


class ChildUnusable(ShardcrawlError):
    """No child could be started, or its handler cannot be used there."""


class ChildProcess:
    """One child and the socket to it."""

    __slots__ = ("_channel", "_process", "_reader", "_writer")

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._channel = cast("asyncio.Transport", writer.transport)

    @classmethod
    async def start(cls, setup: ChildSetup, seconds: float) -> ChildProcess:
        """Start a child, and wait at most `seconds` until its handler is ready. Raises ChildUnusable."""
        try:
            child = await cls.spawn()
        except OSError as error:
            raise ChildUnusable(str(error.strerror or error)) from error
        try:
            child.send(setup)
            async with asyncio.timeout(seconds):
                refusal: str | None = await child.receive()
        except (EOFError, OSError):  # TimeoutError is one
            refusal = ""
        except BaseException:
            await child.end()
            raise
        if refusal is None:
            return child
        ending = await child.end()
        raise ChildUnusable(refusal or f"it {ending} at its start")

    @classmethod
    async def spawn(cls) -> ChildProcess:
        """Start a child, which waits for its ChildSetup. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", child_module.__name__, str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                )
            return cls(process, *(await asyncio.open_unix_connection(sock=ours)))
        except BaseException:
            ours.close()  # a child that was started sees this and exits
            raise

    def send(self, value: Any) -> None:
        """Put a frame with this value into the socket's buffer; a child that has ended gets nothing."""
        if not self._channel.is_closing():  # else `receive` raises, and uvloop would raise RuntimeError here
            self._writer.write(frame(value))

    def pause_receiving(self) -> None:
        """Leave results in the socket."""
        if not self._channel.is_closing():
            self._channel.pause_reading()

    def resume_receiving(self) -> None:
        """Take results out of the socket again."""
        if not self._channel.is_closing():
            self._channel.resume_reading()

    def abort(self) -> None:
        """Close the socket: `receive` raises, and the child exits when it is idle."""
        self._channel.abort()

    async def receive(self) -> Any:
        """The value of the next frame. Raises EOFError or OSError when the child has ended."""
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return unpickled(await self._reader.readexactly(length))

    async def end(self) -> str:
        """Close the socket, which makes an idle child exit, and kill one that does not; returns how it ended."""
        self.abort()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        code = self._process.returncode or 0
        if code == OUT_OF_MEMORY:
            return "ran out of memory"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
