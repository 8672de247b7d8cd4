"""The Lua scripts: each has a contract, uses only keys that it was given, and is loaded again when Redis forgot it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from redis.asyncio import Redis

import coordinator
from coordinator.queue.wire import encode_members
from coordinator.redis.scripts import Script, source
from tests.coordinator.parts import ONE, Run, numbered

pytestmark = pytest.mark.anyio

FOLDER = Path(str(files("coordinator").joinpath("lua")))
TEXTS = {str(path.relative_to(FOLDER).with_suffix("")): path.read_text() for path in FOLDER.rglob("*.lua")}
FRAGMENTS = {name.removeprefix("fragments/"): text for name, text in TEXTS.items() if name.startswith("fragments/")}
LUA = {name: text for name, text in TEXTS.items() if not name.startswith("fragments/")}
PYTHON = "".join(file.read_text() for file in Path(next(iter(coordinator.__path__))).rglob("*.py"))


def contract(text: str) -> str:
    """The comment at the top of a script."""
    return "".join(re.findall(r"\A(?:--.*\n)+", text))


def included(text: str) -> list[str]:
    """The fragments that a script includes, also where the line is not written in the right form."""
    return re.findall(r"^\s*--\s*include\b:? *(.*)$", text, re.MULTILINE)


def defined(fragment: str) -> list[str]:
    """What a fragment defines."""
    return re.findall(r"^local (?:function )?(\w+)", FRAGMENTS[fragment], re.MULTILINE)


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


@pytest.mark.parametrize("name", sorted(FRAGMENTS))
def test_a_fragment_says_what_it_needs_and_defines(name: str) -> None:
    text = FRAGMENTS[name]
    opening = contract(text)
    code = text.removeprefix(opening)
    assert "-- Defines: " in opening
    assert not included(text), "a script includes all that it needs by itself"
    assert not re.search("KEYS|ARGV", code), "the script names its keys and arguments"
    needs = re.search(r"\A-- Needs: (.*)\.\n", opening)
    for needed in needs[1].split(", ") if needs else ():
        assert needed in code
        for script in (script for script, other in LUA.items() if name in included(other)):
            before = source(script).partition(text)[0]
            assert re.search(rf"^local {needed}\b", before, re.MULTILINE), f"{script} has no {needed}"


@pytest.mark.parametrize("name", sorted(FRAGMENTS))
def test_a_fragment_is_included(name: str) -> None:
    assert any(name in included(text) for text in LUA.values())


@pytest.mark.parametrize("name", sorted(LUA))
def test_what_a_script_includes_exists_is_there_once_and_is_used(name: str) -> None:
    text = source(name)
    assert not included(text), "every include is replaced"
    for fragment in included(LUA[name]):
        assert text.count(FRAGMENTS[fragment]) == 1
        rest = text.replace(FRAGMENTS[fragment], "")
        assert any(re.search(rf"\b{word}\b", rest) for word in defined(fragment)), f"{fragment} is of no use"


@pytest.mark.parametrize("name", sorted(LUA))
def test_a_script_is_used(name: str) -> None:
    assert f'Script(client, "{name}"' in PYTHON


@pytest.mark.parametrize("name", sorted(LUA))
def test_a_script_touches_only_keys_that_it_was_given(name: str) -> None:
    """In a cluster, other keys may be on another server."""
    code = re.sub(r"^ *--.*\n", "", source(name), flags=re.MULTILINE)
    calls = re.findall(r"redis\.call\('(\w+)'((?:, *'(?:\w+)')*)(?:, *([^,)]+))?", code)
    assert len(calls) == code.count("redis.call("), "every call is understood"
    given = set(re.findall(r"^ *local (\w+) = KEYS\[[^\]]+\]$", code, re.MULTILINE))
    # A function may take a key: then its callers must pass one that the script was given.
    takes = {
        (function, at): parameter
        for function, parameters in re.findall(r"local function (\w+)\(([^)]*)\)", code)
        for at, parameter in enumerate(parameters.split(", "))
        if parameter.endswith("_key")
    }
    given.update(takes.values())
    for function, at in takes:
        uses = re.findall(rf"(?<!function )\b{function}\(([^)]*)\)", code)
        passed = {arguments.split(", ")[at] for arguments in uses}
        assert all(key.startswith("KEYS[") or key in given for key in passed), f"{function}: {passed}"
    for command, _, key in calls:
        if command in ("TIME", "XREADGROUP"):
            continue
        assert key.startswith("KEYS[") or key in given, f"{command} {key}"
    for streams in re.findall(r"'XREADGROUP'.*'STREAMS', (\S+),", code):
        assert streams in given


async def test_a_script_that_redis_has_forgotten_is_sent_again(redis: Redis) -> None:
    run = await Run.create(redis)
    await redis.script_flush()
    await run.publish(numbered(10))
    await redis.script_flush()
    await run.streams.join(ONE)
    await redis.script_flush()
    assert len(await run.drain(ONE)) == 4
    assert (await run.counts()).published == 10


async def test_a_script_takes_text_bytes_and_numbers(redis: Redis) -> None:
    done_add = Script(redis, "run/done_add")
    await redis.hset("state", "epoch", "first")
    members = [5, -7, 2**63 - 1, -(2**63)]
    result = await done_add(["state", "bucket"], ["first", b"stored", encode_members([4], members)])
    assert result == [b"ok", 4]
    assert await redis.smembers("bucket") == {str(member).encode() for member in members}, "to the last digit"
    complete = Script(redis, "queue/complete")
    await redis.zadd("workers", {"one": "inf"})
    numbers = ["first", "one", 7, 1, 0, encode_members([], []), b"\x80", 0, 0]
    assert await complete(["state", "workers", "receipts", "due", "deferred", "timings"], numbers) == [b"ok", 0]
    assert repr(done_add) == "<Script run/done_add>"


def test_scripts_are_read_as_utf8_where_the_locale_is_another() -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from coordinator.redis.scripts import source; source('limits/reserve')"
    subprocess.run([sys.executable, "-c", code], env=ascii_only, check=True)
