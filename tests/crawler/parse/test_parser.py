"""The job's parser in a child process: the pages become what they become in the loop, whatever the parser does."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from coordinator.model import NO_CONTEXT, KeyContext, Outcome
from coordinator.stages.timing import Timing
from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.parse import hook
from crawler.parse import parser as parser_module
from crawler.parse.code import parser_files
from crawler.parse.parser import MAX_FAILED_ALONE, Parser
from crawler.parse.remote import ParserSetup, ParseTask, parse_handler, parse_task
from crawler.parse.slow_parser import FIRST_CALLS
from crawler.pool import child
from crawler.pool.pool import Pool
from crawler.pool.process import ChildProcess, ChildUnusable
from crawler.pool.protocol import ChildSetup
from tests.crawler.examples import a_job, a_page
from tests.crawler.parse.test_hook import Sent
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

COLUMNS = {
    "n": "bigint", "big": "numeric", "at": "timestamptz", "day": "date", "span": "interval", "text": "text",
    "raw": "bytea", "more": "jsonb", "id": "uuid", "list": "integer[]", "pid": "integer",
}  # fmt: skip
MODULE = """
import itertools, os, re, signal, sys, time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

def parse(response):
    name = response.keys[0]
    return globals()[name.partition("-")[0]](response)

def good(response):
    return {"facts": [{
        "n": 2**63 - 1, "big": 10**400 + 1, "at": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))),
        "day": date(2026, 2, 3), "span": timedelta(microseconds=1), "text": response.text() + "ü", "raw": b"\\0",
        "more": {"n": 2**60, "header": response.headers.get("X-Shown"), "all": response.headers.items(),
                 **response.source},
        "id": UUID(int=7), "list": [1, None]}, {"big": Decimal("1.50"), "n": len(response.url) + response.status}]}

def several(response):
    response.gone("b", "no such key")
    response.failed("c", "nothing usable")
    return {"facts": [{"_key": "several-a", "n": 1}, {"_key": "b", "n": 1}, {"_key": "d", "n": "x"}]}

def raises(response): raise RuntimeError("first\\nsecond")
def exits(response): sys.exit("bye")
def unfit(response): return {"facts": [{"n": 1}, {"n": 1.5}]}
def badly(response): return [1]
def elsewhere(response): return {"other": []}
def says(response): response.failed(response.key, "x" * 9999)
def nothing(response): pass
def again(response): response.retry("busy", after=2)
def againone(response):
    response.retry("busy", key="b")
    response.unchanged("c")
    return {"facts": [{"_key": "againone-a", "n": 1}, {"_key": "b", "n": 1}]}


class Known(date): pass
def known(response): return {"facts": [{"day": Known(2026, 1, 1)}]}

def local(response):
    class Day(date): pass
    class Text(str): pass
    day, text = Day(2026, 1, 1), Text("c")
    return {"facts": [{"_key": "local-a", "day": day}, {"_key": "b", "n": 1}, {"_key": "c", "text": text}]}

