"""Pure: the digest of a key; from that its shard, its bucket and its member there; and keys cut into blocks."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

from coordinator.model import NO_CONTEXT, Block, KeyContext, ShardId

DIGEST_BYTES = 16
# The most keys of a block.
BLOCK_KEYS = 500
# The most with pages of lists, of which each may have its list's key, fields and parameters beside its own key:
# 500 of them could be more bytes than a block may have.
LIST_BLOCK_KEYS = 160
MAX_SHARDS = 256
# With several keys a request, few keys make about this number of blocks, so that many workers get a part of them, but
# no block gets fewer keys than the second number unless one request has more.
SPREAD_BLOCKS = 64
SMALL_BLOCK_KEYS = 100
# The most blocks that one split makes: a block of 500 keys becomes single keys in three splits.
MAX_PARTS = 8
# The estimate for a source that does not know its size.
UNKNOWN_CORPUS_KEYS = 20_000_000
# The most keys of a bucket on average. Redis keeps a set as an intset up to 512 members (its default); 400 is five
# standard deviations below that. 8.3 bytes a key were measured at a mean of 300.
BUCKET_KEYS = 400


def digest(key: str, context: KeyContext = NO_CONTEXT) -> bytes:
    """The BLAKE2b-128 of a key's UTF-8 bytes: its identity in Redis and Postgres.

    Keys of another kind than the source's, and the pages of a list behind its first, are other keys: theirs is the
    personalized digest of kind, list and key.
    """
    if not context.kind and not context.list_key:
        return blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()
    scoped = f"{context.kind}\0{context.list_key}\0{key}"
    return blake2b(scoped.encode(), digest_size=DIGEST_BYTES, person=b"kind and list").digest()


def block_digests(block: Block) -> list[bytes]:
    """The digest of each key of a block, in order."""
    if not block.contexts:
        return [digest(key) for key in block.keys]
    return [digest(key, block.context(index)) for index, key in enumerate(block.keys)]


def member(digest: bytes) -> int:
    """The digest's first 64 bits as a signed integer: the member of its done-set bucket."""
    return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """How many shards and buckets a run has. Both are powers of two, and fixed when the run is made.

    A run that `follows` what pages name has a known bucket beside each done bucket.
    """

    shards: int
    buckets: int
    follows: bool = False

    @classmethod
    def of(cls, estimate: int | None, shards: int | None = None, *, follows: bool = False) -> Layout:
        """The layout for about `estimate` keys; None when their number is not known.

        Unless `shards` says how many, each shard has a full block at least. Each bucket stays an intset.
        """
        keys = UNKNOWN_CORPUS_KEYS if estimate is None else estimate
        if shards is None:
            shards = min(MAX_SHARDS, 1 << max(0, (keys // BLOCK_KEYS).bit_length() - 1))
        buckets = 1 << max(0, _divided_up(keys, BUCKET_KEYS) - 1).bit_length()
        return cls(shards=shards, buckets=max(buckets, shards), follows=follows)

    @property
    def shard_shift(self) -> int:
        """The right shift that makes a shard of a digest's first 64 bits."""
        return 64 - (self.shards.bit_length() - 1)

    @property
    def bucket_shift(self) -> int:
        """The right shift that makes a bucket of a digest's first 64 bits. The buckets of one shard are neighbours."""
        return 64 - (self.buckets.bit_length() - 1)

    def shard(self, digest: bytes) -> ShardId:
        """The shard of a digest: its top bits."""
        return ShardId(int.from_bytes(digest[:8], "big") >> self.shard_shift)

    def bucket(self, digest: bytes) -> int:
        """The bucket of a digest: the bits of its shard and the next ones."""
        return int.from_bytes(digest[:8], "big") >> self.bucket_shift


def by_digest(keys: Iterable[str], kind: str = "") -> dict[bytes, str]:
    """The keys of a kind as {digest: key}. A key that comes twice is in it once."""
    if kind:
        return {digest(key, KeyContext(kind)): key for key in keys}
    return {blake2b(key.encode(), digest_size=DIGEST_BYTES).digest(): key for key in keys}


def by_bucket(digests: Iterable[bytes], layout: Layout) -> tuple[Mapping[int, int], array[int]]:
    """{bucket: how many members} of these digests, and the members, bucket after bucket."""
    members = _members(sorted(digests))
    return _tally(members, layout.bucket_shift), members


def split_block(block: Block, indexes: Sequence[int], keys_per_request: int = 1) -> Iterator[Block]:
    """Split a block into up to 8 smaller ones. `indexes` are those of the keys that go into them, in order.

    While a part has more keys than one request takes, it has whole requests.
    """
    size = _divided_up(len(indexes), MAX_PARTS)
    if size > keys_per_request:
        size = _divided_up(size, keys_per_request) * keys_per_request
    for start in range(0, len(indexes), max(size, 1)):
        chosen = indexes[start : start + size]
        refusals = {new: block.refusals[old] for new, old in enumerate(chosen) if old in block.refusals}
        attempts = {new: block.attempts[old] for new, old in enumerate(chosen) if old in block.attempts}
        contexts = {new: block.contexts[old] for new, old in enumerate(chosen) if old in block.contexts}
        yield Block(block.shard, tuple(block.keys[index] for index in chosen), refusals, attempts, contexts)


def cut_blocks(
    keys: Mapping[bytes, str],
    layout: Layout,
    reasons: Mapping[bytes, str] = MappingProxyType({}),
    contexts: Mapping[bytes, KeyContext] = MappingProxyType({}),
    block_keys: int = BLOCK_KEYS,
) -> Iterator[Block]:
    """Cut {digest: key} into blocks of at most `block_keys` keys, shard after shard, sorted by digest.

    The blocks of a shard are about equal in size. `reasons` is {digest: why the key must not be fetched}, `contexts`
    {digest: what travels with the key}.
    """
    ordered = sorted(keys)
    end = 0
    for shard, count in _tally(_members(ordered), layout.shard_shift).items():
        begin, end = end, end + count
        size = _divided_up(count, _divided_up(count, block_keys))
        for start in range(begin, end, size):
            part = ordered[start : min(start + size, end)]
            yield _block(ShardId(shard), part, keys, reasons, contexts)


def cut_mixed_blocks(
    keys: Mapping[bytes, str],
    layout: Layout,
    reasons: Mapping[bytes, str] = MappingProxyType({}),
    contexts: Mapping[bytes, KeyContext] = MappingProxyType({}),
) -> Iterator[Block]:
    """Cut {digest: key} into blocks of up to 100 keys, whatever their shards: few keys in many shards are few blocks.

    The blocks are about equal in size. A block is in the shard of its first key. See `cut_blocks`.
    """
    ordered = sorted(keys)
    size = _divided_up(len(ordered), _divided_up(len(ordered), SMALL_BLOCK_KEYS))
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        yield _block(layout.shard(part[0]), part, keys, reasons, contexts)


def block_size(keys: int, keys_per_request: int, single: bool = False) -> int:
    """How many of these keys a block has, so that it has whole requests: up to 500, and fewer when there are few.

    `single`: a block has one request.
    """
    if single:
        return keys_per_request
    if keys_per_request == 1:
        return BLOCK_KEYS
    most = min(BLOCK_KEYS, max(SMALL_BLOCK_KEYS, keys // SPREAD_BLOCKS))
    return max(keys_per_request, most - most % keys_per_request)


def cut_request_blocks(
    keys: Mapping[bytes, str],
    layout: Layout,
    keys_per_request: int,
    reasons: Mapping[bytes, str] = MappingProxyType({}),
    contexts: Mapping[bytes, KeyContext] = MappingProxyType({}),
    single: bool = False,
) -> Iterator[Block]:
    """Cut {digest: key} into blocks of whole requests, whatever their shards; only the last request may be part-filled.

    A block is in the shard of its first key. Keys that have a reason (see `cut_blocks`) are in the last block, or in
    blocks of their own, where they leave no gap in a request.
    """
    ordered = sorted(keys)
    fetched = [one for one in ordered if one not in reasons]
    refused = [one for one in ordered if one in reasons]
    size = block_size(len(fetched), keys_per_request, single)
    parts = [fetched[start : start + size] for start in range(0, len(fetched), size)]
    if parts and len(parts[-1]) + len(refused) <= BLOCK_KEYS:
        parts[-1] = sorted(parts[-1] + refused)
    else:
        parts += [refused[start : start + BLOCK_KEYS] for start in range(0, len(refused), BLOCK_KEYS)]
    for part in parts:
        yield _block(layout.shard(part[0]), part, keys, reasons, contexts)


def _block(
    shard: ShardId,
    digests: Sequence[bytes],
    keys: Mapping[bytes, str],
    reasons: Mapping[bytes, str],
    contexts: Mapping[bytes, KeyContext],
) -> Block:
    """The block of these digests."""
    return Block(
        shard,
        tuple([keys[one] for one in digests]),
        {index: reasons[one] for index, one in enumerate(digests) if one in reasons} if reasons else {},
        contexts={index: contexts[one] for index, one in enumerate(digests) if one in contexts} if contexts else {},
    )


def _divided_up(count: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-count // by)


def _members(digests: Sequence[bytes]) -> array[int]:
    """The `member` of each digest, in order. To call `member` for each would take as long as hashing the keys."""
    halves = array("q", b"".join(digests))
    if sys.byteorder == "little":
        halves.byteswap()
    return halves[::2]


def _tally(members: Iterable[int], shift: int) -> Mapping[int, int]:
    """{shard: how many of the members it has}, in the order of the members; with the shift of a bucket, {bucket: …}."""
    mask = (1 << (64 - shift)) - 1  # because a shifted negative member is still negative
    return Counter([(one >> shift) & mask for one in members])
