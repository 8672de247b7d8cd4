"""Log lines: when, which process, which run, what."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator

import pytest

from crawler.telemetry import logs

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.basicConfig(handlers=handlers, level=level, force=True)
    logs.name_run("")


def test_a_line_has_date_process_run_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-1", "info", logs.DATE_AND_TIME)
    logging.getLogger("x").warning("one")
    logs.name_run("titles")
    logging.getLogger("x").warning("two\x1b[31m")
    logging.getLogger("x").info("three")
    lines = capsys.readouterr().err.splitlines()
    for line, rest in zip(lines, ("warning: one", r"titles: warning: two\\x1b\[31m", "titles: three"), strict=True):
        assert re.fullmatch(rf"{DATED} worker-1     {rest}", line), line


def test_on_a_terminal_a_line_has_the_time_alone_and_children_have_their_parents_format(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("shardcrawl", "info", logs.TIME)
    logging.getLogger("x").info("one")
    assert re.fullmatch(r"\d\d:\d\d:\d\d shardcrawl   one\n", capsys.readouterr().err)
    assert logs.time_format() == logs.TIME


def test_tasks_of_several_runs_name_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(run: str) -> None:
        logs.name_run(run)
        await asyncio.sleep(0)
        await asyncio.create_task(log())

    async def log() -> None:
        logging.getLogger("x").info("here")

    async def serve_all() -> None:
        await asyncio.gather(serve("a"), serve("b"))

    logs.configure("worker-1", "info", logs.TIME)
    asyncio.run(serve_all())
    assert [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()] == ["a: here", "b: here"]


def test_the_same_text_is_said_once_a_minute() -> None:
    now = 0.0
    errors = logs.Repeated(lambda: now)
    said = []
    for now in (0.0, 11.0, 59.0, 60.0, 61.0):
        said += [(now, text) for text in ("a", "b") if errors.is_due(text)]
    assert said == [(0.0, "a"), (0.0, "b"), (60.0, "a"), (60.0, "b")]
