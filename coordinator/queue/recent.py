"""Found keys that this worker knows to be stored: most links name one of them, and need not be looked at further."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Of all kinds together, at 8 bytes each.
MOST_RECENT = 1 << 21


class RecentKeys:
    """Keys of one kind that were found before and are committed in Postgres: up to `most`, or the power of 2 below it.

    Of a key it has the hash, of 64 bits: as the done set does, and in bounded memory, which is taken as it is used. A
    place has two hashes, and a third one replaces the older of them; an unused one has 0, the hash of the empty text,
    which is no key. Add a key only when it is committed, or when Redis has it in the known set or the done set.
    """

    def __init__(self, most: int = MOST_RECENT) -> None:
        size = 1 << max(1, most.bit_length() - 1)
        self._hashes = memoryview(bytearray(8 * size)).cast("q")
        self._place = size - 2  # a mask, for the first hash of the place

    def add(self, keys: Iterable[str]) -> None:
        """Remember keys; the oldest one at the same place is forgotten."""
        hashes, mask = self._hashes, self._place
        for one in map(hash, keys):
            place = one & mask
            if hashes[place] != one:
                hashes[place + 1] = hashes[place]
                hashes[place] = one

    def new(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of the keys that are not remembered."""
        hashes, mask = self._hashes, self._place
        return [
            key
            for key, one in zip(keys, map(hash, keys), strict=True)
            if hashes[one & mask] != one and hashes[(one & mask) + 1] != one
        ]
