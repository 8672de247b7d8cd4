"""The requests of one upstream that wait in a worker, and the decision whether the first of them may leave now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from coordinator.limits.limiter import Limiter
from crawler.model import Request
from crawler.pipeline.pacer import Pacer

# Of a queue with a rate, the requests that leave within this time are at hand; the rest keeps no lane busy now.
AT_HAND_SECONDS = 2
# Of a queue with a limit on concurrency, this many requests are at hand for each one that may be in flight.
AT_HAND_PER_ROOM = 4


# Why no request of a queue may leave now. Strings, because members of an Enum are slower and `pick` runs per request.
Hold: TypeAlias = Literal["empty", "paused", "full", "no slot"]


class UpstreamQueue:
    """The requests of one upstream in order, and what bounds them: pause, room and slots.

    Nothing here waits, or wakes a lane. `pick` decides, and the scheduler carries out what follows:

                    put
        forgotten -------> ready --- pick: a request leaves ---> ready while others wait, else idle
            ^              |   ^
            |              |   |
            |      pick: nothing may leave
            |              |   |
            |              v   +---------------------------------------------+
            |            idle               until the next put               |
            |            paused             until the pause, or the open     |
            |              |                breaker, ends: a timer           |
            |              |                or a change of the limits        | then the scheduler
            |            full               until a request comes back,      | makes it ready
            |              |                or the room grows                |
            |            waiting for slots  until the pacer has some         |
            |              |                                                 |
            +--------------+                a request that is given back ----+
             nothing waits, nothing is in flight, no slots are being reserved, no timer runs

    `ready` says that the queue is in the scheduler's list. A request is `in_flight` from `pick` until it is finished
    or given back. `room` is how many may be in flight, None without a bound.
    """

    __slots__ = (
        *("_free_lanes", "_limiter", "_limits_are_known", "_most_at_hand", "_room_at"),
        *("at_hand", "in_flight", "name", "pacer", "pause_timer", "picked", "ready", "room", "waiting"),
    )

    def __init__(
        self,
        name: str,
        limiter: Limiter,
        *,
        room_at: Callable[[str], int | None],
        free_lanes: Callable[[], int],
        on_reserved: Callable[[UpstreamQueue, BaseException | None], None],
    ) -> None:
        """`room_at` says how many requests this worker may have in flight at an upstream, None without a limit.
        `free_lanes` says how many lanes wait for a request. `on_reserved` is called as Pacer says, with this queue
        before the error.
        """
        self.name = name
        self.waiting: deque[Request] = deque()
        self.in_flight = 0
        self.picked = 0
        self.at_hand = 0
        self.room: int | None = None
        self.ready = False
        self.pause_timer: asyncio.TimerHandle | None = None
        self.pacer = Pacer(limiter, name, wanted=self._wanted_slots, on_reserved=partial(on_reserved, self))
        self._limiter = limiter
        self._room_at = room_at
        self._free_lanes = free_lanes
        self._most_at_hand: int | None = None
        self._limits_are_known = False

    def pick(self) -> tuple[Request, float | None] | Hold:
        """Take the first request, and the slot for which it must wait, when it may leave now; else say why not."""
        if not self.waiting:
            return "empty"
        limiter, name = self._limiter, self.name
        if limiter.resumes_at(name) > limiter.clock():
            return "paused"
        if not self._limits_are_known:
            self._read_limits()
        if self.room is not None and self.in_flight >= self.room:
            return "full"
        slot = None
        if limiter.needs_slots(name) and (slot := self.pacer.take_slot()) is None:
            return "no slot"
        self.in_flight += 1
        self.picked += 1
        return self.waiting.popleft(), slot

    def give_back(self, request: Request) -> None:
        """Put a picked request, which was not sent, back to the front."""
        self.in_flight -= 1
        self.waiting.appendleft(request)

    def limits_changed(self) -> None:
        """Read the limits again before the next decision."""
        self._limits_are_known = False

    def recount(self) -> int:
        """Count again how many requests are at hand, which could leave within a moment. Returns the change."""
        at_hand = len(self.waiting)
        if self.pause_timer is not None:
            at_hand = 0
        elif at_hand:
            if not self._limits_are_known:
                self._read_limits()
            if self._most_at_hand is not None and at_hand > self._most_at_hand:
                at_hand = self._most_at_hand
        change = at_hand - self.at_hand
        self.at_hand = at_hand
        return change

    @property
    def forgettable(self) -> bool:
        """Whether the scheduler no longer needs this queue."""
        return not (self.waiting or self.in_flight or self.pacer.reserving or self.pause_timer)

    def _read_limits(self) -> None:
        self._limits_are_known = True
        self.room = self._room_at(self.name)
        bounds = [] if self.room is None else [AT_HAND_PER_ROOM * self.room]
        if (rate := self._limiter.rate(self.name)) is not None:
            bounds.append(max(1, int(rate * AT_HAND_SECONDS)))
        self._most_at_hand = min(bounds, default=None)

    def _wanted_slots(self) -> int:
        """How many slots could be used now: one for each free lane, as far as there is room, and one at least."""
        if not self.waiting:
            return 0
        room, free = self._room_at(self.name), self._free_lanes()
        if room is not None:
            free = min(free, room - self.in_flight)
        return max(1, min(free, len(self.waiting)))
