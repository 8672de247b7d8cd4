"""The requests of one upstream that wait in a worker, and the decision whether the first of them may leave now; and the
list of the queues that are ready."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from coordinator.limits.limiter import Limiter
from coordinator.tasks import WaitingTasks
from crawler.model import Request
from crawler.pipeline.fair_share import SLOW_SHARE, Speed, most_lent
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
    or given back. `room` is how many may be in flight. `held`: it is ready, and must wait because too many requests of
    upstreams whose `speed` is not quick are in flight.
    """

    __slots__ = (
        *("_free_lanes", "_lanes", "_limiter", "_limits_are_known", "_most_at_hand", "_room_at"),
        *("at_hand", "held", "in_flight", "name", "speed", "pacer"),
        *("pause_timer", "picked", "ready", "room", "waiting"),
    )

    def __init__(
        self,
        name: str,
        limiter: Limiter,
        *,
        lanes: int,
        speed: Speed,
        room_at: Callable[[str], int | None],
        free_lanes: Callable[[], int],
        on_reserved: Callable[[UpstreamQueue, BaseException | None], None],
    ) -> None:
        """`lanes` is how many requests to one upstream may be in flight at most. `room_at` says how many of them are
        this worker's, None without a limit. `free_lanes` says how many lanes wait for a request.
        `on_reserved` is called as Pacer says, with this queue before the error.
        """
        self.name = name
        self.waiting: deque[Request] = deque()
        self.in_flight = 0
        self.picked = 0
        self.at_hand = 0
        self.room = lanes
        self.speed = speed
        self.ready = self.held = False
        self.pause_timer: asyncio.TimerHandle | None = None
        self.pacer = Pacer(limiter, name, wanted=self._wanted_slots, on_reserved=partial(on_reserved, self))
        self._lanes = lanes
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
        if self.in_flight >= self.room:
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

    def take_alike(self, request: Request, since: float) -> list[Request]:
        """Remove and return the requests that wait for the same host as `request`, which had no connection to it.

        Without those of which an attempt was counted after `since`. None while another request is in flight: of several
        that fail at once, only the last one speaks for the host.
        """
        if self.in_flight > 1:
            return []
        origin = request.target.origin
        alike: list[Request] = []
        others: deque[Request] = deque()
        for other in self.waiting:
            (alike if other.target.origin == origin and other.counted_at < since else others).append(other)
        if alike:
            self.waiting = others
        return alike

    def limits_changed(self) -> None:
        """Read the limits again before the next decision."""
        self._limits_are_known = False

    def recount(self) -> int:
        """Count again how many requests are at hand, which could leave within a moment. Returns the change."""
        at_hand = len(self.waiting)
        if self.pause_timer is not None or self.held:
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
    def may_leave(self) -> int:
        """About how many requests may leave now: with slots one at a time."""
        most = 1 if self.needs_slots else self.room - self.in_flight
        return max(0, min(most, len(self.waiting)))

    @property
    def needs_slots(self) -> bool:
        """Whether each request needs a slot now."""
        return self._limiter.needs_slots(self.name)

    @property
    def run_is_paused(self) -> bool:
        """Whether nothing may leave because somebody has paused the whole run."""
        return self._limiter.run_is_paused

    @property
    def held_back(self) -> tuple[int, float] | None:
        """The keys that wait because the breaker is not closed, and the seconds to the next probe; else None."""
        limiter = self._limiter
        if not limiter.is_broken(self.name):
            return None
        keys = sum(len(request.items) for request in self.waiting)
        return keys + self.in_flight, max(0.0, limiter.resumes_at(self.name) - limiter.clock())

    @property
    def forgettable(self) -> bool:
        """Whether the scheduler no longer needs this queue."""
        return not (self.waiting or self.in_flight or self.pacer.reserving or self.pause_timer)

    def _read_limits(self) -> None:
        self._limits_are_known = True
        room = self._room_at(self.name)
        self.room = self._lanes if room is None else min(room, self._lanes)
        bounds = [] if room is None else [AT_HAND_PER_ROOM * room]
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


class ReadyQueues:
    """The queues that are ready, in turn, and the lanes that wait for one. `lent` is how many lanes are lent.

    Requests to upstreams that are slow or new hold a share of the lanes while a quick upstream wants one, beside
    lanes that were lent for them. When all of these lanes have one, their queues are held: else slow upstreams would
    get every lane, one after the other. `recount` is called with a queue that becomes held, and when it no longer is.
    """

    def __init__(self, lanes: int, recount: Callable[[UpstreamQueue], None]) -> None:
        self.idle_lanes = WaitingTasks()
        self.lent = 0
        self._recount = recount
        self._quick: deque[UpstreamQueue] = deque()
        self._others: dict[UpstreamQueue, None] = {}
        self._held: dict[UpstreamQueue, None] = {}
        self._others_in_flight = 0
        self._others_share = max(1, int(SLOW_SHARE * lanes))
        self._most_others = most_lent(lanes) + self._others_share

    def __bool__(self) -> bool:
        return bool(self._quick or self._others)

    def add(self, queue: UpstreamQueue) -> None:
        """Make a queue ready, unless it is, and wake a lane for it."""
        if not queue.ready:
            queue.ready = True
            self._append(queue)

    def pop(self) -> UpstreamQueue | None:
        """Remove and return the next queue that is not held, None without one."""
        while True:
            queue = None
            if self._others_in_flight < self._most_others:
                if self._held:
                    self._release(next(iter(self._held)))
                if self._others and (not self._quick or self._others_in_flight - self.lent < self._others_share):
                    queue = next(iter(self._others))
                    del self._others[queue]
            elif self._others:
                self._hold_others()
            if queue is None:
                if not self._quick:
                    return None
                queue = self._quick.popleft()
                if queue.speed != "quick":  # it has become slow since
                    self._others[queue] = None
                    continue
            queue.ready = False
            return queue

    def count(self, queue: UpstreamQueue, change: int) -> None:
        """Take into account that a request left, 1, or came back, -1."""
        if queue.speed != "quick":
            self._others_in_flight += change
            if self._held and change < 0:
                self.idle_lanes.wake_one()

    def set_speed(self, queue: UpstreamQueue, speed: Speed) -> None:
        """Change the speed of a queue."""
        before, queue.speed = queue.speed, speed
        self._others_in_flight += ((speed != "quick") - (before != "quick")) * queue.in_flight
        if speed == "quick" and queue.held:
            self._release(queue)
        elif speed == "quick" and queue in self._others:
            del self._others[queue]
            self._append(queue)

    @property
    def lanes_wanted(self) -> int:
        """How many more lanes could be used now, for requests to upstreams that are quick or new."""
        if self.idle_lanes:
            return 0
        others = self._others if self._others_in_flight < self._most_others else ()
        return sum(queue.may_leave for queue in (*self._quick, *others) if queue.speed != "slow")

    def _hold_others(self) -> None:
        self._held |= self._others
        held, self._others = self._others, {}
        for queue in held:
            queue.held = True
            self._recount(queue)

    def _release(self, queue: UpstreamQueue) -> None:
        del self._held[queue]
        queue.held = False
        self._recount(queue)
        self._append(queue)

    def _append(self, queue: UpstreamQueue) -> None:
        if queue.speed == "quick":
            self._quick.append(queue)
        else:
            self._others[queue] = None
        self.idle_lanes.wake_one()
