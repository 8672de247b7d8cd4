"""The stage with real processes: what a batch takes from a process, and what it leaves there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.model import Outcome
from crawler.job.job import read_job
from crawler.job.models import StoreSettings
from crawler.model import Page
from crawler.pipeline.batch import Batch
from crawler.transform.stage import TransformStage
from tests.crawler.examples import a_document, a_page
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

FEATURES = """
import os
kept = []

def batch(records):
    if os.environ["OMP_NUM_THREADS"] != "1":
        raise ValueError("so many threads")
    for record in records:
        match record["n"]:
            case 3:
                bytearray(2_000_000_000)
            case 5:
                os.abort()
            case _:
                kept.append(bytes(90_000_000))
    return [{"_key": record["_key"], "n": record["n"], "pid": os.getpid()} for record in records]
"""
MEMORY, SPAWNED = "200MB", {"n": "bigint", "pid": "bigint"}


HANGS = """
import signal, time

def batch(records):
    if any(record["n"] == 1 for record in records):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as code in C that does not look for signals
        time.sleep(1000)
    return [{"_key": record["_key"], "n": record["n"]} for record in records]
"""


FORKS = """
import os, signal, time

def batch(records):
    if any(record["n"] == 1 for record in records):
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
        os._exit(0)
    return records
"""


def a_stage(folder: Path, code: str, **settings: Any) -> tuple[TransformStage, Batch]:
    (folder / "features.py").write_text(code)
    transform = {"python": "features:batch", "batch": 2, "memory": MEMORY} | settings
    tables = [{"name": "given", "columns": SPAWNED}]
    batch = Batch(StoreSettings())
    job = read_job(a_document(tables=tables, transform=transform), str(folder))
    return TransformStage.open(job, batch, lambda: True, {}), batch


async def passed(count: int, stage: TransformStage, batch: Batch) -> list[Page]:
    """Take pages with one record each through the stage; returns them."""
    pages = [a_page(str(number)) for number in range(count)]
    running = asyncio.create_task(stage.run())
    try:
        for number, page in enumerate(pages):
            page.records = [(0, {"n": number})]  # type: ignore[list-item]
            stage.add(page)
        await eventually(lambda: len(batch) == len(pages) or running.done(), "all pages", seconds=60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await stage.close()
    return pages


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
async def test_a_record_that_needs_too_much_costs_its_key_and_a_process_that_has_too_little_left_begins_anew(
    tmp_path: Path,
) -> None:
    """Each record leaves 90 MB in its process, which may have 200 MB: the third one needs another process."""
    pages = await passed(6, *a_stage(tmp_path, FEATURES, batch=1))
    failed = {page.item.key: page.reason for page in pages if page.outcome is Outcome.FAILED}
    assert failed == {
        "3": "transform: MemoryError (features.py, line 11)",
        "5": "transform: its process was ended by SIGABRT, 2 times",
    }
    rows = [row for page in pages for _, row in page.records]
    assert sorted(row[0] for row in rows) == [0, 1, 2, 4]
    assert len({row[1] for row in rows}) == 3


async def test_a_record_that_hangs_in_code_that_cannot_be_interrupted_costs_its_key(tmp_path: Path) -> None:
    pages = await passed(2, *a_stage(tmp_path, HANGS, seconds=0.1))
    assert [page.reason for page in pages] == [None, "transform: its process gave no result within 1.1 s"]
    assert pages[0].records == [(0, (0, None))]


async def test_a_process_that_dies_is_seen_though_what_it_has_forked_lives(tmp_path: Path) -> None:
    pages = await passed(2, *a_stage(tmp_path, FORKS, seconds=1))
    assert [page.reason for page in pages] == [None, "transform: its process was ended by SIGKILL, 2 times"]
