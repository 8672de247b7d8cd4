"""The test kit says what a run would store; its page in the documents shows tests that pass."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler import Response
from crawler.testing import Parsed, SavedResponse, parse, parse_file, response, write_response

JOB = """
[run]
name = "tested"
[source]
path = "keys.txt"
[request]
url = "https://api.example.org/items?ids={keys}"
headers = { Authorization = "Bearer ${TOKEN}" }
keys_per_request = 50
[parse]
python = "parse:items"
timeout = 2.0
[[tables]]
name = "facts"
columns = { n = "bigint", price = "numeric(6, 2)", at = "timestamptz", more = "jsonb", parts = "jsonb[]" }
[[tables]]
name = "notes"
columns = { text = "text" }
"""
PARSER = """
import re

def items(response):
    return globals()[response.key](response) if len(response.keys) == 1 else several(response)

def values(response):
    return {"facts": [{"n": 1, "price": "1.50", "at": "2026-01-01T02:00:00+02:00", "more": {"a": [1.25]},
                       "parts": [{}, None]}], "notes": [["é"], (None,)]}

def seen(response):
    return {"notes": [[str(value)] for value in (response.url, response.status, response.headers.get("X-One"),
                                                 response.headers.get("content-type"), response.text())]}

def gone(response):
    response.gone(response.key)

def failed(response):
    response.failed(response.key, "too old")

def nothing(response):
    return None

def wrong(response):
    return {"facts": [{"n": 1.7}]}

def error(response):
    return response.json()["title"]

def leaves(response):
    raise SystemExit(3)

def endless(response):
    while True: pass

def busy(response):
    response.retry("busy", after=3)

def several(response):
    items = response.json()["items"]
    return {"facts": [{"_key": item["id"], "n": item["n"]} for item in items]}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    tmp_path.joinpath("parse.py").write_text(PARSER)
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def parsed_as(job: Path, key: str, body: Any = b"{}", **more: Any) -> Parsed:
    return parse(job, response(body, key=key, **more))


def test_values_are_those_of_their_columns(job: Path) -> None:
    assert parsed_as(job, "values") == Parsed(
        tables={
            "facts": [
                {
                    "n": 1,
                    "price": Decimal("1.50"),
                    "at": datetime(2026, 1, 1, tzinfo=UTC),
                    "more": {"a": [1.25]},
                    "parts": [{}, None],
                }
            ],
            "notes": [{"text": "é"}, {"text": None}],
        },
        outcomes={"values": ("stored", None)},
        by_key={"values": parsed_as(job, "values").tables},
    )


@pytest.mark.parametrize(
    ("key", "outcome", "reason"),
    [
        ("nothing", "stored", None),
        ("gone", "gone", "the response says that it does not exist"),
        ("failed", "failed", "too old"),
        ("busy", "retry", "busy"),
        ("wrong", "failed", "parse: facts.n: 1.7 is no whole number"),
        ("error", "failed", "parse: KeyError: 'title' (parse.py, line 28)"),
        ("leaves", "failed", "parse: SystemExit: 3 (parse.py, line 31)"),
        ("endless", "failed", "parse: OutOfTime: no result within 2 s ([parse] timeout) (parse.py, line 34)"),
    ],
)
def test_whatever_a_parser_does_is_an_outcome(job: Path, key: str, outcome: str, reason: str | None) -> None:
    parsed = parsed_as(job, key)
    assert parsed.outcomes == {key: (outcome, reason)}
    assert parsed.tables == {"facts": [], "notes": []}


def test_an_error_of_a_parser_has_a_traceback_of_its_own_files(job: Path) -> None:
    shown = parsed_as(job, "error").traceback or ""
    assert [line.strip() for line in shown.splitlines() if line.strip("~^ ")] == [
        f'File "{job.parent}/parse.py", line 5, in items',
        "return globals()[response.key](response) if len(response.keys) == 1 else several(response)",
        f'File "{job.parent}/parse.py", line 28, in error',
        'return response.json()["title"]',
        "KeyError: 'title'",
    ]
    assert parsed_as(job, "wrong").traceback is None


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, ("stored", None)),
        (203, ("stored", None)),
        (304, ("unchanged", None)),
        (404, ("gone", "status 404")),
        (403, ("refused", "status 403")),
    ],
)
def test_only_a_good_response_is_parsed(job: Path, status: int, outcome: tuple[str, str | None]) -> None:
    parsed = parsed_as(job, "values", status=status)
    assert parsed.outcomes == {"values": outcome}
    assert bool(parsed.tables["facts"]) == (outcome[0] == "stored")


