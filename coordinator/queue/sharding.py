"""Pure: key -> digest -> shard, bucket and member; keys -> blocks."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from coordinator.model import Block, ShardId

DIGEST_BYTES = 16
BLOCK_KEYS = 500
MAX_SHARDS = 256
# A block of 500 keys is down to its single keys in three cuts.
MAX_PARTS = 8
UNKNOWN_CORPUS_KEYS = 20_000_000
# An intset stays an intset up to 512 members (Redis' default). A mean of at most 400 lies five
# standard deviations below that, and 8.3 bytes a key were measured at a mean of 300.
BUCKET_KEYS = 400


def digest(key: str) -> bytes:
    """The BLAKE2b-128 of a key's UTF-8 bytes: its identity in Redis and Postgres."""
    return blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()


def member(digest: bytes) -> int:
    """The digest's first 64 bits as a signed integer: the member of its done-set bucket."""
    return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run's key space is cut; fixed when the run is made. `shards` and `buckets` are powers of two."""

    shards: int
    buckets: int

    @classmethod
    def of(cls, estimate: int | None, shards: int | None = None) -> Layout:
        """The layout for a corpus of about `estimate` keys: whole blocks in each shard, intsets in each bucket."""
        keys = UNKNOWN_CORPUS_KEYS if estimate is None else estimate
        if shards is None:
            shards = min(MAX_SHARDS, 1 << max(0, (keys // BLOCK_KEYS).bit_length() - 1))
        buckets = 1 << max(0, -(-keys // BUCKET_KEYS) - 1).bit_length()
        return cls(shards=shards, buckets=max(buckets, shards))

    @property
    def shard_shift(self) -> int:
        """How far a digest's first 64 bits are shifted to give its shard."""
        return 64 - (self.shards.bit_length() - 1)

    @property
    def bucket_shift(self) -> int:
        """How far a digest's first 64 bits are shifted to give its bucket; a shard's buckets follow each other."""
        return 64 - (self.buckets.bit_length() - 1)

    def shard(self, digest: bytes) -> ShardId:
        """The shard of a digest: its top bits."""
        return ShardId(int.from_bytes(digest[:8], "big") >> self.shard_shift)

    def bucket(self, digest: bytes) -> int:
        """The done-set bucket of a digest: the shard's bits and the next ones."""
        return int.from_bytes(digest[:8], "big") >> self.bucket_shift


def by_digest(keys: Iterable[str]) -> dict[bytes, str]:
    """The keys as {digest: key}; a key that comes twice is kept once."""
    return {blake2b(key.encode(), digest_size=DIGEST_BYTES).digest(): key for key in keys}


def by_bucket(digests: Iterable[bytes], layout: Layout) -> tuple[Mapping[int, int], array[int]]:
    """The members of these digests, bucket after bucket, and how many of them each bucket has as {bucket: count}."""
    members = _members(sorted(digests))
    return _tally(members, layout.bucket_shift), members


def parts(block: Block, keys: Sequence[int]) -> Iterator[Block]:
    """Cut a block into up to 8 smaller ones, of those of its keys that `keys` points to, in order."""
    size = -(-len(keys) // MAX_PARTS)
    for start in range(0, len(keys), max(size, 1)):
        chosen = keys[start : start + size]
        refusals = {new: block.refusals[old] for new, old in enumerate(chosen) if old in block.refusals}
        attempts = {new: block.attempts[old] for new, old in enumerate(chosen) if old in block.attempts}
        yield Block(block.shard, tuple(block.keys[index] for index in chosen), refusals, attempts)


def blocks(keys: Mapping[bytes, str], layout: Layout, reasons: Mapping[bytes, str]) -> Iterator[Block]:
    """Cut {digest: key} into even blocks of at most 500 keys, shard after shard, sorted by digest."""
    ordered = sorted(keys)
    end = 0
    for shard, count in _tally(_members(ordered), layout.shard_shift).items():
        begin, end = end, end + count
        size = -(-count // -(-count // BLOCK_KEYS))
        for start in range(begin, end, size):
            part = ordered[start : min(start + size, end)]
            refusals = {index: reasons[name] for index, name in enumerate(part) if name in reasons} if reasons else {}
            yield Block(shard=ShardId(shard), keys=tuple([keys[name] for name in part]), refusals=refusals)


def _members(digests: Sequence[bytes]) -> array[int]:
    """`member` of each digest, in order; a call for each of them would take a planner as long as its hashing."""
    halves = array("q", b"".join(digests))
    if sys.byteorder == "little":
        halves.byteswap()
    return halves[::2]


def _tally(members: Iterable[int], shift: int) -> Mapping[int, int]:
    """How many members each shard, or bucket, has that the shift gives; in the order in which they come."""
    mask = (1 << (64 - shift)) - 1  # a shifted member keeps its sign
    return Counter([(one >> shift) & mask for one in members])
