"""Log lines: when, which process, which run, what."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import orjson
import pytest

from crawler.telemetry import logs

ROOT = Path(__file__).parents[3]
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
    assert logs.line_format() == logs.TIME


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


def test_as_json_a_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-1", "info", logs.JSON)
    logging.getLogger("x").warning("a\n%s", "\ud800", extra={"event": "worker_left"})
    logs.name_run("titles")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("x").exception("b")
    logging.getLogger("x").info("c", extra={"run": "others", "action": "pause"})
    first, second, third = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {"level": "warning", "process": "worker-1", "event": "worker_left", "text": "a\n?"}
    assert (second["run"], second["event"], second["text"]) == ("titles", logs.NO_EVENT, "b")
    assert (third["run"], third["action"]) == ("others", "pause")
    assert second["traceback"].endswith("ValueError: x")
    assert logs.line_format() == logs.JSON


def test_lines_of_others_are_passed_on_as_they_are_or_become_json(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("shardcrawl", "info", logs.JSON, in_thread=True)
    line = '{"time":"2026-01-01T00:00:00.000Z","text":"one"}'
    for one in (line, "Traceback"):
        logs.pass_on(one)
    logging.shutdown([lambda: logging.getLogger().handlers[0]])
    first, second = capfd.readouterr().err.splitlines()
    assert first == line
    assert orjson.loads(second)["text"] == "Traceback"


def test_who_logs_never_waits_for_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING_LINES", 10)
    monkeypatch.setattr(logs, "LAST_LINES_SECONDS", 0.01)
    reads, writes = os.pipe()
    size = fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    text = "x" * (size // 4)
    with os.fdopen(writes, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure("worker-1", "info", logs.TIME, in_thread=True)
        for number in range(100):
            logging.getLogger("x").info("%s %s", number, text)
        handler = logging.getLogger().handlers[0]
        handler.close()
        with os.fdopen(reads) as lines:
            said = 0
            for line in lines:
                said += text in line
                if match := re.search(r"(\d+) log lines were left out", line):
                    assert said + int(match[1]) <= 100
                    break


def test_events_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (table,) = re.findall(r"^\| event \| .*?\n\n", page, re.MULTILINE | re.DOTALL)
    used = {logs.NO_EVENT, logs.OUTPUT_EVENT}
    for path in [*(ROOT / "crawler").rglob("*.py"), *(ROOT / "coordinator").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger."):
                extras = [one.value for one in node.keywords if one.arg == "extra"]
                used |= {one.values[0].value for one in extras if isinstance(one.values[0], ast.Constant)}
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))) == used


def test_a_traceback_can_neither_steer_the_terminal_nor_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("worker-1", "info", logs.DATE_AND_TIME)
    try:
        raise ValueError("\x1b[2Jkey\n2026-11-27 12:00:00 coordinator  forged")
    except ValueError:
        logging.getLogger("test").exception("a fault")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("error: a fault")
    assert rest[-2:] == ["  ValueError: \\x1b[2Jkey", "  2026-11-27 12:00:00 coordinator  forged"]
