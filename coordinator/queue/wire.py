"""Pure: blocks, deferred keys and members are encoded as bytes (msgpack), and decoded.

Bytes from Redis are bounded before they are unpacked, and checked after that: another program may have written them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from coordinator.model import NO_CONTEXT, Attempts, Block, KeyContext, ShardId
from coordinator.queue.sharding import BLOCK_KEYS, block_digests
from coordinator.queue.sharding import digest as key_digest

WIRE_VERSION = 2
# A block of keys with contexts. One of plain keys keeps the format that older workers read.
CONTEXT_WIRE_VERSION = 3
# 500 keys of 8 KB each, with room for reasons and attempts: a larger one is not a block of ours.
MAX_BLOCK_BYTES = 6 * 1024 * 1024
MAX_DEFERRAL_BYTES = 64 * 1024
# More attempts than a job allows, and longer histories than a worker writes.
MAX_ATTEMPTS = 10_000
LONGEST_HISTORY_LINES = 50
MAX_LINE_CHARACTERS = 1000
MAX_DEPTH = 1_000_000
MAX_PAGE_NO = 1_000_000_000
_CONTEXT_TYPES = (str, int, int, bytes, dict, str, dict, bytes)


@dataclass(frozen=True, slots=True)
class Deferral:
    """A key that is deferred for `delay` seconds."""

    digest: bytes
    key: str
    attempts: Attempts
    delay: float = 0.0
    context: KeyContext = NO_CONTEXT


def encode_block(block: Block) -> bytes:
    """A block as [version, keys, refusals, attempts as {index: [failed, throttled, history]}, and contexts if any]."""
    attempts = {index: _attempts_fields(one) for index, one in block.attempts.items()}
    if not block.contexts:
        return _packed([WIRE_VERSION, block.keys, block.refusals, attempts])
    contexts = {index: context_fields(one) for index, one in block.contexts.items()}
    return _packed([CONTEXT_WIRE_VERSION, block.keys, block.refusals, attempts, contexts])


def decode_block(shard: ShardId, payload: bytes) -> Block:
    """A block from msgpack. Raises ValueError when it is not one of ours."""
    if len(payload) > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of {len(payload)} bytes")
    match _unpacked(payload, "a block"):
        case (version, *_) if version not in (WIRE_VERSION, CONTEXT_WIRE_VERSION):
            raise ValueError(f"a block of another wire version than {WIRE_VERSION} or {CONTEXT_WIRE_VERSION}")
        case (version, tuple(keys), dict(refusals), dict(attempts)) if version == WIRE_VERSION:
            contexts: dict[Any, Any] = {}
        case (version, tuple(keys), dict(refusals), dict(attempts), dict(contexts)) if version != WIRE_VERSION:
            pass
        case _:
            raise ValueError("not a block: keys, refusals and attempts are expected")
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a block whose keys are not text")
    if not _are_indexes(refusals, keys) or not all(isinstance(reason, str) for reason in refusals.values()):
        raise ValueError("a block whose refusals are not reasons of its keys")
    if not _are_indexes(attempts, keys):
        raise ValueError("a block whose attempts are not those of its keys")
    if not _are_indexes(contexts, keys):
        raise ValueError("a block whose contexts are not those of its keys")
    block = Block(
        shard,
        keys,
        refusals,
        {index: _attempts_from(fields) for index, fields in attempts.items()},
        {index: context_from(fields) for index, fields in contexts.items()},
    )
    if len(set(keys)) < len(keys) and len(set(block_digests(block))) < len(keys):  # kinds may have the same key
        raise ValueError("a block that has a key twice")
    return block


def encode_deferral(deferral: Deferral) -> bytes:
    """A deferred key and its attempts as [key, [failed, throttled, history]], and its context if it has one."""
    fields: list[Any] = [deferral.key, _attempts_fields(deferral.attempts)]
    if deferral.context is not NO_CONTEXT:
        fields.append(context_fields(deferral.context))
    return _packed(fields)


def decode_deferral(digest: bytes, payload: bytes) -> Deferral:
    """A deferred key from msgpack, without its delay. Raises ValueError when it is not one of ours."""
    if len(payload) > MAX_DEFERRAL_BYTES:
        raise ValueError(f"a deferred key of {len(payload)} bytes")
    match _unpacked(payload, "a deferred key"):
        case (str(key), fields) if key_digest(key) == digest:
            return Deferral(digest, key, _attempts_from(fields))
        case (str(key), fields, context_given):
            context = context_from(context_given)
            if key_digest(key, context) == digest:
                return Deferral(digest, key, _attempts_from(fields), context=context)
    raise ValueError("a deferred key that is not text, or has another digest")


def encode_members(counts: Iterable[int], members: Iterable[int], outcomes: Iterable[str] = ()) -> bytes:
    """Groups of members of the done set for a script: [members in each group, all members, outcome of each group].

    They are one argument, because Redis and its client would spend most of the call on thousands of arguments. Members
    are text, because Lua's numbers have 53 bits.
    """
    return _packed([list(counts), list(map(str, members)), list(outcomes)])


def context_fields(context: KeyContext) -> tuple[Any, ...]:
    """A context as the values of its fields, in order."""
    if type(context.fields) is dict and type(context.params) is dict:
        return context
    kind, depth, page_no, origin, fields, list_key, params, seen = context
    return kind, depth, page_no, origin, dict(fields), list_key, dict(params), seen


def context_from(fields: Any) -> KeyContext:
    """The context of these values. Raises ValueError when they are not of one of ours."""
    if isinstance(fields, tuple) and tuple(map(type, fields)) == _CONTEXT_TYPES:
        _, depth, page_no, _, carried, _, params, _ = fields
        if 0 <= depth <= MAX_DEPTH and 1 <= page_no <= MAX_PAGE_NO and _is_text(carried) and _are_params(params):
            return KeyContext._make(fields)
    raise ValueError("a context of a key that is not one of ours")


def _is_text(fields: Mapping[Any, Any]) -> bool:
    return not fields or (_has_names(fields) and all(isinstance(value, str) for value in fields.values()))


def _are_params(params: Mapping[Any, Any]) -> bool:
    return not params or (_has_names(params) and all(isinstance(value, str | int | float) for value in params.values()))


def _has_names(fields: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in fields)


def _attempts_fields(attempts: Attempts) -> tuple[int, int, tuple[str, ...]]:
    return attempts.failed, attempts.throttled, attempts.history


def _attempts_from(fields: Any) -> Attempts:
    match fields:
        case (int(failed), int(throttled), tuple(history)):
            if 0 <= failed <= MAX_ATTEMPTS and 0 <= throttled <= MAX_ATTEMPTS and _is_history(history):
                return Attempts(failed, throttled, history)
    raise ValueError("attempts that are not two numbers and lines of text, or too many")


def _is_history(lines: tuple[Any, ...]) -> bool:
    return len(lines) <= LONGEST_HISTORY_LINES and all(
        isinstance(line, str) and len(line) <= MAX_LINE_CHARACTERS for line in lines
    )


def _are_indexes(indexes: Mapping[Any, Any], keys: tuple[Any, ...]) -> bool:
    return not indexes or (set(map(type, indexes)) == {int} and min(indexes) >= 0 and max(indexes) < len(keys))


def _packed(fields: list[Any]) -> bytes:
    payload: bytes = msgpack.packb(fields)
    return payload


def _unpacked(payload: bytes, what: str) -> Any:
    try:
        return msgpack.unpackb(
            payload, max_array_len=BLOCK_KEYS, max_map_len=BLOCK_KEYS, strict_map_key=False, use_list=False
        )
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise ValueError(f"not {what}: {type(error).__name__}") from error
