"""A worker's end of its parser process: starts it, keeps it fed, and finds the request that it dies of."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, cast

from coordinator.errors import ShardcrawlError
from coordinator.tasks import cancel_and_wait
from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.pool.protocol import LENGTH, ParseResult, ParserSetup, ParseTask, frame, stuck, value_of

logger = logging.getLogger(__name__)

# Requests that the child has or that wait in its socket: it need not wait for this loop between two.
AHEAD = 32
# Answers are taken by the half of what the child has, after this many seconds at most: a loop that wakes for each of
# them, and then lets one lane send one request, takes three times as much from the core that the child could use.
LONGEST_REST = 0.1
REST_SHARE = 0.8  # less than the whole, so that the time they take is still seen
# In the loop a parse of a tenth of this cost the worker its lease.
MOST_SECONDS = 60.0
LENIENCE = 0.02  # of that; to move the deadline for each answer would cost more than to take the answer
MOST_STARTS = 3
MOST_DEATHS = 2
END_WITHIN = 2.0


class CannotStart(ShardcrawlError):
    """The parser cannot be run in a process of its own."""


class _Call:
    """One response on its way through the child."""

    __slots__ = ("deaths", "http_response", "task")

    def __init__(self, task: ParseTask) -> None:
        self.task = task
        self.http_response: asyncio.Future[list[ParseResult] | str] = asyncio.get_running_loop().create_future()
        self.deaths = 0

    def end(self, http_response: list[ParseResult] | str) -> None:
        if not self.http_response.done():  # else its lane was cancelled
            self.http_response.set_result(http_response)


class Pool:
    """Parses in one child process, in order. The one request that it dies of is tried once more, alone."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._limit: asyncio.Timeout | None = None
        self._deaths = 0
        self._closing = False

    async def parsed(self, pages: list[Page], url: str, http_response: HttpResponse) -> list[Page]:
        """Give the pages what the parser makes of the answer, as Hook.apply does. Raises CannotStart."""
        keys = [page.item.key for page in pages]
        call = _Call(ParseTask(keys, url, http_response.status, http_response.headers.items(), http_response.body))
        self._waiting.append(call)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve(), name="parser")
        self._feed()
        told = await call.http_response
        if isinstance(told, str):
            for page in pages:
                page.fail(told)
        else:
            _assign(pages, told)
        return pages

    async def close(self) -> None:
        """End the child and wait for it; what it still parses is dropped."""
        self._closing = True
        if self._serving is not None:
            if self._writer is not None:
                self._writer.transport.abort()
                await asyncio.wait([self._serving], timeout=2 * END_WITHIN)
            await cancel_and_wait([self._serving])

    async def _serve(self) -> None:
        """One child after another as long as there is something to parse."""
        try:
            while self._waiting:
                ending = await self._live()
                if self._closing:
                    return
                self._deaths += 1
                level = logging.WARNING if self._deaths == 1 else logging.DEBUG  # the keys' reasons tell of the others
                logger.log(level, "the parser's process %s; starts again", ending)
                self._blame(ending)
        except CannotStart as error:
            self._abandon(error)
        except Exception as error:
            self._abandon(error)
            raise
        finally:
            self._abandon()

    def _abandon(self, error: Exception | None = None) -> None:
        """Nobody will answer what is here: its lanes hear of the error, or are cancelled."""
        for call in (*self._sent, *self._waiting):
            if call.http_response.done():
                continue
            if error is None:
                call.http_response.cancel()
            else:
                call.http_response.set_exception(error)
        self._sent.clear()
        self._waiting.clear()

    async def _live(self) -> str:
        """One child's life; returns how it ended."""
        process, reader, writer = await self._started()
        self._writer = writer
        channel = cast("asyncio.Transport", writer.transport)
        hung = False
        try:
            async with asyncio.timeout(None) as self._limit:
                self._feed()
                pace = 0.0
                while True:
                    half = max(1, len(self._sent) // 2)
                    began = monotonic()
                    if half > 1:
                        channel.pause_reading()
                        await asyncio.sleep(min(LONGEST_REST, REST_SHARE * half * pace))
                        channel.resume_reading()
                    for _ in range(half):
                        told = await _received(reader)
                        self._sent.popleft().end(told)
                        self._expect()
                    pace = (monotonic() - began) / half
                    self._feed()
        except TimeoutError:
            hung = True
        except (EOFError, OSError):
            pass
        finally:
            self._writer = self._limit = None
            await _ended(process, writer)
        return f"gave no answer within {MOST_SECONDS:.0f} s" if hung else _ending(process.returncode or 0)

    async def _started(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
        """A child that has imported the parser. Raises CannotStart."""
        for number in range(1, MOST_STARTS + 1):
            try:
                process, reader, writer = await _spawned()
            except OSError as error:
                words = str(error.strerror or error)
            else:
                words = ""
                try:
                    level = logging.getLevelName(logging.getLogger().level)
                    writer.write(frame(ParserSetup(self._job, level)))
                    async with asyncio.timeout(MOST_SECONDS):
                        words = await _received(reader)
                    if words is None:
                        return process, reader, writer
                except (EOFError, OSError):  # TimeoutError is one
                    words = ""
                finally:
                    if words is not None:
                        await _ended(process, writer)
                words = words or f"it {_ending(process.returncode or 0)} at its start"
            logger.debug("start %d of a parser's process: %s", number, words)
        raise CannotStart(words)

    def _feed(self) -> None:
        """Send what the child may have: nothing beside a request of which a child has died."""
        if self._writer is None:
            return
        while self._waiting and len(self._sent) < AHEAD and not (self._sent and self._sent[0].deaths):
            if self._waiting[0].deaths and self._sent:
                return
            call = self._waiting.popleft()
            if call.http_response.done():
                continue
            self._sent.append(call)
            self._writer.write(frame(call.task))
            if len(self._sent) == 1:
                self._expect()

    def _expect(self) -> None:
        """The child has begun the first of what was sent. Its time may be counted from a little earlier."""
        assert self._limit is not None
        now, ends = asyncio.get_running_loop().time(), self._limit.when()
        if not self._sent:
            self._limit.reschedule(None)
        elif ends is None or now + MOST_SECONDS - ends > LENIENCE * MOST_SECONDS:
            self._limit.reschedule(now + MOST_SECONDS)

    def _blame(self, ending: str) -> None:
        """The child died of the first request that it had not answered: the others are sent again."""
        if self._sent:
            self._sent[0].deaths += 1
            if self._sent[0].deaths == MOST_DEATHS:
                self._sent.popleft().end(f"parse: its process {ending}, {MOST_DEATHS} times")
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()


def _assign(pages: Sequence[Page], told: Sequence[ParseResult]) -> None:
    for page, one in zip(pages, told, strict=True):
        try:
            records = value_of(one.records)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            page.fail(stuck(error))
            continue
        if one.emptied:
            page.fail(one.reason or "")
        else:
            page.outcome, page.reason, page.records = one.outcome, one.reason, records


async def _spawned() -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crawler.pool.child", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )
        return process, *(await asyncio.open_unix_connection(sock=ours))
    except BaseException:
        ours.close()  # a child that was started leaves when it sees that
        raise


async def _received(reader: asyncio.StreamReader) -> Any:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return value_of(await reader.readexactly(length))


async def _ended(process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
    """Close the socket, which tells an idle child to leave; kill one that does not."""
    writer.transport.abort()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_WITHIN)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
