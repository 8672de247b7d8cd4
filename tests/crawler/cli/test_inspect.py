"""`sql` for programs: every value exact in each form, and any statement that reads."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.cli.display.screen import reason_words
from crawler.cli.inspect import run_status, write_rows
from crawler.local.services import Place
from crawler.store.catalogue import open_catalogue
from tests.crawler.web.world import NEW, a_world

pytestmark = pytest.mark.anyio

QUERY = r"""
select n, exact, bytes, doc, text, 'infinity'::timestamptz as ends, at,
       interval '1 mon' as span, many, doc_text, null as none
from (values
    (1, 12345678901234567.89, '\x00ff'::bytea, '{"a": [1e400, "é"]}'::jsonb, 'a"b' || chr(10) || ',c',
     '2026-01-01 12:00:00.123456+00'::timestamptz, '{1.10,NULL}'::numeric[], E'{"x":\n 1}'::json),
    (2, 0.10, '', 'null', '=1+1', '2026-01-01 12:00:00+00', '{}', '[1, 1]')
) as given(n, exact, bytes, doc, text, at, many, doc_text)
order by n; -- the end
""".replace("; -- the end", "")


async def printed(database: str, form: str, statement: str) -> str:
    out = io.BytesIO()
    await write_rows(database, statement, form, out)
    return out.getvalue().decode()


async def test_every_value_is_exact_in_every_form(database: str) -> None:
    lines = (await printed(database, "jsonl", QUERY)).splitlines()
    assert len(lines) == 2, "one line a row, though a json column has a line break"
    rows = [json.loads(line, parse_float=Decimal) for line in lines]
    assert rows[0] == {
        "n": 1,
        "exact": "12345678901234567.89",
        "bytes": "00ff",
        "doc": {"a": [10**400, "é"]},
        "text": 'a"b\n,c',
        "ends": "infinity",
        "at": "2026-01-01T12:00:00.123456+00:00",
        "span": "1 mon",
        "many": ["1.10", None],
        "doc_text": {"x": 1},
        "none": None,
    }
    assert json.loads(await printed(database, "json", QUERY), parse_float=Decimal) == rows
    header, *records = csv.reader(io.StringIO(await printed(database, "csv", QUERY), newline=""))
    assert header == list(rows[0])
    assert records[0][1:5] == ["12345678901234567.89", "\\x00ff", f'{{"a": [1{"0" * 400}, "é"]}}', 'a"b\n,c']
    assert records[1][1:5] == ["0.10", "\\x", "null", "=1+1"], "nothing is put before a text"


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("select 1 as a where false", []),
        ("select 1 as a; ", [{"a": 1}]),
        ("select 1 as a; -- with a comment", [{"a": 1}]),
        ("select 1 as a -- with a comment", [{"a": 1}]),
        ("with x as (select 1 as a) select * from x", [{"a": 1}]),
        ("values (1), (2)", [{"column1": 1}, {"column1": 2}]),
        ("show server_encoding", [{"server_encoding": "UTF8"}]),
        ('select 1 as "a""b", 2 as "{c}"', [{'a"b': 1, "{c}": 2}]),
    ],
)
async def test_any_statement_that_reads_has_every_form(
    database: str, statement: str, rows: list[dict[str, Any]]
) -> None:
    assert json.loads(await printed(database, "json", statement)) == rows
    assert [json.loads(line) for line in (await printed(database, "jsonl", statement)).splitlines()] == rows
    read = list(csv.DictReader(io.StringIO(await printed(database, "csv", statement))))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]


async def test_status_says_why_keys_of_a_run_that_goes_on_failed_and_who_works_on_one_whose_keys_went_back(
    redis: Redis, database: str, redis_url: str
) -> None:
    place = Place(redis_url, database, Path())
    async with a_world(redis, database):
        for _ in ("it goes on", "keys went back"):
            ((snapshot, _, reasons),) = await run_status(place, NEW)
            assert reason_words(Outcome.FAILED, reasons).startswith("failed 13: 9 x status 503, 3 x dns:")
            assert (snapshot.workers, snapshot.leader, snapshot.counts.outcomes[Outcome.FAILED]) == (
                4,
                "alpha-10-abcd",
                13,
            )
            async with open_catalogue(database) as catalogue:
                await catalogue.connection.execute("UPDATE runs SET epoch = 'void' WHERE name = $1", NEW)


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
async def test_a_mistake_is_said_in_postgres_words(database: str, form: str) -> None:
    for statement, words in (
        ("select no_such from runs_of_nobody", 'relation "runs_of_nobody" does not exist'),
        ("select 1) to program 'x' --", "syntax error"),
        ("create table t (a int)", "only reads"),
        ("select 1/(n-2) from generate_series(1, 3) n", "division by zero"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            await printed(database, form, statement)
        assert len(str(caught.value).splitlines()) == 1
