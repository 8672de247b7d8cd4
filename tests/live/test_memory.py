"""The memory of a worker is bounded whatever arrives."""

from __future__ import annotations

import gzip
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process had at most"),
]

MB = 1_000_000
BODY_BYTES = 8 * MB
KEYS = 64


class Packed(Upstream):
    """Each of its responses is small, and decodes to 8 MB."""

    packed = CannedResponse(
        200, gzip.compress(bytes(BODY_BYTES)), headers="Content-Encoding: gzip\r\n", content_type="image/png"
    )

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        super().respond(method, target, condition)
        return self.packed


@pytest.fixture
async def packed() -> AsyncIterator[Packed]:
    async with Packed() as upstream:
        yield upstream


@pytest.mark.slow
async def test_small_responses_that_become_large_do_not_exceed_the_memory(shell: Shell, packed: Packed) -> None:
    """Together they are 512 MB."""
    shell.write("keys.txt", [f"{packed.url}/{number}" for number in range(KEYS)])
    text = f"""
        [run]
        name = "large"
        workers = 1
        memory = "120MB"
        [source]
        path = "keys.txt"
        [request]
        robots = false
        max_body = {BODY_BYTES}
        [store]
        batch_bytes = {BODY_BYTES}
    """
    running = await shell.start("run", shell.write("job.toml", text))
    worker, most = Path(f"/proc/{(await running.child('worker-1')).pid}/status"), 0

    def ended() -> bool:
        nonlocal most
        try:
            most = max(most, 1024 * int(worker.read_text().partition("VmHWM:")[2].split()[0]))
        except (OSError, IndexError):
            return True
        return False

    await eventually(ended, "the end of the worker", seconds=60)
    assert (await running.end()).code == 0
    assert 0 < most <= 200 * MB
    (row,) = await shell.sql(
        "select count(*) as pages, sum(length(content)) as bytes from pages where outcome = 'stored'"
    )
    assert (row["pages"], int(row["bytes"])) == (KEYS, KEYS * BODY_BYTES)
