"""Several keys a request: requests are full whatever the source, so that a run costs no more of them than it must."""

from __future__ import annotations

import asyncio
import subprocess
from urllib.parse import unquote

import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import CommandResult, Shell

pytestmark = pytest.mark.anyio

KEYS, KEYS_PER_REQUEST = 2000, 50
ALL_KEYS = [f"key {number}" for number in range(KEYS)]
FEWEST, MOST = 40, 44
GENERATORS = {
    "a generator that pauses after each key": """
        def keys():
            for number in range(2000):
                time.sleep(0.002)
                yield f"key {number}"
    """,
    "a generator that pauses longer after a number of keys that fills no request": """
        def keys():
            for number in range(2000):
                if number % 170 == 0:
                    time.sleep(0.5)
                yield f"key {number}"
    """,
    "a generator of pages that an API gives": """
        def keys():
            for page in range(20):
                time.sleep(0.15)
                yield from [f"key {number}" for number in range(100 * page, 100 * page + 100)]
    """,
}


def written(shell: Shell, upstream: Upstream, source: str) -> None:
    text = job(upstream, f"keys_per_request = {KEYS_PER_REQUEST}", template="/batch?ids={keys}")
    shell.write("job.toml", text.replace('path = "keys.txt"', source))


async def full_requests(shell: Shell, upstream: Upstream, ended: CommandResult) -> None:
    """Check that every key was requested once, in no more requests than it takes."""
    assert ended.code == 0, ended.err
    requested = [unquote(path).partition("ids=")[2].split("|") for path in upstream.paths]
    assert sorted(key for keys in requested for key in keys) == sorted(ALL_KEYS)
    assert FEWEST <= len(requested) <= MOST, sorted(map(len, requested))
    assert await shell.sql("select outcome, count(*) as keys from pages group by 1") == [
        {"outcome": "stored", "keys": KEYS}
    ]


async def test_a_file(shell: Shell, upstream: Upstream) -> None:
    written(shell, upstream, 'path = "keys.txt"')
    shell.write("keys.txt", ALL_KEYS)
    checked = await shell.run("check", "job.toml")
    assert "about 2,000 keys in about 40 requests of up to 50 keys" in checked.out
    await full_requests(shell, upstream, await shell.run("run", "job.toml"))


async def test_a_pipe(shell: Shell, upstream: Upstream) -> None:
    written(shell, upstream, 'path = "-"')
    running = await shell.start("run", "job.toml", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    for start in range(0, KEYS, 130):
        running.process.stdin.write("".join(f"{key}\n" for key in ALL_KEYS[start : start + 130]).encode())
        await running.process.stdin.drain()
        await asyncio.sleep(0.05)  # the writer of a pipe pauses: that is what is tested
    running.process.stdin.close()
    await full_requests(shell, upstream, await running.end())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a generator that pauses after each key", marks=pytest.mark.slow),
        "a generator that pauses longer after a number of keys that fills no request",
        pytest.param("a generator of pages that an API gives", marks=pytest.mark.slow),
    ],
)
async def test_a_generator(shell: Shell, upstream: Upstream, name: str) -> None:
    written(shell, upstream, 'python = "corpus:keys"')
    shell.write("corpus.py", "import time\n" + GENERATORS[name].replace("\n        ", "\n"))
    await full_requests(shell, upstream, await shell.run("run", "job.toml"))


@pytest.mark.parametrize("step", ["read:2", pytest.param("published:2", marks=pytest.mark.slow)])
async def test_a_coordinator_that_dies_while_it_fills_requests_loses_no_key(
    shell: Shell, upstream: Upstream, step: str
) -> None:
    """What it had read and not published is read again; of what it had published, nothing is requested again."""
    written(shell, upstream, 'python = "corpus:keys"')
    generator = GENERATORS["a generator that pauses after each key"]
    shell.write("corpus.py", "import time\n" + generator.replace("\n        ", "\n"))
    ended = await shell.run("run", "job.toml", environ={"FAILPOINT": f"coordinator:{step}"})
    assert "coordinator was ended by SIGKILL" in ended.err
    await full_requests(shell, upstream, ended)
    await shell.run("audit", "test")
