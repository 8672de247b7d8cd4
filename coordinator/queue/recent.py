"""Found keys that this worker knows to be stored: most links name one of them, and need not be looked at further."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Of all kinds together, about 70 bytes each.
MOST_RECENT = 300_000


class RecentKeys:
    """Keys of one kind that were found before and are committed in Postgres: the most recent ones.

    Of a key it has the hash, of 64 bits: as the done set does, and in bounded memory. Add a key only when it is
    committed, or when Redis has it in the known set or the done set.
    """

    def __init__(self, most: int = MOST_RECENT) -> None:
        self._most = most // 2
        self._young: set[int] = set()
        self._old: set[int] = set()

    def add(self, keys: Iterable[str]) -> None:
        """Remember keys; the oldest ones are forgotten."""
        self._young.update(map(hash, keys))
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()

    def new(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of the keys that are not remembered."""
        new = set(map(hash, keys)) - self._old - self._young
        return [key for key in keys if hash(key) in new] if new else ()
