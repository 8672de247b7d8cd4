"""The Lua scripts: each says what it does, touches only the keys that it was given, and comes back when forgotten."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
from redis.asyncio import Redis

import coordinator
from coordinator.queue.wire import grouped
from coordinator.redis.scripts import Script
from tests.coordinator.parts import ONE, Run, numbered

pytestmark = pytest.mark.anyio

LUA = {Path(str(file)).stem: file.read_text() for file in files("coordinator").joinpath("lua").iterdir()}
PYTHON = "".join(file.read_text() for file in Path(next(iter(coordinator.__path__))).rglob("*.py"))


def contract(source: str) -> str:
    """The comment that opens a script."""
    return "".join(re.findall(r"\A(?:--.*\n)+", source))


@pytest.mark.parametrize("name", sorted(LUA))
def test_a_script_opens_with_its_contract(name: str) -> None:
    opening = contract(LUA[name])
    assert opening.startswith("-- Purpose: ")
    assert "-- Returns " in opening
    code = LUA[name].removeprefix(opening)
    for word in ("KEYS", "ARGV"):
        said = set(re.findall(rf"{word}\[(\d+)", opening))
        used = set(re.findall(rf"{word}\[(\d+)\]", code))
        assert used <= said or re.search(rf"{word} (?:for|done)", opening), f"{word} {used - said} is not explained"


@pytest.mark.parametrize("name", sorted(LUA))
def test_a_script_is_used(name: str) -> None:
    assert f'Script(client, "{name}")' in PYTHON


@pytest.mark.parametrize("name", sorted(LUA))
def test_a_script_touches_only_keys_that_it_was_given(name: str) -> None:
    """In a cluster, and on whatever scripts run in next, nothing else is promised to be there."""
    code = LUA[name].removeprefix(contract(LUA[name]))
    calls = re.findall(r"redis\.call\('(\w+)'((?:, *'(?:\w+)')*)(?:, *([^,)]+))?", code)
    assert len(calls) == code.count("redis.call("), "every call is understood"
    given = set(re.findall(r"local (\w+)(?:, \w+)* = KEYS\[", code)) | set(
        re.findall(r"for _, (\w+) in ipairs\(KEYS\)", code)
    )
    for command, _, key in calls:
        if command in ("TIME", "XREADGROUP"):
            continue
        assert key.startswith("KEYS[") or key in given, f"{command} {key}"
    for streams in re.findall(r"'XREADGROUP'.*'STREAMS', (\S+),", code):
        assert streams.startswith("KEYS[")


async def test_a_script_that_redis_has_forgotten_is_sent_again(redis: Redis) -> None:
    run = await Run.made(redis)
    await redis.script_flush()
    await run.publish(numbered(10))
    await redis.script_flush()
    await run.streams.join(ONE)
    await redis.script_flush()
    assert len(await run.drain(ONE)) == 4
    assert (await run.counts()).published == 10


async def test_a_script_takes_text_bytes_and_numbers(redis: Redis) -> None:
    remember = Script(redis, "remember")
    await redis.hset("state", "epoch", "first")
    members = [5, -7, 2**63 - 1, -(2**63)]
    answer = await remember(["state", "bucket"], ["first", b"stored", grouped([4], members)])
    assert answer == [b"ok", 4]
    assert await redis.smembers("bucket") == {str(member).encode() for member in members}, "to the last digit"
    complete = Script(redis, "complete")
    await redis.zadd("workers", {"one": "inf"})
    numbers = ["first", "one", 7, 1, 0, grouped([], []), 0, 0]
    assert await complete(["state", "workers", "receipts", "delayed", "deferred"], numbers) == [b"ok", 0]
    assert repr(remember) == "<Script remember>"
