"""Blocks and deferred keys as bytes: encoded, decoded, and refused when they are not ours."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.model import NO_ATTEMPTS, Attempts, Block, FoundKey, KeyContext, ShardId
from coordinator.queue.found import found_blocks
from coordinator.queue.sharding import BLOCK_KEYS, Layout, digest
from coordinator.queue.wire import (
    MAX_BLOCK_BYTES,
    WIRE_VERSION,
    Deferral,
    decode_block,
    decode_deferral,
    encode_block,
    encode_deferral,
)
from coordinator.source.key_rule import MAX_KEY_BYTES
from crawler.fetch.retry import MAX_HISTORY_LINES, MAX_RESULT_CHARACTERS, add_attempt

SHARD = ShardId(3)
LARGEST_KEYS = tuple(f"{number:k>8192}" for number in range(BLOCK_KEYS))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
ATTEMPTS = st.builds(Attempts, st.integers(0, 10_000), st.integers(0, 10_000), st.lists(TEXTS, max_size=5).map(tuple))
HEAD = b"\x94" + bytes([WIRE_VERSION])


# -- blocks


@given(
    st.lists(TEXTS, max_size=40, unique=True),
    st.dictionaries(st.integers(0, 39), TEXTS),
    st.dictionaries(st.integers(0, 39), ATTEMPTS),
)
def test_a_block_comes_back_as_it_was_sent(
    keys: list[str], reasons: dict[int, str], attempts: dict[int, Attempts]
) -> None:
    block = Block(
        SHARD,
        tuple(keys),
        {index: why for index, why in reasons.items() if index < len(keys)},
        {index: one for index, one in attempts.items() if index < len(keys)},
    )
    assert decode_block(SHARD, encode_block(block)) == block


def test_the_largest_block_that_a_planner_makes_fits() -> None:
    block = Block(SHARD, LARGEST_KEYS, dict.fromkeys(range(BLOCK_KEYS), "w" * 100))
    assert decode_block(SHARD, encode_block(block)) == block


def large_list_pages(count: int) -> list[tuple[str, KeyContext]]:
    """Pages of lists with the longest keys: the list's key, and what is set. The list's key carries fields."""
    half = "x" * (MAX_KEY_BYTES // 2)
    context = KeyContext(list_key=half, params={"c": half}, fields={"f": half * 2}, origin=b"o" * 16, seen=b"s" * 16)
    return [(f"{number:k>{MAX_KEY_BYTES}}", context) for number in range(count)]


def test_the_largest_blocks_of_pages_of_lists_fit() -> None:
    pages = [FoundKey(digest(key, context), key, context) for key, context in large_list_pages(BLOCK_KEYS)]
    blocks = found_blocks(pages, Layout(shards=1, buckets=1, follows=True))
    assert sum(len(block.keys) for block in blocks) == BLOCK_KEYS
    assert [decode_block(block.shard, encode_block(block)) for block in blocks] == blocks


@pytest.mark.parametrize(
    "value", [None, b"bytes", [1], {"a": 1}, msgpack.Timestamp(1), msgpack.ExtType(5, b"x")], ids=type
)
def test_what_no_request_can_have_set_is_no_context(value: object) -> None:
    context = KeyContext(list_key="a", params={"c": value})
    with pytest.raises(ValueError, match="context"):
        decode_block(SHARD, encode_block(Block(SHARD, ("a",), contexts={0: context})))


def test_the_largest_block_of_keys_that_come_back_fits() -> None:
    attempts = NO_ATTEMPTS
    for number in range(3 * MAX_HISTORY_LINES):
        attempts = add_attempt(attempts, f"{number} {'w' * MAX_RESULT_CHARACTERS}", 0.0)
    block = Block(SHARD, LARGEST_KEYS, attempts=dict.fromkeys(range(BLOCK_KEYS), attempts))
    assert decode_block(SHARD, encode_block(block)) == block


@given(st.lists(TEXTS, min_size=1, max_size=10), st.data())
def test_a_truncated_block_is_refused(keys: list[str], data: st.DataObject) -> None:
    payload = encode_block(Block(SHARD, tuple(keys), {0: "why"}, {0: Attempts(1)}))
    with pytest.raises(ValueError, match="not a block: "):
        decode_block(SHARD, payload[: data.draw(st.integers(0, len(payload) - 1))])


GOOD = [0, 0, []]
CONTEXT = ["kind", 1, 2, b"d" * 16, {"name": "text"}, "list", {"offset": 100}, b"seen"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([1, ["a"], {}, {}], id="an earlier wire version"),
        pytest.param([4, ["a"], {}, {}, {}], id="a newer wire version"),
        pytest.param([3, ["a"], {}, {}], id="no contexts"),
        pytest.param([3, ["a"], {}, {}, {1: CONTEXT}], id="a context behind the last key"),
        pytest.param([3, ["a"], {}, {}, {0: CONTEXT[:-1]}], id="too short a context"),
        pytest.param([3, ["a"], {}, {}, {0: ["", -1, *CONTEXT[2:]]}], id="a negative depth"),
        pytest.param([3, ["a"], {}, {}, {0: ["", 0, 0, *CONTEXT[3:]]}], id="page 0"),
        pytest.param([3, ["a"], {}, {}, {0: ["", 2**40, *CONTEXT[2:]]}], id="a depth that no page has"),
        pytest.param([3, ["a"], {}, {}, {0: [*CONTEXT[:4], {"a": 5}, *CONTEXT[5:]]}], id="a number as a field"),
        pytest.param([3, ["a"], {}, {}, {0: [*CONTEXT[:6], {5: "a"}, b""]}], id="a number as a parameter's name"),
        pytest.param([3, ["a", "a"], {}, {}, {0: CONTEXT, 1: CONTEXT}], id="a key of a kind twice"),
        pytest.param(["2", ["a"], {}, {}], id="a version in text"),
        pytest.param([2, ["a"], {}], id="too few parts"),
        pytest.param([2, ["a"], {}, {}, 0], id="too many parts"),
        pytest.param([2, [b"a"], {}, {}], id="keys of bytes"),
        pytest.param([2, ["a", 5], {}, {}], id="a number as a key"),
        pytest.param([2, ["a", None], {}, {}], id="nothing as a key"),
        pytest.param([2, ["a", ["b"]], {}, {}], id="a list as a key"),
        pytest.param([2, "abc", {}, {}], id="one text instead of keys"),
        pytest.param([2, {"a": "b"}, {}, {}], id="a map instead of keys"),
        pytest.param([2, 5, {}, {}], id="a number instead of keys"),
        pytest.param([2, None, {}, {}], id="nothing instead of keys"),
        pytest.param([2, ["a"], [], {}], id="a list instead of refusals"),
        pytest.param([2, ["a"], None, {}], id="nothing instead of refusals"),
        pytest.param([2, ["a"], {1: "why"}, {}], id="a refusal behind the last key"),
        pytest.param([2, ["a"], {-1: "why"}, {}], id="a refusal before the first key"),
        pytest.param([2, ["a"], {"0": "why"}, {}], id="a refusal of a text"),
        pytest.param([2, ["a", "b"], {True: "why"}, {}], id="a refusal of a truth"),
        pytest.param([2, ["a"], {0: 5}, {}], id="a number as a reason"),
        pytest.param([2, ["a"], {0: None}, {}], id="nothing as a reason"),
        pytest.param([2, ["a"], {}, []], id="a list instead of attempts"),
        pytest.param([2, ["a"], {}, None], id="nothing instead of attempts"),
        pytest.param([2, ["a"], {}, {1: GOOD}], id="attempts behind the last key"),
        pytest.param([2, ["a"], {}, {-1: GOOD}], id="attempts before the first key"),
        pytest.param([2, ["a"], {}, {"0": GOOD}], id="attempts of a text"),
        pytest.param([2, ["a", "b"], {}, {True: GOOD}], id="attempts of a truth"),
        pytest.param([2, ["a"], {}, {0: 5}], id="one number as attempts"),
        pytest.param([2, ["a"], {}, {0: [0, 0]}], id="attempts without a history"),
        pytest.param([2, ["a"], {}, {0: [-1, 0, []]}], id="fewer attempts than none"),
        pytest.param([2, ["a"], {}, {0: [0, -1, []]}], id="fewer throttled attempts than none"),
        pytest.param([2, ["a"], {}, {0: [2**15, 0, []]}], id="more attempts than a column holds"),
        pytest.param([2, ["a"], {}, {0: [0, 2**63, []]}], id="more throttled attempts than a column holds"),
        pytest.param([2, ["a"], {}, {0: [0, 0, ["a" * 1001]]}], id="too long a line of a history"),
        pytest.param([2, ["a", "b", "a"], {}, {}], id="a key twice"),
        pytest.param([2, ["a"], {}, {0: [0.5, 0, []]}], id="half an attempt"),
        pytest.param([2, ["a"], {}, {0: ["0", 0, []]}], id="attempts in text"),
        pytest.param([2, ["a"], {}, {0: [0, 0, "abc"]}], id="one text as a history"),
        pytest.param([2, ["a"], {}, {0: [0, 0, [5]]}], id="a number in a history"),
        pytest.param([2, ["a"], {}, {0: [0, 0, [["a"]]]}], id="a list in a history"),
        pytest.param([2, ["a"] * (BLOCK_KEYS + 1), {}, {}], id="too many keys"),
        pytest.param([2, ["a"], dict.fromkeys(range(BLOCK_KEYS + 1), "why"), {}], id="too many refusals"),
        pytest.param([2, ["a"], {}, dict.fromkeys(range(BLOCK_KEYS + 1), GOOD)], id="too many attempts"),
        pytest.param([2, ["a"], {}, {0: [0, 0, ["a"] * (BLOCK_KEYS + 1)]}], id="too long a history"),
        pytest.param(5, id="a number"),
        pytest.param(None, id="nothing"),
        pytest.param({}, id="a map"),
    ],
)
def test_what_is_no_block_is_refused(content: object) -> None:
    assert decode_block(SHARD, msgpack.packb([2, ["a"], {0: "why"}, {0: GOOD}]))
    with pytest.raises(ValueError, match=r"block|attempts|context"):
        decode_block(SHARD, msgpack.packb(content))


def test_contexts_travel_with_their_keys() -> None:
    context = KeyContext("kind", 1, 2, b"d" * 16, {"name": "text"}, "list", {"offset": 100, "at": "b"}, b"seen")
    block = Block(SHARD, ("a", "a", "b"), contexts={0: context, 2: KeyContext(fields={"x": "y"})})
    assert decode_block(SHARD, encode_block(block)) == block
    deferral = Deferral(digest("a", context), "a", Attempts(1, 2, ("no",)), context=context)
    assert decode_deferral(deferral.digest, encode_deferral(deferral)) == deferral
    with pytest.raises(ValueError, match="another digest"):
        decode_deferral(digest("a"), encode_deferral(deferral))


FIVE_HUNDRED = b"\xdc\x01\xf4"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="a byte that msgpack never uses"),
        pytest.param(HEAD + b"\xdd\xff\xff\xff\xff", id="claims four billion keys"),
        pytest.param(HEAD + b"\xdb\xff\xff\xff\xff", id="claims a text of four gigabytes"),
        pytest.param(HEAD + b"\x91\xa1\xff\x80\x80", id="a key that is no UTF-8"),
        pytest.param(HEAD + b"\x91" * 1_000_000, id="a million arrays in each other"),
        pytest.param(HEAD + b"\x91\xa1a\x81\x80\x00\x80", id="a map as a map's key"),
        pytest.param(HEAD + b"\x91\xa1a\x80\x81\x00\xdf\xff\xff\xff\xff", id="claims a map of four billion"),
        pytest.param(encode_block(Block(SHARD, ("a",))) + b"\x00", id="one byte too many"),
    ],
)
def test_hostile_bytes_are_refused(payload: bytes) -> None:
    assert len(payload) <= MAX_BLOCK_BYTES
    with pytest.raises(ValueError, match=r"\A(not )?a block.+\Z"):
        decode_block(SHARD, payload)


def test_what_a_hostile_block_unpacks_to_is_bounded() -> None:
    numbers = b"\x97" + b"\xcd\xff\xff" * 7
    payload = HEAD + FIVE_HUNDRED + (FIVE_HUNDRED + numbers * 500) * 500 + b"\x80\x80"
    assert MAX_BLOCK_BYTES * 0.7 < len(payload) < MAX_BLOCK_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="keys are not text"):
            decode_block(SHARD, payload)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


def test_a_payload_that_is_too_large_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(SHARD, tuple("k" * 20_000 for _ in range(BLOCK_KEYS)))
    payload = encode_block(block)
    assert len(payload) > MAX_BLOCK_BYTES
    monkeypatch.setattr("coordinator.queue.wire.msgpack.unpackb", lambda *_, **__: pytest.fail("was unpacked"))
    with pytest.raises(ValueError, match=f"a block of {len(payload)} bytes"):
        decode_block(SHARD, payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_block_or_a_value_error(payload: bytes) -> None:
    for candidate in (payload, HEAD + payload, HEAD + b"\x91\xa1a\x80" + payload):
        try:
            block = decode_block(SHARD, candidate)
        except ValueError:
            continue
        assert all(isinstance(key, str) for key in block.keys)
        assert all(block.keys[index] is not None and isinstance(why, str) for index, why in block.refusals.items())
        assert all(block.keys[index] is not None and one.total >= 0 for index, one in block.attempts.items())


# -- deferred keys


@given(TEXTS, ATTEMPTS)
def test_a_deferred_key_comes_back_as_it_was_sent(key: str, attempts: Attempts) -> None:
    deferral = Deferral(digest(key), key, attempts, 7.0)
    assert decode_deferral(digest(key), encode_deferral(deferral)) == Deferral(digest(key), key, attempts)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(["a"], id="a key without attempts"),
        pytest.param(["a", GOOD, 0], id="too many parts"),
        pytest.param([b"a", GOOD], id="a key of bytes"),
        pytest.param([None, GOOD], id="no key"),
        pytest.param(["a", None], id="nothing as attempts"),
        pytest.param(["a", [0, 0]], id="attempts without a history"),
        pytest.param(["a", [0, 0, [None]]], id="nothing in a history"),
        pytest.param(["a", [0, 0, ["a"] * (BLOCK_KEYS + 1)]], id="too long a history"),
        pytest.param(["a", [0, 0, ["a" * 1001]]], id="too long a line"),
        pytest.param(["a", [2**15, 0, []]], id="too many attempts"),
        pytest.param(["a" * 65_536, GOOD], id="too large"),
        pytest.param(["b", GOOD], id="another key"),
        pytest.param("ab", id="a text"),
        pytest.param({"a": GOOD}, id="a map"),
    ],
)
def test_what_is_no_deferred_key_is_refused(content: object) -> None:
    assert decode_deferral(digest("a"), msgpack.packb(["a", GOOD])) == Deferral(digest("a"), "a", NO_ATTEMPTS)
    with pytest.raises(ValueError, match=r"deferred key|attempts|context"):
        decode_deferral(digest("a"), msgpack.packb(content))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_deferred_key_or_a_value_error(payload: bytes) -> None:
    for candidate in (payload, b"\x92\xa1a" + payload, b"\x92\xa1a\x93\x00\x00" + payload):
        try:
            assert isinstance(decode_deferral(digest("a"), candidate).key, str)
        except ValueError:
            continue
