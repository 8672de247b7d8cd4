"""Selectors of a job, applied as a worker applies a parser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.model import Again, HttpResponse, Page
from crawler.parse import hook
from tests.crawler.examples import a_job, a_page
from tests.crawler.parse.test_hook import Sent

BODY = {
    "page": 3,
    "items": [
        {"id": 1, "p": {"v": "$1,299.00"}, "at": 1_700_000_000, "tags": [{"t": "a"}, {"t": "b"}], "gone": False},
        {"id": 2, "p": {"v": "5"}, "at": None, "tags": [], "ad": True},
    ],
    "named": {"x": {"n": 1}, "y": {"n": 2}},
}


def table(columns: Mapping[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"name": "facts", "columns": columns, **keys}]


def applied(
    body: Any,
    keys: Sequence[str] = ("k",),
    content_type: str = "application/json",
    status: int = 200,
    **sections: Any,
) -> list[Page]:
    parser = hook.load(a_job(**sections))
    assert parser is not None
    pages = [a_page(key, body=None) for key in keys]
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = Sent({"content-type": content_type, "x-page": "7"})
    parser.apply(pages, "https://upstream.example/api", HttpResponse(status, headers, text))
    return pages


@pytest.mark.parametrize(
    ("rows", "column", "values"),
    [
        ("items", "bigint id", [1, 2]),
        ("$.items", "bigint id", [1, 2]),
        ("items[]", "bigint id", [1, 2]),
        ("items", "bigint ^.page", [3, 3]),
        ("items", "bigint $.page", [3, 3]),
        ("items", "bigint $index", [0, 1]),
        ("items", "text p.v", ["$1,299.00", "5"]),
        ("items", "text[] tags[].t", [["a", "b"], []]),
        ("items", "boolean ad?", [None, True]),
        ("items[].tags", "text t", ["a", "b"]),
        ("items[].tags", "bigint ^.id", [1, 1]),
        ("items[].tags[]", "bigint ^^.page", [3, 3]),
        ("items[].tags", "jsonb .", ['{"t":"a"}', '{"t":"b"}']),
        ("named.*", "bigint n", [1, 2]),
        ("named.*", "text $name", ["x", "y"]),
        ("named.x", "bigint n", [1]),
        (None, "bigint page", [3]),
        ("none?", "bigint id", []),
        ("items ", "bigint id", [1, 2]),
        ("none ? ", "bigint id", []),
        (None, "text $key", ["k"]),
        (None, "text $url", ["https://upstream.example/api"]),
        (None, "bigint $status", [200]),
        (None, "text $header.x-page", ["7"]),
        (None, "text $header.none?", [None]),
        (None, "text $source.none?", [None]),
    ],
)
def test_rows_and_columns(rows: str | None, column: str, values: list[Any]) -> None:
    kind, selector = column.split(" ")
    (page,) = applied(BODY, parse={"rows": rows} if rows else {}, tables=table({"c": {"type": kind, "from": selector}}))
    assert (page.outcome, page.reason) == (Outcome.STORED, None)
    assert [row for _, (row,) in page.records] == values


@pytest.mark.parametrize(
    ("kind", "reading", "given", "stored"),
    [
        ("date", "date", "2026-01-02", "2026-01-02"),
        ("date", "%d.%m.%Y", "02.01.2026", "2026-01-02"),
        ("time", "%H.%M", "10.30", "10:30:00"),
        ("timetz", "%H.%M %z", "10.30 +0100", "10:30:00+01:00"),
        ("timestamp", "%d.%m.%Y", "02.01.2026", "2026-01-02 00:00:00"),
        ("date", "date", "2026-01-02T10:00:00", "facts.c: datetime.datetime(2026, 1, 2, 10, 0) is no date (ISO 8601)"),
        ("numeric[]", "number", ["1", None, "2,5"], "[Decimal('1'), None, Decimal('2.5')]"),
        ("numeric", "number", "", "facts.c: '' is not one number"),  # in csv, html and xml it is null
    ],
)
def test_what_is_read_is_what_its_column_takes(kind: str, reading: str, given: Any, stored: str) -> None:
    (page,) = applied({"c": given}, tables=table({"c": {"type": kind, "as": reading}}))
    assert str(page.records[0][1][0] if page.records else page.reason).removeprefix("parse: ") == stored


@pytest.mark.parametrize(
    ("rows", "column", "reason"),
    [
        ("none", {"type": "text", "from": "x"}, "rows: nothing at none; write none? where that means no rows"),
        ("items", "text", "facts.c: nothing at c; write c? where it may be absent"),
        ("items", {"type": "text", "from": "tags.t"}, "tags.t: 't' stands behind a list; write [] for each of"),
        ("items", {"type": "text", "from": "id"}, "facts.c: 1 is no text"),
        ("items", {"type": "numeric", "from": "p", "as": "number"}, "facts.c: {'v': '$1,299.00'} is not one number"),
        ("page", "text", "c: 'c' stands behind 3, which has no members"),
        ("items", {"type": "text", "from": ["x", "y"]}, "facts.c: nothing at x or y"),
    ],
)
def test_what_is_not_there_fails_the_key_by_name(rows: str, column: Any, reason: str) -> None:
    (page,) = applied(BODY, parse={"rows": rows}, tables=table({"c": column}))
    assert page.outcome is Outcome.FAILED
    assert page.reason is not None
    assert page.reason.startswith(f"parse: {reason}")
    assert page.records == []


@pytest.mark.parametrize(
    ("body", "content_type", "says"),
    [
        (b"<!doctype html><p>Sorry", "text/html", "the response is no JSON but text/html: '<!doctype html><p>Sorry'"),
        (b"", "application/json", "the response is no JSON but application/json: ''"),
        (b"[" * 200_000, "application/json", "parse: "),
    ],
    ids=["html", "empty", "deep"],
)
def test_another_body_fails_and_says_what_came(body: bytes, content_type: str, says: str) -> None:
    (page,) = applied(body, content_type=content_type, tables=table({"c": "text"}))
    assert page.outcome is Outcome.FAILED
    assert says in str(page.reason)


@pytest.mark.parametrize(
    ("conditions", "body", "outcome", "reason"),
    [
        ({"failed": "$.error.info"}, {"error": {"info": "too bad"}}, "failed", "too bad"),
        ({"failed": "$.error"}, {"error": {"code": 5}}, "failed", "$.error"),
        ({"failed": "$.error.info"}, {"id": 1}, "stored", None),
        ({"gone": ["missing", "$ = null"]}, None, "gone", "$ = null"),
        ({"gone": "missing"}, {"id": 1, "missing": ""}, "gone", "missing"),
        ({"gone": "missing"}, {"id": 1, "missing": False}, "stored", None),
        ({"gone": "code = 404"}, {"id": 1, "code": "404"}, "gone", "code = 404"),
        ({"gone": "code = 404"}, {"id": 1, "code": 404}, "gone", "code = 404"),
        ({"gone": "ok != true"}, {"id": 1, "ok": True}, "stored", None),
        ({"gone": "ok != true"}, {"id": 1}, "gone", "ok != true"),
        ({"failed": "$status != 200"}, {"id": 1}, "stored", None),
        ({"failed": "bad", "gone": "bad"}, {"id": 1, "bad": 1}, "failed", "bad"),
        ({"gone": "state = 'not there'"}, {"id": 1, "state": "not there"}, "gone", "state = 'not there'"),
        ({"gone": "ok = false"}, {"id": 1, "ok": "false"}, "gone", "ok = false"),
        ({"gone": "ok = 1"}, {"id": 1, "ok": True}, "stored", None),
        ({"gone": "a = 'x and y = z'"}, {"id": 1, "a": "x and y = z"}, "gone", "a = 'x and y = z'"),
        ({"failed": "errors"}, {"id": 1, "errors": []}, "stored", None),
        ({"failed": "errors"}, {"id": 1, "errors": {}}, "stored", None),
        ({"failed": "errors[].text"}, {"id": 1, "errors": []}, "stored", None),
        ({"failed": "errors"}, {"id": 1, "errors": 0}, "failed", "errors"),
        ({"gone": "n = NaN"}, {"id": 1, "n": "NaN"}, "gone", "n = NaN"),
        ({"gone": 'a["="] = x'}, {"id": 1, "a": {"=": "x"}}, "gone", 'a["="] = x'),
    ],
)
def test_conditions_end_a_key(conditions: dict[str, Any], body: Any, outcome: str, reason: str | None) -> None:
    (page,) = applied(body, parse=conditions, tables=table({"id": "bigint"}))
    assert (page.outcome, page.reason) == (Outcome(outcome), reason)
    assert len(page.records) == (outcome == "stored")


BUSY = {"wait": "state = pending", "retry": "$.error.code = busy", "failed": "$.error", "gone": "state"}


@pytest.mark.parametrize(
    ("conditions", "status", "body", "ended"),
    [
        (BUSY, 200, {"id": 1}, "stored"),
        (BUSY, 200, {"id": 1, "state": "pending"}, Again("state = pending", waits=True)),
        (BUSY, 200, {"error": {"code": "busy"}, "state": "pending"}, Again("$.error.code = busy")),
        (BUSY, 200, {"error": {"code": "dead"}}, "failed"),
        (BUSY, 200, {"state": "lost"}, "gone"),
        # The words of the upstream as the reason: in one line, and without what Redis cannot keep.
        ({"retry": "$.error"}, 200, b'{"error": "come\\n  back \\ud800"}', Again("come back ?")),
        ({"wait": "$status = 202"}, 202, {"id": 1}, Again("$status = 202", waits=True)),
        ({"wait": "$status = 202"}, 202, b"", Again("$status = 202", waits=True)),
        ({"wait": "$status = 202"}, 200, b"", "failed"),
        ({"wait": "$header.x-page = 7"}, 200, b"", Again("$header.x-page = 7", waits=True)),
        # What is not there is no reason to end a key whose body cannot be read.
        ({"wait": "$.state = pending", "gone": "$.id != 1"}, 200, b"", "failed"),
        # A 202 for which no condition holds is a failed attempt, as it is in every other job.
        ({"wait": "state = pending"}, 202, {"id": 1}, Again("status 202: not ready yet")),
        ({"wait": "state = pending"}, 202, b"", Again("status 202: not ready yet")),
        ({"wait": "state = pending"}, 202, {"state": "pending"}, Again("state = pending", waits=True)),
        ({"wait": "state = pending", "rows": "a"}, 202, {"id": 1}, Again("status 202: not ready yet")),
        ({"wait": "x", "failed": "state = dead"}, 202, {"state": "dead"}, "failed"),
    ],
)
def test_a_key_is_requested_again(conditions: dict[str, Any], status: int, body: Any, ended: str | Again) -> None:
    (page,) = applied(body, status=status, parse=conditions, tables=table({"id": "bigint"}))
    assert (page.again or page.outcome.value) == ended
    assert bool(page.records) is (ended == "stored")


def test_another_name_of_a_key_that_waits_waits_too() -> None:
    body = {"query": {"redirects": [{"from": "NYC", "to": "New York"}], "pages": [{"title": "New York", "state": 1}]}}
    pages = applied(
        body,
        ("NYC", "New York", "d"),
        request={"url": "https://upstream.example/{keys}", "keys_per_request": 5},
        parse={"rows": "query.pages", "key": "title", "wait": "state = 1"},
        tables=table({"id": "bigint"}),
    )
    assert [page.again for page in pages] == [Again("state = 1", waits=True)] * 2 + [None]
    assert pages[2].reason == "no record"


@pytest.mark.parametrize(
    ("text", "says"), [("1d", "'1d'; write a time"), ("25h", 'at most "24h"'), ("", "is empty"), (5, "must be text")]
)
def test_how_long_a_key_may_wait_is_checked(text: Any, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        a_job(parse={"wait": "$", "wait_most": text}, tables=table({"id": "bigint"}))


def test_records_are_left_out_by_skip() -> None:
    (page,) = applied(BODY, parse={"rows": "items"}, tables=table({"id": "bigint"}, skip="ad"))
    assert page.records == [(0, (1,))]


def test_several_tables_have_rows_of_their_own() -> None:
    tables = table({"id": "bigint"}) + [{"name": "tags", "rows": "items[].tags", "columns": {"t": "text"}}]
    (page,) = applied(BODY, parse={"rows": "items"}, tables=tables)
    assert page.records == [(0, (1,)), (0, (2,)), (1, ("a",)), (1, ("b",))]


def test_several_keys_a_request_each_get_their_own() -> None:
    body = {
        "query": {
            "normalized": [{"from": "a_b", "to": "a b"}],
            "pages": [{"title": "a b", "id": 1}, {"title": "c", "missing": True}, {"title": "other", "missing": True}],
        }
    }
    pages = applied(
        body,
        ("a_b", "c", "d"),
        request={"url": "https://upstream.example/{keys}", "keys_per_request": 5},
        parse={"rows": "query.pages", "key": "title", "gone": "missing"},
        tables=table({"id": "bigint"}),
    )
    assert [(page.outcome.value, page.reason, page.records) for page in pages] == [
        ("stored", None, [(0, (1,))]),
        ("gone", "missing", []),
        ("failed", "no record", []),
    ]


def test_a_record_says_its_key_by_a_number_too() -> None:
    pages = applied(
        {"items": [{"id": 6, "n": 1}, {"id": 5, "gone": 1}]},
        ("5", "6"),
        request={"url": "https://upstream.example/{keys}", "keys_per_request": 5},
        parse={"rows": "items", "key": "id", "gone": "gone"},
        tables=table({"n": "bigint"}),
    )
    assert [(page.outcome.value, page.records) for page in pages] == [("gone", []), ("stored", [(0, (1,))])]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"parse": {"rows": "a["}}, "table facts: rows: 'a[' is wrong at character 2"),
        ({"parse": {"gone": "a..b"}}, "[parse] gone: 'a..b' is wrong at character 2"),
        ({"parse": {"gone": "a=b"}}, "[parse] gone: 'a=b': write PATH = value or PATH != value"),
        ({"parse": {"gone": "a == b"}}, "'a == b': write PATH = value"),
        ({"parse": {"gone": 'a = "b'}}, '[parse] gone: "b is no text in quotes'),
        ({"parse": {"gone": "a = 'b' or c = 'd"}}, "is no text in quotes"),
        ({"parse": {"gone": "a = 1 and b = 2"}}, "write a list of conditions, of which one is enough"),
        ({"tables": table({"c": {"type": "date", "as": "%d.%Q"}})}, "as is '%d.%Q'; 'Q' is a bad directive"),
        ({"tables": table({"c": "text"}, skip="a > 5")}, "'a > 5': write PATH = value"),
        (
            {"parse": {"failed": "$staus = 1"}},
            "[parse] failed: '$staus' is not known; write one of $key, $url, $status",
        ),
        ({"tables": table({"c": {"type": "text", "from": "$a"}})}, "or $.a for what is in the response"),
        ({"tables": table({"c": {"type": "text", "from": "^a"}})}, "'^a': write ^.a"),
        ({"tables": table({"c": {"type": "text", "from": []}})}, "column c: a list without a selector"),
        ({"tables": table({"c": {"type": "text", "as": "money"}})}, "column c: as: as is 'money'; known are number"),
        ({"request": {"url": "https://u.example/{keys}", "keys_per_request": 2}}, "[parse] key: with several keys"),
        (
            {"tables": table({"c": {"type": "text", "from": "^^.id"}}, rows="items")},
            "column c: '^^.id': nothing encloses the record there",
        ),
        (
            {"tables": table({"c": {"type": "text", "from": "$name?"}}, rows="a.*.b")},
            "column c: '$name?': the record has no name there; only rows that end with .* have one",
        ),
        ({"tables": table({"c": "text"}, rows="a[]", skip="$name = x")}, "skip: '$name': the record has no name"),
        ({"parse": {"rows": "a", "key": "$name"}, "tables": table({"c": "text"})}, "key: '$name': the record has"),
        ({"tables": table({"c": "text"}, skip="^.id")}, "table facts: skip: '^.id': nothing encloses"),
        ({"parse": {"gone": "^.id"}, "tables": table({"c": "text"})}, "[parse] gone: '^.id': nothing encloses"),
        (
            {"tables": table({"c": {"type": "text", "from": "a[]?"}})},
            "column c: nothing at a[]? can go into text: ['a']",
        ),
        ({"tables": table({"c": "interval"})}, "column c: nothing at c can go into interval: 'a' is no timedelta"),
        ({"tables": table({"c": {"type": "bytea[]", "from": "c[]"}})}, "nothing at c[] can go into bytea[]"),
        (
            {"parse": {"format": "html"}, "tables": table({"c": {"type": "text", "from": ["b[]", "i[] @id"]}})},
            "nothing at b[] or i[] @id can go into text",
        ),
        ({"parse": {"format": "xml"}, "tables": table({"c": {"type": "text[]", "from": "li"}})}, "'a' is no list"),
        ({"tables": table({"c": {"type": "timestamptz", "as": "%d.%m.%Y"}})}, "has no time zone; a column of type"),
        ({"tables": table({"c": {"type": "text", "as": "number"}})}, "nothing at c can go into text: 'a' is not one"),
        ({"tables": table({"c": {"type": "timestamp", "as": "unix"}})}, "nothing at c can go into timestamp"),
    ],
)
def test_a_wrong_selector_is_named_before_anything_is_sent(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        hook.load(a_job(**{"tables": table({"c": "text"}), **sections}))
    assert says in str(error.value)