def test_each_of_several_keys_has_its_outcome_and_its_records(job: Path) -> None:
    body = {"items": [{"id": "b", "n": 2}, {"id": "a", "n": 1}, {"id": "a", "n": 3}, {"id": "d", "n": "4"}]}
    parsed = parse(job, response(body, keys=["a", "b", "c", "d"]))
    assert parsed.outcomes == {
        "a": ("stored", None),
        "b": ("stored", None),
        "c": ("failed", "no record"),
        "d": ("failed", "parse: facts.n: '4' is no whole number"),
    }
    assert [row["n"] for row in parsed.tables["facts"]] == [1, 3, 2]
    assert [row["n"] for row in parsed.records_of("a")["facts"]] == [1, 3]
    assert parsed.records_of("c") == {"facts": [], "notes": []}


@pytest.mark.parametrize(
    ("body", "more", "seen"),
    [
        (b"\xe9", {}, ["https://api.example.org/items?ids=seen", "200", "None", "None", "é"]),
        ("é", {"url": "https://x.example/é", "status": 201}, ["https://x.example/é", "201", "None", "None", "é"]),
        ({"a": Decimal("1.10")}, {}, [..., "200", "None", "application/json", '{"a":1.10}']),
        ([None], {"headers": {"X-One": "1"}}, [..., "200", "1", "application/json", "[null]"]),
        ([], {"headers": [("Content-Type", "text/x")]}, [..., "200", "None", "text/x", "[]"]),
    ],
)
def test_a_response_is_what_its_test_says(job: Path, body: Any, more: dict[str, Any], seen: list[Any]) -> None:
    parsed = parsed_as(job, "seen", body, **more)
    texts = [row["text"] for row in parsed.tables["notes"]]
    assert parsed.traceback is None, parsed
    assert [text for text, wanted in zip(texts, seen, strict=True) if wanted is not ...] == [
        wanted for wanted in seen if wanted is not ...
    ]


def test_a_response_also_serves_a_function_that_is_called_alone() -> None:
    made = response({"n": 1}, keys=["a", "b"])
    assert isinstance(made, Response)
    assert (made.keys, made.json()) == (("a", "b"), {"n": 1})
    assert response("", url="https://x.example/").key == "https://x.example/"
    assert response("").key == "key"


SAVED = {"key": "seen", "url": "https://saved.example/", "status": 203, "headers": [["x-one", "1"], ["x-one", "2"]]}


@pytest.mark.parametrize(
    ("saved", "more", "seen"),
    [
        (SAVED, {}, ["https://saved.example/", "203", "1", "None", "text"]),
        (SAVED, {"url": "https://x.example/", "headers": {}}, ["https://x.example/", "203", "None", "None", "text"]),
        (None, {"key": "seen"}, ["https://api.example.org/items?ids=seen", "200", "None", "None", "text"]),
    ],
)
def test_a_saved_body_is_parsed_with_what_was_saved_beside_it(
    job: Path, saved: Any, more: dict[str, Any], seen: list[str]
) -> None:
    path = job.parent / "body"
    path.write_text("text")
    if saved is not None:
        Path(f"{path}.json").write_text(json.dumps(saved))
    assert [row["text"] for row in parse_file(job, path, **more).tables["notes"]] == seen


OF_KINDS = """
[source]
path = "keys.csv"
key = "id"
carry = "lang"
[request]
url = "https://api.example.org/{key}"
[kinds.extra]
request = { url = "https://api.example.org/extra/{key}" }
[[follow]]
from = "extra[]?"
kind = "extra"
[[tables]]
name = "notes"
columns = { lang = { type = "text", from = "$source.lang" } }
[[tables]]
name = "extras"
kind = "extra"
columns = { url = { type = "text", from = "$url" } }
"""


def test_a_saved_body_has_what_its_source_carries_and_its_kind(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(OF_KINDS)
    of_source, of_kind = (
        write_response(tmp_path, SavedResponse(key, f"https://api.example.org/{key}", 200, (), fields, kind), b"{}")
        for key, fields, kind in (("a", {"lang": "de"}, ""), ("b", {}, "extra"))
    )
    assert parse_file(job, of_source).tables["notes"] == [{"lang": "de"}]
    assert parse_file(job, of_source, source={"lang": "en"}).tables["notes"] == [{"lang": "en"}]
    assert parse_file(job, of_kind).tables["extras"] == [{"url": "https://api.example.org/b"}]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("run = 1", {}, "run is 1; it must be a table"),
        (JOB.replace("parse:items", "parse:missing"), {}, "has no function 'missing'"),
        (JOB.replace("parse:items", "absent:items"), {}, "cannot import absent"),
        (JOB.partition("[parse]")[0], {}, "it has no parser to test"),
        (JOB, {"status": 503}, "status 503 decides no key"),
        (JOB, {"status": 429}, "status 429 decides no key"),
        (JOB, {"status": 302, "headers": {"location": "/x"}}, "status 302 decides no key"),
        (JOB, {"url": "x"}, "url 'x' does not start with http"),
        (JOB, {"keys": ["a"]}, "not both"),
        (JOB, {"key": None, "keys": []}, "keys are texts, at least one; these are []"),
        (JOB, {"key": None, "keys": [5]}, "keys are texts, at least one; these are [5]"),
        (JOB, {"format": "yaml"}, "format is 'yaml'; write one of json, ndjson, csv, html, xml"),
        (re.sub("url = .*|keys_per.*|headers.*", "", JOB), {}, "key 'values' does not start with http"),
    ],
)
def test_what_no_run_would_do_is_a_usage_error(job: Path, text: str, more: dict[str, Any], message: str) -> None:
    job.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(job, response(b"{}", **{"key": "values", **more}))


