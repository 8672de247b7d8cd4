"""Requests wait here, in a line for each upstream; lanes take those whose upstream has room, a slot and no pause.

A lane is never held by an upstream that cannot be asked now: at most for the 200 ms that slots are booked ahead. So a
slow, paused or broken upstream takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator
from functools import partial

from coordinator.limiter import Limiter
from coordinator.model import Presence
from crawler.page import Request
from crawler.share import Standing
from crawler.slots import Slots

# Requests that wait in a worker, at most. What an upstream cannot take before that goes to the delayed set.
MOST_WAITING = 10_000
SPILLED_FOR = 30.0
# So many seconds of an upstream's rate count as work at hand; the rest of its line keeps no lane busy.
SECONDS_AT_HAND = 2.0
# With so many at hand nothing more is claimed, also when the line of a busy upstream has run dry: it may be over.
ENOUGH_WHEN_DRY = 2_000


class Line:
    """The requests of one upstream, in order, and the slots booked for them."""

    __slots__ = (
        *("at_hand", "inside", "listed", "most_at_hand", "name", "paused", "room", "slots", "surveyed", "taken"),
        "waiting",
    )

    def __init__(self, name: str, lines: Lines, limiter: Limiter) -> None:
        self.name = name
        self.waiting: deque[Request] = deque()
        self.slots = Slots(limiter, name, wanted=partial(lines.wanted, self), booked=partial(lines.booked, self))
        self.inside = 0
        self.taken = 0
        self.at_hand = 0
        self.surveyed = False
        self.room: int | None = None
        self.most_at_hand: int | None = None
        self.listed = False
        self.paused: asyncio.TimerHandle | None = None


class Lines:
    """All lines of one worker. `listed` lines are worth a look; an event that may let a request leave lists its line.

    `enough` is how many requests should be at hand: below it, the intake claims another block.
    """

    def __init__(self, limiter: Limiter, *, enough: int) -> None:
        self._limiter = limiter
        self._enough = enough
        self._standing = Standing()
        self._lines: dict[str, Line] = {}
        self._listed: deque[Line] = deque()
        self._lanes: deque[asyncio.Future[None]] = deque()  # those that found nothing
        self._parked = 0
        self._waiting = 0
        self._at_hand = 0
        self._dry = False  # since the last block a busy upstream's line came to its end
        self._low = asyncio.Event()
        limiter.on_change = self.look

    def put(self, request: Request, delay: float = 0.0) -> None:
        """Take a request; with a delay it comes first in its line after so many seconds."""
        if delay > 0:
            self._parked += 1
            asyncio.get_running_loop().call_later(delay, self._return, request)
            return
        line = self._line(request.upstream)
        self._dry = self._dry and bool(request.tries.total)
        # One that was tried before has waited already.
        (line.waiting.appendleft if request.tries.total else line.waiting.append)(request)
        self._waiting += 1
        self._count(line)
        if not line.paused:
            self._list(line)

    async def next(self) -> Request:
        """The next request that may leave, now; tell `arrived` when it is back. Cancel it at any time."""
        while True:
            taken = self._take()
            if taken is None:
                await self._idle()
                continue
            line, request, slot = taken
            try:
                if slot is None or await line.slots.reached(slot):
                    return request
            except asyncio.CancelledError:
                self._give_back(line, request)
                raise
            self._give_back(line, request)

    def arrived(self, upstream: str) -> None:
        """A request to this upstream is over."""
        line = self._lines[upstream]
        line.inside -= 1
        if line.waiting:
            self._list(line)
        else:
            self._forget(line)

    def resize(self, presence: Presence) -> None:
        """Take this worker's share of each upstream's concurrency."""
        self._standing = self._standing.moved(presence.rank, presence.size, presence.turn)
        self.look()

    def look(self) -> None:
        """Something changed that may let requests leave: look at every line."""
        for line in list(self._lines.values()):
            line.surveyed = False
            line.slots.hurry()
            if line.paused and self._limiter.resumes(line.name) <= self._limiter.clock():
                self._resumed(line)  # earlier than was said: a probe closed the breaker
            elif line.waiting:
                self._list(line)

    def shut(self, upstream: str) -> bool:
        """Whether one more request to this upstream would only wait: it pauses, we have no share, or enough in line."""
        line = self._lines.get(upstream)
        if line is not None and len(line.waiting) > line.at_hand:
            return True
        return self._limiter.resumes(upstream) > self._limiter.clock() or self._share(upstream) == 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits here, and nothing that left is under way."""
        return not (self._lines or self._parked)

    @property
    def at_hand(self) -> int:
        """Requests that could leave within a moment."""
        return self._at_hand

    @property
    def low(self) -> bool:
        """Whether another block is wanted: too little is at hand, or what there is leaves a busy upstream idle."""
        return self._at_hand < self._enough or (self._dry and self._at_hand < ENOUGH_WHEN_DRY)

    async def until_low(self) -> None:
        """Return when `low` holds."""
        while not self.low:
            self._low.clear()
            await self._low.wait()

    def spilled(self) -> Iterator[tuple[Request, float]]:
        """When too many wait: half of the longest line from its end, and for how many seconds each is put off."""
        if self._waiting + self._parked < MOST_WAITING or not self._waiting:
            return
        line = max(self._lines.values(), key=lambda line: len(line.waiting))
        pause = max(0.0, self._limiter.resumes(line.name) - self._limiter.clock())
        for _ in range(-(-len(line.waiting) // 2)):
            self._waiting -= 1
            yield line.waiting.pop(), pause + SPILLED_FOR * (1.0 + random.random())
        self._count(line)
        self._forget(line)

    # -- taking

    def _take(self) -> tuple[Line, Request, float | None] | None:
        """A request and its slot, from the listed lines in turn; lines where nothing may leave are unlisted."""
        while self._listed:
            line = self._listed.popleft()
            line.listed = False
            if not line.waiting or not self._open(line):
                continue
            slot = None
            if self._limiter.rated(line.name) and (slot := line.slots.take()) is None:
                line.slots.book()
                continue
            request = line.waiting.popleft()
            line.inside += 1
            self._waiting -= 1
            self._count(line)
            line.taken += 1
            if line.waiting:
                self._list(line)
            elif line.taken >= self._enough:
                self._dry = True
                self._low.set()
            if self._listed:
                self._wake()
            return line, request, slot
        return None

    def _open(self, line: Line) -> bool:
        """Whether the upstream is neither paused nor full; what will let requests leave again lists the line."""
        if (wait := self._limiter.resumes(line.name) - self._limiter.clock()) > 0:
            if not line.paused:
                line.paused = asyncio.get_running_loop().call_later(wait, self._resumed, line)
                self._count(line)
            return False
        self._survey(line)
        return line.room is None or line.inside < line.room

    def _resumed(self, line: Line) -> None:
        if line.paused:
            line.paused.cancel()
        line.paused = None
        self._count(line)
        if line.waiting:
            self._list(line)
        else:
            self._forget(line)

    def _give_back(self, line: Line, request: Request) -> None:
        line.inside -= 1
        line.waiting.appendleft(request)
        self._waiting += 1
        self._count(line)
        self._list(line)

    def _return(self, request: Request) -> None:
        self._parked -= 1
        self.put(request)

    # -- slots

    def wanted(self, line: Line) -> int:
        """How many slots this line could use now: for the lanes that are free, one at least."""
        if not line.waiting:
            return 0
        room = self._share(line.name)
        free = len(self._lanes) if room is None else min(len(self._lanes), room - line.inside)
        return max(1, min(free, len(line.waiting)))

    def booked(self, line: Line, error: BaseException | None) -> None:
        """The line has slots, or nothing that waits for one; an error reaches the lanes."""
        line.surveyed = False
        if error is not None:
            self._fail(error)
            self._list(line)  # a lane that is busy now tries again, and learns of it then
        elif line.waiting:
            self._list(line)
        else:
            self._forget(line)

    def _fail(self, error: BaseException) -> None:
        for lane in self._lanes:
            if not lane.done():
                lane.set_exception(error)

    async def close(self) -> None:
        """Stop booking."""
        for line in self._lines.values():
            line.slots.close()

    # -- lanes that wait, lines that are listed

    async def _idle(self) -> None:
        lane: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes.append(lane)
        try:
            await lane
        except asyncio.CancelledError:
            if lane.done() and not lane.cancelled():
                self._wake()  # another lane takes what this one was woken for
            raise

    def _wake(self) -> None:
        while self._lanes:
            lane = self._lanes.popleft()
            if not lane.done():
                lane.set_result(None)
                return

    def _list(self, line: Line) -> None:
        if not line.listed:
            line.listed = True
            self._listed.append(line)
            self._wake()

    def _line(self, upstream: str) -> Line:
        line = self._lines.get(upstream)
        if line is None:
            line = self._lines[upstream] = Line(upstream, self, self._limiter)
        return line

    def _forget(self, line: Line) -> None:
        """A crawl over a million hosts must not remember them all."""
        if not (line.waiting or line.inside or line.slots.booking or line.paused):
            del self._lines[line.name]

    def _share(self, upstream: str) -> int | None:
        limit = self._limiter.concurrency(upstream)
        return None if limit is None else self._standing.share(limit)

    def _survey(self, line: Line) -> None:
        """What the limiter says of the line's upstream, asked again only after it may have changed."""
        if line.surveyed:
            return
        line.surveyed = True
        line.room = self._share(line.name)
        bounds = [] if line.room is None else [4 * line.room]
        if (rate := self._limiter.rate(line.name)) is not None:
            bounds.append(max(1, int(rate * SECONDS_AT_HAND)))
        line.most_at_hand = min(bounds, default=None)

    def _count(self, line: Line) -> None:
        """Keep count of what is at hand: of each line only what its upstream takes within a moment."""
        at_hand = len(line.waiting)
        if line.paused:
            at_hand = 0
        elif at_hand:
            self._survey(line)
            if line.most_at_hand is not None and at_hand > line.most_at_hand:
                at_hand = line.most_at_hand
        self._at_hand += at_hand - line.at_hand
        line.at_hand = at_hand
        if self._at_hand < self._enough:
            self._low.set()
