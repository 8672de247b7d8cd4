"""Keys to digests, shards, buckets and blocks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.model import Block, ShardId
from coordinator.queue.sharding import (
    BLOCK_KEYS,
    BUCKET_KEYS,
    MAX_PARTS,
    Layout,
    block_size,
    by_bucket,
    by_digest,
    cut_blocks,
    cut_request_blocks,
    digest,
    member,
    split_block,
)
from tests.coordinator.parts import numbered

POWERS = st.integers(0, 16).map(lambda power: 1 << power)
DIGESTS = st.binary(min_size=16, max_size=16)
ONE_SHARD = Layout(shards=1, buckets=1)
KEYS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shards = draw(POWERS)
    return Layout(shards=shards, buckets=max(shards, draw(POWERS)))


# -- digests


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", "cae66941d9efbd404e4d88758ea67670"),
        ("https://example.org/", "3eeedd5061369734a07f3f84d4a2a757"),
        ("/wiki/US", "57b551d5a3832e6293ee366fe5887118"),
        ("/wiki/Us", "12d6bbbbf1d12bf158cfe0fbe80e6586"),
        ("Zürich 😀", "7cd88df6b9038c691904981c0351beea"),
    ],
)
def test_a_digest_is_the_blake2b_128_of_the_utf_8_bytes(key: str, expected: str) -> None:
    assert digest(key).hex() == expected


def test_a_member_is_the_first_64_bits_as_a_signed_integer() -> None:
    assert member(bytes(7) + b"\x05" + b"\xff" * 8) == 5
    assert member(b"\xff" * 8 + bytes(8)) == -1
    assert member(b"\x80" + bytes(15)) == -(2**63)
    assert member(b"\x7f" + b"\xff" * 15) == 2**63 - 1


# -- shards and buckets


@given(layouts(), DIGESTS)
def test_every_digest_falls_into_one_shard_and_one_of_its_buckets(layout: Layout, name: bytes) -> None:
    shard, bucket = layout.shard(name), layout.bucket(name)
    assert 0 <= shard < layout.shards
    assert 0 <= bucket < layout.buckets
    assert shard == bucket // (layout.buckets // layout.shards)


@given(layouts(), DIGESTS, DIGESTS)
def test_buckets_and_shards_follow_the_order_of_the_digests(layout: Layout, one: bytes, two: bytes) -> None:
    low, high = sorted((one, two))
    assert layout.shard(low) <= layout.shard(high)
    assert layout.bucket(low) <= layout.bucket(high)


def test_the_first_and_the_last_digest_fall_into_the_first_and_the_last_shard() -> None:
    layout = Layout(shards=256, buckets=65_536)
    assert (layout.shard(bytes(16)), layout.bucket(bytes(16))) == (0, 0)
    assert (layout.shard(b"\xff" * 16), layout.bucket(b"\xff" * 16)) == (255, 65_535)
    assert layout.shard(b"\xa5\x3c" + bytes(14)) == 0xA5
    assert layout.bucket(b"\xa5\x3c" + bytes(14)) == 0xA53C


def test_shards_and_buckets_fill_evenly() -> None:
    layout = Layout(shards=16, buckets=64)
    names = by_digest(numbered(16_000))
    keys = Counter(layout.shard(name) for name in names)
    assert sorted(keys) == list(range(16))
    assert all(850 < count < 1150 for count in keys.values())  # 1,000 ± 5 standard deviations
    assert len({layout.bucket(name) for name in names}) == 64


@given(layouts(), st.sets(DIGESTS, max_size=200))
def test_members_come_bucket_after_bucket(layout: Layout, names: set[bytes]) -> None:
    counts, members = by_bucket(names, layout)
    ordered = sorted(names)
    assert list(members) == [member(name) for name in ordered]
    assert list(counts.items()) == list(Counter(layout.bucket(name) for name in ordered).items())


@pytest.mark.parametrize(
    ("estimate", "shards", "buckets"),
    [
        (0, 1, 1),
        (1, 1, 1),
        (400, 1, 1),
        (401, 1, 2),
        (499, 1, 2),
        (500, 1, 2),
        (999, 1, 4),
        (1_000, 2, 4),
        (20_000, 32, 64),
        (200_000, 256, 512),
        (5_000_000, 256, 16_384),
        (None, 256, 65_536),
        (1_000_000_000, 256, 4_194_304),
    ],
)
def test_a_layout_has_whole_blocks_in_its_shards_and_intsets_in_its_buckets(
    estimate: int | None, shards: int, buckets: int
) -> None:
    assert Layout.of(estimate) == Layout(shards=shards, buckets=buckets)


@given(st.integers(0, 10**10), st.none() | POWERS)
def test_a_layout_is_powers_of_two_and_its_buckets_hold_at_most_400_keys(estimate: int, shards: int | None) -> None:
    layout = Layout.of(estimate, shards)
    assert layout.shards.bit_count() == 1
    assert layout.buckets.bit_count() == 1
    assert layout.buckets >= layout.shards
    assert estimate / layout.buckets <= BUCKET_KEYS
    # Nor are there more buckets than that needs: small ones waste memory.
    assert layout.buckets == layout.shards or estimate / (layout.buckets // 2) > BUCKET_KEYS
    if shards is not None:
        assert layout.shards == shards
    elif layout.shards > 1:
        assert estimate / layout.shards >= BLOCK_KEYS


# -- blocks


@given(layouts(), st.lists(KEYS, max_size=200))
def test_blocks_have_every_key_once_and_in_its_shard(layout: Layout, keys: list[str]) -> None:
    made = list(cut_blocks(by_digest([*keys, *keys]), layout, {}))
    assert sorted(key for block in made for key in block.keys) == sorted(set(keys))
    assert [block.shard for block in made] == sorted(block.shard for block in made)
    for block in made:
        assert block.keys
        assert {layout.shard(digest(key)) for key in block.keys} == {block.shard}


def test_every_shard_has_full_blocks_of_its_own() -> None:
    made = list(cut_blocks(by_digest(numbered(5_000)), Layout(shards=4, buckets=4), {}))
    sizes = [[len(block.keys) for block in made if block.shard == shard] for shard in range(4)]
    assert [len(each) for each in sizes] == [3, 3, 3, 3]
    assert all(max(each) - min(each) <= 2 for each in sizes)


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 999, 1000, 1001, 2501, 49_901])
def test_blocks_are_full_even_sorted_and_hold_every_key(count: int) -> None:
    keys = by_digest(numbered(count))
    made = list(cut_blocks(keys, ONE_SHARD, {}))
    assert len(made) == -(-count // BLOCK_KEYS)
    assert all(block.shard == 0 and not block.refusals for block in made)
    sizes = [len(block.keys) for block in made]
    assert all(0 < size <= BLOCK_KEYS for size in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert not sizes or sizes[-1] <= sizes[0]
    ordered = [digest(key) for block in made for key in block.keys]
    assert ordered == sorted(keys)


@given(st.sets(KEYS, min_size=1, max_size=50), st.data())
def test_a_refusal_points_at_its_own_key(keys: set[str], data: st.DataObject) -> None:
    refused = data.draw(st.sets(st.sampled_from(sorted(keys))))
    reasons = {digest(key): f"why {key}" for key in refused}
    (block,) = cut_blocks(by_digest(keys), ONE_SHARD, reasons)
    assert {block.keys[index]: reason for index, reason in block.refusals.items()} == {
        key: f"why {key}" for key in refused
    }


def test_refusals_count_from_the_start_of_their_own_block() -> None:
    keys = by_digest(numbered(1_200))
    refused = {name: key for place, (name, key) in enumerate(sorted(keys.items())) if place % 7 == 0}
    made = list(cut_blocks(keys, ONE_SHARD, refused))
    assert len(made) == 3
    assert [block.keys[index] for block in made for index in block.refusals] == list(refused.values())
    assert all(block.keys[index] == reason for block in made for index, reason in block.refusals.items())


@given(st.sets(st.integers(0, 499)))
def test_parts_of_a_block_hold_the_chosen_keys_in_order_with_their_reasons(chosen: set[int]) -> None:
    block = Block(ShardId(3), tuple(numbered(500)), {index: f"why {index}" for index in range(0, 500, 3)})
    made = list(split_block(block, sorted(chosen)))
    assert len(made) <= MAX_PARTS
    assert [key for part in made for key in part.keys] == [f"key {index}" for index in sorted(chosen)]
    reasons = {part.keys[index]: why for part in made for index, why in part.refusals.items()}
    assert reasons == {f"key {index}": f"why {index}" for index in chosen if index % 3 == 0}
    assert all(part.shard == 3 and part.keys for part in made)
    assert max([len(part.keys) for part in made], default=0) <= -(-len(chosen) // MAX_PARTS)


@pytest.mark.parametrize("keys_per_request", [2, 50, 500])
@given(chosen=st.sets(st.integers(0, 499), min_size=2))
def test_parts_of_a_block_have_whole_requests_while_they_have_several(chosen: set[int], keys_per_request: int) -> None:
    made = list(split_block(Block(ShardId(3), tuple(numbered(500))), sorted(chosen), keys_per_request))
    assert [key for part in made for key in part.keys] == [f"key {index}" for index in sorted(chosen)]
    assert 1 < len(made) <= MAX_PARTS, "a part is smaller than the block, so that splitting it again comes to an end"
    sizes = [len(part.keys) for part in made[:-1]]
    assert all(size < keys_per_request or size % keys_per_request == 0 for size in sizes)


# -- blocks of whole requests


@pytest.mark.parametrize(
    ("keys", "keys_per_request", "size"),
    [
        (1_000_000, 1, 500),
        (10, 1, 500),
        (2_000, 50, 100),  # a small corpus: 20 blocks, so that as many workers get a part
        (2_000, 5, 100),
        (2_000, 30, 90),
        (2_000, 101, 101),
        (10_000, 50, 150),
        (65_536, 50, 500),
        (65_536, 30, 480),
        (65_536, 499, 499),
        (65_536, 500, 500),
        (10, 500, 500),
        (0, 50, 100),
    ],
)
def test_a_block_has_whole_requests_up_to_500_keys_and_few_keys_are_spread(
    keys: int, keys_per_request: int, size: int
) -> None:
    assert block_size(keys, keys_per_request) == size


@given(layouts(), st.sets(KEYS, max_size=400), st.integers(2, 60), st.data())
def test_blocks_of_requests_have_every_key_once_and_one_request_that_is_not_full(
    layout: Layout, keys: set[str], keys_per_request: int, data: st.DataObject
) -> None:
    refused = data.draw(st.sets(st.sampled_from(sorted(keys)), max_size=5)) if keys else set()
    reasons = {digest(key): f"why {key}" for key in refused}
    made = list(cut_request_blocks(by_digest(keys), layout, keys_per_request, reasons))
    assert sorted(key for block in made for key in block.keys) == sorted(keys)
    assert {block.keys[index]: why for block in made for index, why in block.refusals.items()} == {
        key: f"why {key}" for key in refused
    }
    for block in made:
        assert 0 < len(block.keys) <= BLOCK_KEYS
        assert block.shard == layout.shard(digest(block.keys[0]))
        assert list(block.keys) == sorted(block.keys, key=digest)
    fetched = [len(block.keys) - len(block.refusals) for block in made]
    assert all(count % keys_per_request == 0 for count in fetched[:-1] if count)


def test_where_nothing_is_sent_twice_a_block_has_one_request() -> None:
    keys = by_digest(numbered(40))
    assert {len(block.keys) for block in cut_blocks(keys, ONE_SHARD, block_keys=1)} == {1}
    assert [len(block.keys) for block in cut_request_blocks(keys, ONE_SHARD, 15, single=True)] == [15, 15, 10]