@pytest.mark.parametrize(
    ("name", "beside", "message"),
    [("absent", None, "No such file"), ("body", "{", "save the response again"), ("body", "{}", "field `key`")],
)
def test_a_saved_body_that_cannot_be_read_is_a_usage_error(
    job: Path, name: str, beside: str | None, message: str
) -> None:
    job.parent.joinpath("body").write_text("")
    if beside is not None:
        job.parent.joinpath("body.json").write_text(beside)
    with pytest.raises(UsageError, match=message):
        parse_file(job, job.parent / name)


def test_an_alarm_of_the_tests_own_runner_stays(job: Path) -> None:
    """pytest-timeout counts with SIGALRM."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        parsed_as(job, "endless")
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_tests_in_the_documents_pass(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "parsers.md").read_text()
    before, _, section = page.partition("## Testing a parser\n")
    blocks = {
        "job.toml": JOB.partition("[parse]")[0] + re.findall(r"```toml\n(.*?)```", before, re.DOTALL)[0],
        "parse.py": re.findall(r"```python\n(.*?)```", before, re.DOTALL)[0],
        "test_items.py": re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0],
    }
    for name, text in blocks.items():
        tmp_path.joinpath(name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_items.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


def test_the_response_of_a_test_has_selectors_too() -> None:
    found = response("<h1>A</h1><a href='b'>B</a>", url="https://x.example/", format="html")
    assert (found.select("h1"), found.css("a @href")) == ("A", ["https://x.example/b"])
    assert found.links() == ["https://x.example/b"]


FEATURES = """
def setup():
    global factor
    factor = 10

def batch(records):
    return [{"_key": r["_key"], "n": r["n"] * factor} for r in records if r["n"] != 2]
"""


@pytest.mark.parametrize(
    ("numbers", "outcome", "found"),
    [
        ([1, 2, 3], ("stored", None), [10, 30]),
        ([2], ("stored", None), []),
        ([1, None], ("failed", "transform: TypeError: unsupported operand type(s) for *: 'NoneType' and 'int'"), []),
    ],
)
def test_a_response_is_seen_as_it_is_behind_the_transforms(
    tmp_path: Path, numbers: list[int | None], outcome: tuple[str, str | None], found: list[int]
) -> None:
    path = tmp_path / "job.toml"
    sections = '[parse]\nrows = "items"\nkey = "id"\n[transform]\npython = "features:batch"\nbatch = 1\n'
    sections += '[[tables]]\nname = "facts"\ncolumns.n = "bigint"\n'
    path.write_text(JOB.split("[parse]")[0] + sections)
    path.with_name("features.py").write_text(FEATURES)
    items = [{"id": "a", "n": number} for number in numbers] + [{"id": "b", "n": 7}]
    parsed = parse(path, response({"items": items}, keys=["a", "b"]))
    (kind, reason), (other, _) = parsed.outcomes["a"], parsed.outcomes["b"]
    assert (kind, reason and reason.removesuffix(" (features.py, line 7)"), other) == (*outcome, "stored")
    assert [row["n"] for row in parsed.records_of("a")["facts"]] == found
    assert [row["n"] for row in parsed.records_of("b")["facts"]] == [70]
    assert ("features.py" in (parsed.traceback or "")) is (kind == "failed")


@pytest.mark.parametrize(("status", "outcome"), [(202, ("wait", "$status = 202")), (200, ("stored", None))])
def test_a_key_that_is_not_ready_is_no_outcome(tmp_path: Path, status: int, outcome: tuple[str, str | None]) -> None:
    path = tmp_path / "job.toml"
    selectors = '[parse]\nwait = "$status = 202"\n[[tables]]\nname = "facts"\n'
    selectors += 'columns.n = { type = "bigint", from = ["n?", "$source.n?"] }\n'
    path.write_text(f"{JOB.split('[parse]')[0].replace('keys_per_request = 50', '')}{selectors}")
    assert parse(path, response({"n": 1}, key="a", status=status)).outcomes == {"a": outcome}
    assert parse(path, response({}, key="a", source={"n": 7})).tables == {"facts": [{"n": 7}]}
