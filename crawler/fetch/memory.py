"""The memory that large bodies may take in one worker, from their first bytes until their pages wait for the commit."""

from __future__ import annotations

from coordinator.tasks import WaitingTasks

# A smaller body is not counted: there is room for one in each lane, beside the buffers of its connection.
SMALL_BODY_BYTES = 64 * 1024
UNBOUNDED_BYTES = 1 << 50


class BodyMemory:
    """So many bytes for bodies, of which none has more than `largest`.

    A body takes them as it grows, and waits while there are too few. If all waited none would ever end, so `largest`
    bytes are kept for one of them: that one does not wait. `short`: a body waits. Then no other request should be sent,
    whose body would wait too.
    """

    def __init__(self, size: int = UNBOUNDED_BYTES, largest: int = 0) -> None:
        self._free = max(0, size - largest)
        self._kept_is_free = True
        self.short = False
        self._growing = WaitingTasks()
        self._beginning = WaitingTasks()

    async def until_free(self) -> None:
        """Return when no body waits."""
        while self.short:
            await self._beginning.wait()

    def has(self, size: int) -> bool:
        """Whether a body may take so many bytes now."""
        return size <= self._free and not self.short

    async def grow(self, body: HeldBody, size: int) -> None:
        """Take bytes for a body; `body.waited` says whether that took a while."""
        while not body.has_kept:
            if size <= self._free:
                self._free -= size
                body.taken += size
                return
            if self._kept_is_free:
                self._kept_is_free, body.has_kept = False, True
                return
            body.waited = self.short = True
            await self._growing.wait()

    def give_back(self, body: HeldBody, size: int, *, ended: bool) -> None:
        """Free bytes of a body, and all of the kept ones when it has ended; those that wait look again."""
        self._free += size
        body.taken -= size
        if ended and body.has_kept:
            self._kept_is_free, body.has_kept = True, False
        self._growing.wake_all()
        self.short = False
        self._beginning.wake_all()


class HeldBody:
    """One body and the bytes that it has taken; `waited`: it had to wait for them. `has_kept`: it has those that are
    kept for one body, too.
    """

    __slots__ = ("_memory", "has_kept", "taken", "waited")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self.taken = 0
        self.waited = self.has_kept = False

    async def hold(self, size: int) -> None:
        """Wait until the body may have so many bytes altogether."""
        if size > self.taken:
            await self._memory.grow(self, size - self.taken)

    def shrink(self, size: int) -> None:
        """Give back what is more than so many bytes."""
        if size < self.taken:
            self._memory.give_back(self, self.taken - size, ended=False)

    def release(self) -> None:
        """Give back everything: the body is no longer needed. May be called again."""
        self._memory.give_back(self, self.taken, ended=True)

    def __del__(self) -> None:
        """Give back the memory of a body whose request was cancelled."""
        self.release()
