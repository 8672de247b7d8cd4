"""What counts of a page when two runs are compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.model import HttpResponse
from crawler.parse import hook
from crawler.parse.content import digest_of_records
from tests.crawler.examples import a_job, a_page
from tests.servers.scripted import headers

VALUES: list[Any] = [
    *(None, True, 1, -1, 2**63, 2**80, -(2**80), 1.5, float("nan"), float("inf"), "", "1", "é", "\ud800", b"", b"1"),
    *(Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), UUID(int=1), timedelta(1), [1, None], [], ["1"]),
    *(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), datetime(2026, 1, 1).date(), datetime(2026, 1, 1).time()),
]


def test_records_with_other_values_have_another_digest() -> None:
    digests = {digest_of_records([(0, (value,))]) for value in VALUES}
    assert len(digests) == len(VALUES)
    assert {len(one) for one in digests} == {16}


@pytest.mark.parametrize("value", VALUES)
def test_the_same_records_have_the_same_digest(value: Any) -> None:
    assert digest_of_records([(0, (value,))]) == digest_of_records([(0, (value,))])


def test_table_and_order_count() -> None:
    one, other = (0, (1,)), (0, (2,))
    records = [[], [one], [other], [one, other], [other, one], [(1, (1,))], [(0, (1, None))], [one, one]]
    assert len({digest_of_records(each) for each in records}) == len(records)


@pytest.mark.parametrize(("kind", "counts"), [("jsonb", False), ("jsonb[]", False), ("json", True)])
def test_the_order_of_members_counts_where_postgres_keeps_it(kind: str, counts: bool) -> None:
    column = '"list"' if kind.endswith("[]") else '"one"'
    tables = [{"name": "facts", "columns": {"of": {"type": kind, "from": column.strip('"')}}}]
    loaded = hook.load(a_job(tables=tables))
    assert loaded is not None
    digests = set()
    for one in (b'{"a": 1, "b": {"x": 1, "y": 1e400}}', b'{"b": {"y": 1e400, "x": 1}, "a": 1}'):
        page = a_page("a")
        body = b'{"one": %b, "list": [%b]}' % (one, one)
        json = HttpResponse(200, headers(content_type="application/json"), body)
        loaded.apply([page], "https://upstream.example/", json)
        assert (page.outcome, page.reason) == (Outcome.STORED, None)
        digests.add(page.content_digest)
    assert len(digests) == 1 + counts


def content_of(body: bytes, ignore: list[str], form: str, content_type: str = "text/html") -> bytes | None:
    loaded = hook.load(a_job(parse={"format": form, "ignore": ignore}))
    assert loaded is not None
    page = a_page("a")
    loaded.apply([page], "https://upstream.example/", HttpResponse(200, headers(content_type=content_type), body))
    assert page.outcome is Outcome.STORED
    return page.content_digest


@pytest.mark.parametrize(
    ("form", "ignore", "alike", "other"),
    [
        ("json", ["m.id", "$.at"], [b'{"a": 1, "m": {"id": 1}, "at": 1}', b'{"a": 1, "m": {"id": 2}}'], b'{"a": 2}'),
        ("json", ["items[].id"], [b'{"items": [{"n": 1, "id": 1}]}', b'{"items": [{"n": 1}]}'], b'{"items": []}'),
        ("json", ["b.*.at", "l.-1"], [b'{"b": {"x": {"at": 1}}, "l": [1]}', b'{"b": {"x": {}}, "l": [3]}'], b"{}"),
        ("json", ["at"], [b'{"a": {"x": 1, "y": 2}, "b": 1}', b'{"b": 1, "at": 1, "a": {"y": 2, "x": 1}}'], b"{}"),
        ("json", ["items[]"], [b'{"items": [1, 2]}', b'{"items": [3]}'], b'{"items": {}}'),
        ("ndjson", ["[].id"], [b'{"n": 1, "id": 1}\n{"n": 2}', b'{"n": 1}\n{"n": 2, "id": 3}'], b'{"n": 1}'),
        ("ndjson", ["m.id"], [b'{"m": {"id": 1}}\n{"n": 2}', b'{"m": {}}\n{"n": 2}'], b'{"m": {}}\n{"n": 3}'),
        ("csv", ["[].id"], [b"n,id\n1,2", b"n,id\n1,3"], b"n,id\n2,2"),
        ("csv", ["id"], [b"n,id\n1,2\n1,4", b"n,id\n1,3\n1,5"], b"n,id\n2,2"),
        ("html", ["b .id", "a @href"], [b"<a href=1>x<b><p class=id>1", b"<a href=2>x<b><p class=id>2"], b"<a>y"),
        ("xml", ["at"], [b"<r><at>1</at><n/></r>", b"<r><at>2</at><n/></r>"], b"<r><n/><n/></r>"),
    ],
)  # fmt: skip
def test_what_is_ignored_does_not_count(form: str, ignore: list[str], alike: list[bytes], other: bytes) -> None:
    kinds = {"html": "text/html", "xml": "text/xml"}
    first, second, third = (
        content_of(body, ignore, form, kinds.get(form, "application/json")) for body in (*alike, other)
    )
    assert first == second != third
    assert None not in (first, second, third)


def test_of_a_body_of_another_format_all_counts() -> None:
    assert content_of(b"<html>", ["meta.id"], "json") is None
    assert content_of(b"{}", [".id"], "html", "application/json") is None


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        ({"ignore": ["a..b"]}, "job: [parse] ignore: 'a..b' is wrong at character 2"),
        ({"ignore": ["$"]}, "job: [parse] ignore: an empty path is all of the response"),
        ({"ignore": ["@href"], "format": "html"}, "job: [parse] ignore: a selector without an element is all of"),
    ],
)
def test_a_wrong_selector_is_refused(parse: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        hook.load(a_job(parse=parse))
    assert str(error.value).startswith(message)


def test_with_a_parser_nothing_is_ignored() -> None:
    with pytest.raises(UsageError, match="pages with a parser are compared by their records"):
        a_job(parse={"ignore": ["a"]}, tables=[{"name": "facts", "columns": {"n": "bigint"}}])
