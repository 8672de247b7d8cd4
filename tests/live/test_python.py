"""Runs from Python: by programs and notebooks, in which an event loop may run already."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from arro3.core import Table

import crawler
from coordinator.errors import UsageError
from crawler.sample.upstream import Upstream
from tests.live.shell import Running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = [{"sku": number, "country": "de", "caption": f"c{number}"} for number in range(400)]
PROGRAM = """
import asyncio, sys, crawler, tests.live.test_python as test
async def main():
    try:
        crawler.run(test.job(sys.argv[1]), keys=test.KEYS, workers=1)
    except KeyboardInterrupt as error:
        sys.exit(f"KeyboardInterrupt: {error}")
asyncio.run(main())
"""


def job(url: str) -> dict[str, object]:
    return {
        "run": {"corpus": "items", "concurrency": 5},
        "source": {"key": ["sku", "country"], "carry": "caption"},
        "request": {"url": f"{url}/slow/20/{{sku}}-{{country}}", "allow_private": ["127.0.0.0/8"]},
        "limits": {"*": {"rate": "none"}},
        "tables": [
            {"name": "items", "columns": {"id": "text", "caption": {"type": "text", "from": "$source.caption"}}}
        ],
    }


async def test_an_interrupted_run_is_finished_by_the_same_call(
    tmp_path: Path, upstream: Upstream, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, upstream.url),
        env={**os.environ, **environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await eventually(lambda: upstream.requests >= 20, "20 requests")
    process.send_signal(signal.SIGINT)
    ended = await Running(process).end()
    assert ended.code == 1, ended.err
    assert "finishing what is in flight" in ended.err
    assert "KeyboardInterrupt: run items-20" in ended.err
    assert upstream.requests < len(KEYS)

    here = crawler.connect(redis=environ["REDIS_URL"], database=environ["DATABASE_URL"], data=tmp_path / ".shardcrawl")
    result = await asyncio.to_thread(here.run, job(upstream.url), keys=KEYS, workers=1)
    assert upstream.requests == len(KEYS), "what was in flight was finished"
    assert (result.state, result.ok, result.published, result.tables) == ("complete", True, True, ("items",))
    assert result.outcomes["stored"] == len(KEYS)
    assert f"run {result.run} is complete: 400 stored" in capsys.readouterr().err
    rows = Table(await asyncio.to_thread(lambda: result.read(columns=["_key"], where="caption = 'c7'").read_all()))
    assert rows.column("_key").to_pylist() == ['["7","de"]']
    assert [run["name"] for run in await asyncio.to_thread(here.runs)] == [result.run]
    with pytest.raises(UsageError, match="corpus items has no run before"):
        await asyncio.to_thread(here.diff, "items")
