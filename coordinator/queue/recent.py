"""Found keys that this worker knows to be stored: most links name one of them, and need not be looked at further."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

# Of all kinds together, at 8 bytes each.
MOST_RECENT = 1 << 21
_FIRST_HASHES = 1 << 14
_HASHES_OF_A_PLACE = 4


class RecentKeys:
    """Keys of one kind that were found before and are committed in Postgres: up to `most`, or the power of 2 below it.

    Of a key it has the hash, of 64 bits: as the done set does, and in bounded memory, which grows with the keys. So
    the processor's caches have most of it: each link of each page is looked up. A place has four hashes, and another
    one replaces the oldest; an unused one has 0, the hash of the empty text, which is no key. Add a key only when it
    is committed, or when Redis has it in the known set or the done set.
    """

    def __init__(self, most: int = MOST_RECENT) -> None:
        self._most = max(_HASHES_OF_A_PLACE, 1 << (most.bit_length() - 1))
        self._hashes = array("q", bytes(8 * min(self._most, _FIRST_HASHES)))
        self._mask = len(self._hashes) - _HASHES_OF_A_PLACE  # of a hash, for the first one of its place
        self._added = 0

    def add(self, keys: Sequence[str]) -> None:
        """Remember keys; the oldest one at the same place is forgotten."""
        self._added += len(keys)
        while self._added > len(self._hashes) // 4 and len(self._hashes) < self._most:
            self._hashes *= 2  # a hash is at its new place now, and at another one where nobody looks for it
            self._mask = len(self._hashes) - _HASHES_OF_A_PLACE
        hashes, mask = self._hashes, self._mask
        for one in map(hash, keys):
            place = one & mask
            if hashes[place] != one:
                hashes[place + 3] = hashes[place + 2]
                hashes[place + 2] = hashes[place + 1]
                hashes[place + 1] = hashes[place]
                hashes[place] = one

    def new(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of the keys that are not remembered."""
        hashes, mask = self._hashes, self._mask
        return [
            key
            for key in keys
            if hashes[(at := (one := hash(key)) & mask)] != one
            and hashes[at + 1] != one
            and hashes[at + 2] != one
            and hashes[at + 3] != one
        ]