def pid(response): return {"facts": [{"pid": os.getpid()}]}
def dies(response): os._exit(7)
def once(response):
    try:
        os.close(os.open("died", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return pid(response)
    os.kill(os.getpid(), signal.SIGSEGV)
def hangs(response):
    open("hangs", "w").write(str(os.getpid()))
    while True: pass
def matches(response): re.match("(a+)+$", "a" * 40 + "b")
def sleeps(response): time.sleep(1e6)
def computes(response): sum(itertools.repeat(0))  # in C, which holds the lock of Python
def insists(response):
    while True:
        try:
            time.sleep(1e6)
        except BaseException: pass
def slow(response):
    time.sleep(0.005)
    return pid(response)
"""
KEYS_OF_TASKS: tuple[tuple[str, ...], ...] = (
    ("good",), ("several-a", "b", "c", "d"), ("raises",), ("raises-a", "b"), ("exits",), ("unfit",), ("badly",),
    ("elsewhere",), ("says",), ("nothing",), ("unknown",), ("known",),
    ("again",), ("again-a", "b"), ("againone-a", "b", "c"),
)  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    name = f"parse_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    job = a_job(parse={"python": f"{name}:parse"}, tables=[{"name": "facts", "columns": COLUMNS}])
    return Job(**{field: getattr(job, field) for field in Job.__slots__ if field != "folder"}, folder=str(tmp_path))


def arguments(*keys: str) -> tuple[list[Page], str, HttpResponse]:
    pages = [a_page(key, body=None) for key in keys]
    for page in pages:
        page.item = page.item._replace(context=KeyContext(fields={"caption": "A"}))
        page.etag = page.last_modified = "from the response"
    headers = Sent({"content-type": "text/plain; charset=latin1", "x-shown": "é"})
    headers.get = lambda name: dict(headers.items()).get(name.lower())  # type: ignore[method-assign]
    return pages, "https://upstream.example/api", HttpResponse(200, headers, "é".encode("latin-1"))


def fields(pages: list[Page]) -> list[Any]:
    return [
        (page.outcome, page.reason, page.records, page.etag, page.last_modified, page.encoding, page.again)
        for page in pages
    ]


@asynccontextmanager
async def in_child(job: Job, *, moved: bool = True) -> AsyncIterator[Callable[..., Any]]:
    """A function that parses keys in a child, unless it is not `moved` yet; at the end no child is left."""
    before = set(psutil.Process().children())
    loaded = hook.load(job)
    assert loaded is not None
    parser = Parser(loaded, job)
    if moved:
        parser._move_to_child("")

    async def parsed(*keys: str) -> list[Page]:
        pages, url, http_response = arguments(*keys)
        await parser.parse(pages, url, http_response)
        return pages

    try:
        async with asyncio.timeout(60):
            yield parsed
    finally:
        await parser.close()
    assert set(psutil.Process().children()) <= before


def setup_of(job: Job) -> ParserSetup:
    assert job.parse.python is not None
    return ParserSetup(job, job.parse.python.partition(":")[0])


def child_process() -> psutil.Process:
    (found,) = [process for process in psutil.Process().children() if child.__name__ in process.cmdline()]
    return found


async def test_every_result_is_the_same_as_in_the_loop(job: Job) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    async with in_child(job) as parsed:
        for keys, pages in zip(
            KEYS_OF_TASKS, await asyncio.gather(*(parsed(*keys) for keys in KEYS_OF_TASKS)), strict=True
        ):
            expected, url, http_response = arguments(*keys)
            loaded.apply(expected, url, http_response)
            assert fields(pages) == fields(expected), keys
            assert keys != ("good",) or "caption" in str(pages[0].records)
            values = [[[type(value) for value in row] for _, row in page.records] for page in pages]
            assert values == [[[type(value) for value in row] for _, row in page.records] for page in expected]


async def test_classes_of_two_parsers_of_one_name_are_not_mixed_up(job: Job, tmp_path: Path) -> None:
    assert job.parse.python is not None
    name = f"{job.parse.python.partition(':')[0]}.py"
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / name, tmp_path / "second" / name)
    second = replace(job, folder=str(tmp_path / "second"))
    types = []
    for one in (job, second):
        loaded = hook.load(one)
        assert loaded is not None
        async with in_child(one) as parsed:
            (page,) = await parsed("known")
        types.append(type(page.records[0][1][list(COLUMNS).index("day")]))
        assert types[-1].__module__ == loaded.module_name
    assert types[0] is not types[1]


async def test_a_record_that_pickle_refuses_costs_its_own_key(job: Job) -> None:
    async with in_child(job) as parsed:
        pages = await parsed("local-a", "b", "c")
    assert [page.outcome for page in pages] == [Outcome.FAILED, Outcome.STORED, Outcome.STORED]
    assert pages[0].reason.startswith("parse: a record that cannot leave the parser's process: ")
    assert pages[2].records[0][1][5] == "c"


async def test_the_key_that_ends_the_process_is_failed_and_the_others_are_parsed(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"pid-{number}" for number in range(20)]
    names[3:3], names[9:9] = ["dies-a"], ["dies-b"]
    async with in_child(job) as parsed:
        parsed_pages = [pages[0] for pages in await asyncio.gather(*(parsed(name) for name in names))]
    for name, page in zip(names, parsed_pages, strict=True):
        if name.startswith("dies"):
            assert (page.outcome, page.reason) == (
                Outcome.FAILED,
                "parse: its process ended with exit code 7, 2 times",
            )
        else:
            assert page.outcome is Outcome.STORED
    assert len({page.records[0][1][-1] for page in parsed_pages if page.records}) > 1
    assert [record.levelno for record in caplog.records if "starts again" in record.message] == [logging.WARNING]


async def test_a_key_whose_process_was_killed_once_is_attempted_again(job: Job) -> None:
    async with in_child(job) as parsed:
        results = await asyncio.gather(*(parsed(name) for name in ("pid", "once", "pid-2")))
        assert [pages[0].outcome for pages in results] == [Outcome.STORED] * 3
        idle = child_process()
        idle.kill()
        await eventually(lambda: not idle.is_running(), "the end of the idle process")
        assert (await parsed("pid-3"))[0].outcome is Outcome.STORED


@pytest.mark.parametrize("moved", [False, True], ids=["in the loop", "in the child"])
async def test_a_parse_that_never_ends_is_given_up(
    job: Job, moved: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop, a regular expression and a sleep are interrupted in their place, in the loop too; C is killed."""
    monkeypatch.setattr(parser_module, "MAX_CALL_SECONDS_IN_LOOP", 0.3)
    monkeypatch.setattr(parser_module, "KILL_SLACK_SECONDS", 0.3)
    caplog.set_level(logging.INFO)
    job = replace(job, parse=msgspec.structs.replace(job.parse, timeout=0.5))
    names = ["hangs", "pid", "matches", "pid-2", "sleeps", "pid-3", *(["computes", "insists", "pid-4"] * moved)]
    async with in_child(job, moved=moved) as parsed:
        found = {name: (await parsed(name))[0] for name in names}
    for name, page in found.items():
        if name.startswith("pid"):
            assert page.outcome is Outcome.STORED, page.reason
            assert page.records[0][1][-1] != os.getpid()
        elif name in ("computes", "insists"):
            assert page.reason == "parse: its process gave no result within 0.8 s"
        else:
            words = r"parse: OutOfTime: no result within 0\.5 s \(\[parse\] timeout\) \(parse_\w+\.py, line \d+\)"
            assert re.fullmatch(words, page.reason or ""), page.reason
    said = [record.getMessage() for record in caplog.records if "process of its own" in record.getMessage()]
    reason = "" if moved else "gave no result within 0.3 s"
    assert said == [f"the parser {reason}: from now on it runs in a process of its own"]


async def test_keys_of_a_block_that_a_worker_died_of_are_never_parsed_in_the_loop(job: Job) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    parser = Parser(loaded, job)
    try:
        for deliveries, elsewhere in ((1, False), (2, True), (1, True)):
            pages, url, http_response = arguments("pid")
            pages[0].item.block.deliveries = deliveries
            await parser.parse(pages, url, http_response)
            assert (pages[0].records[0][1][-1] != os.getpid()) is elsewhere
    finally:
        await parser.close()


async def test_a_cancelled_parse_takes_nothing_from_the_others(job: Job) -> None:
    async with in_child(job) as parsed:
        await parsed("pid")
        tasks = [asyncio.create_task(parsed(f"slow-{number}")) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(pages, list) for pages in ended] == [False, True] * 10
        assert {pages[0].item.key for pages in ended[1::2]} == {f"slow-{number}" for number in range(1, 20, 2)}  # type: ignore[index]


async def test_the_process_ignores_what_asks_for_a_drain_and_goes_with_the_worker_in_mid_parse(
    job: Job, tmp_path: Path
) -> None:
    async with in_child(job) as parsed:
        (page,) = await parsed("pid")
        for number in (signal.SIGTERM, signal.SIGINT):
            child_process().send_signal(number)
        assert (await parsed("pid-2"))[0].records == page.records
        hanging = asyncio.create_task(parsed("hangs"))
        await eventually(lambda: (tmp_path / "hangs").exists(), "a parse that hangs")
    with pytest.raises(asyncio.CancelledError):
        await hanging


async def test_a_parse_that_never_ends_does_not_outlive_its_worker(job: Job, tmp_path: Path) -> None:
    setup = ChildSetup(f"{parse_handler.__module__}:parse_handler", setup_of(job), 60, "parser", "INFO")
    process = await ChildProcess.start(setup, 60)
    process.send(ParseTask([("hangs", b"", NO_CONTEXT)], "", 200, [], b""))
    await eventually(lambda: (tmp_path / "hangs").exists(), "a parse that hangs")
    process.abort()  # what the kernel does for a worker that was killed
    await eventually(lambda: process._process.returncode is not None, "the end of the parser's process")


async def test_an_error_for_several_keys_is_returned_from_the_loop_and_from_the_child(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    error = f"parse: RuntimeError: first ({job.parse.python.partition(':')[0]}.py, line 24)"
    for in_a_child in (False, True):
        parser = Parser(loaded, job)
        if in_a_child:
            parser._move_to_child("")
        try:
            assert await parser.parse(*arguments("raises-a", "b")) == error
            assert await parser.parse(*arguments("raises-a")) is None
            assert await parser.parse(*arguments("several-a", "b", "c", "d")) is None
            if in_a_child:
                assert (await parser.parse(*arguments("dies-a", "b")) or "").startswith("parse: its process ended")
        finally:
            await parser.close()
    said = [record.getMessage() for record in caplog.records if "requested alone" in record.getMessage()]
    assert said == [f"the parser failed on a response for 2 keys, which are now requested alone: {error}"] * 2


async def test_a_parser_that_fails_on_everything_lets_no_more_keys_go_alone(job: Job) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    parser = Parser(loaded, job)
    for _ in range(MAX_FAILED_ALONE):
        assert await parser.parse(*arguments("raises-a", "b")) is not None
        assert await parser.parse(*arguments("raises-a")) is None
    assert await parser.parse(*arguments("raises-a", "b")) is None
    await parser.parse(*arguments("nothing"))
    assert await parser.parse(*arguments("raises-a", "b")) is not None, "it does not fail on everything"


async def test_a_parser_moves_once_it_is_slow_and_says_so_once(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded, timing = hook.load(job), Timing()
    assert loaded is not None
    parser = Parser(loaded, job, timing=timing)
    pids = []
    try:
        for number in range(12):
            pages, url, http_response = arguments(f"slow-{number}")
            await parser.parse(pages, url, http_response)
            pids.append(pages[0].records[0][1][-1])
    finally:
        await parser.close()
    assert pids[:FIRST_CALLS] == [psutil.Process().pid] * FIRST_CALLS
    counts = {field: count for field, count in timing.take("parse").items() if field != "parse us"}
    assert sum(counts.values()) == 12, "in the worker and in the child"
    assert len(set(pids[FIRST_CALLS:])) == 1
    assert pids[FIRST_CALLS] != pids[0]
    (line,) = [record.getMessage() for record in caplog.records if "process of its own" in record.getMessage()]
    assert line.startswith("the parser takes ")


async def test_a_parser_that_cannot_be_imported_again_stays_in_the_worker(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    (module,) = tmp_path.glob("*.py")
    module.write_text("raise RuntimeError('not twice')")
    unusable = Pool(parse_handler, setup_of(job), name="parser", seconds=60)
    with pytest.raises(ChildUnusable, match="not twice"):
        await unusable.run(parse_task(*arguments("pid")))
    await unusable.close()
    parser = Parser(loaded, job)
    parser._move_to_child("")
    calls = [arguments(f"slow-{number}") for number in range(5)]
    await asyncio.gather(*(parser.parse(*call) for call in calls))
    assert [page.outcome for pages, _, _ in calls for page in pages] == [Outcome.STORED] * 5
    with pytest.raises(StopIteration):
        parser.parse(*arguments("slow")).send(None)  # it does not suspend
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.WARNING]
    await parser.close()


async def test_a_parser_that_was_edited_stays_in_the_worker_as_it_was_loaded(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = hook.load(job)
    assert loaded is not None
    parser = Parser(loaded, job, parser_files(job).digests)
    (module,) = tmp_path.glob("*.py")
    module.write_text("def parse(response):\n    response.failed(response.key, 'edited')\n")
    parser._move_to_child("")
    pages, *call = arguments("pid")
    await parser.parse(pages, *call)
    await parser.close()
    assert pages[0].outcome is Outcome.STORED
    assert f"{module.name} is not the one with which the run was opened" in caplog.text


async def test_a_column_that_turns_null_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    columns = {"a": {"type": "bigint", "from": "a"}, "b": {"type": "bigint", "from": "b?"}}
    job = a_job(tables=[{"name": "facts", "columns": columns}])
    loaded = hook.load(job)
    assert loaded is not None
    parser = Parser(loaded, job)
    for body in [b'{"a": 1, "b": 2}'] * 1000 + [b'{"a": 1}'] * 1001:
        await parser.parse([a_page("k", body=None)], "https://upstream.example/", HttpResponse(200, Sent(), body))
    assert parser.turned_null.keys() == {"facts.b"}
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "column facts.b was filled, and is null in every record of 1,000 pages since "
    )
