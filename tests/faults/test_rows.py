"""Bad bodies and bad records: each fails its key, never its batch, and no value is changed to make it fit."""

from __future__ import annotations

import json

import pytest

from tests.faults.crawl import GOOD_KEYS, Crawl

pytestmark = pytest.mark.anyio

BODIES = {
    "nul-escape": b'{"id": "a\\u0000b"}',
    "nul-key": b'{"a\\u0000": 1}',
    "nul-byte": b'{"id": "a\x00b"}',
    "lone-surrogate": b'{"id": "\\ud800"}',
    "overflow": b'{"id": 1e200000}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "truncated": b'{"id": ',
    "two": b"{} {}",
    "not-a-number": b'{"id": NaN}',
    "blank": b"  \n",
}
GOOD_BODIES = {
    "empty": b"",
    "not-utf8": b'{"id": "\xff\xfe"}',
    "bom": b'\xef\xbb\xbf{"id": 1}',
    "big": b'{"id": 18446744073709551617}',
    "decimal": b'{"id": 1.10}',
    "twice": b'{"id": 1, "id": 2}',
    "escaped": b'{"id": "\\\\u0000 \\ud83d\\ude00"}',
}


async def test_bodies_that_postgres_cannot_hold(crawl: Crawl) -> None:
    """Exactly their keys fail, each with a reason. Every other body is stored, with every digit."""
    upstream = crawl.upstream
    upstream.bodies = {**BODIES, **GOOD_BODIES}
    lines = crawl.good_keys()
    for name in upstream.bodies:
        lines.insert(len(lines) // 2, f"{upstream.url}/body/{name}")
    await crawl.job(lines, code=3)
    assert upstream.requests == len(lines), "a bad body is not requested again"
    found = await crawl.outcomes("regexp_replace(key, '.*/(item|body)/', '')")
    assert len(found) == len(lines)
    failed = {name for name, (outcome, _) in found.items() if outcome == "failed"}
    assert failed == BODIES.keys(), {name: found[name] for name in failed ^ BODIES.keys()}
    assert all(found[name][1] for name in failed), "each has a reason"
    kept = await crawl.shell.sql(
        "select regexp_replace(key, '.*/', '') as key, body::text as body from pages where key like '%/body/%'",
        environ=crawl.environ,
    )
    stored = {row["key"]: row["body"] for row in kept if row["key"] in GOOD_BODIES}
    assert stored["empty"] is None, "an empty body is stored as NULL"
    assert json.loads(stored["big"])["id"] == 2**64 + 1
    assert stored["decimal"] == '{"id": 1.10}'
    await crawl.agreed("14 poison in bodies", f"{len(BODIES)} kinds", len(lines))


PARSER = """
from datetime import datetime
from decimal import Decimal
GOOD = {"n": 1, "small": 2, "text": "x", "at": datetime(2026, 1, 1).astimezone(), "price": Decimal("1.25"),
        "short": "abc", "ratio": 0.5, "flag": True, "more": {"a": 1}, "naive": datetime(2026, 1, 1), "list": [1, 2]}
POISON = {
    "nul": {"text": "a\\0b"}, "surrogate": {"text": "\\ud800"}, "number-as-text": {"text": 7},
    "bigint-overflow": {"n": 2**63}, "beyond-64-bits": {"n": 2**64 + 1}, "smallint-overflow": {"small": 40_000},
    "fraction": {"n": 1.7}, "whole-float": {"n": 1.0}, "bool": {"n": True}, "word": {"n": "seven"},
    "naive": {"at": datetime(2026, 1, 1)}, "no-time": {"at": "yesterday"}, "aware": {"naive": GOOD["at"]},
    "rounded": {"price": Decimal("1.239")}, "too-large": {"price": Decimal("123456789")},
    "nan": {"price": Decimal("NaN")}, "long": {"short": "abcd"}, "blanks": {"short": "abc "},
    "infinite": {"ratio": float("inf")}, "too-precise": {"ratio": 2**53 + 1}, "one": {"flag": 1},
    "microseconds": {"naive": datetime(2026, 1, 1, 0, 0, 0, 123456)}, "nul-in-json": {"more": {"a": "\\0"}},
    "surrogate-in-json": {"more": {"a": "\\ud800"}}, "nan-in-json": {"more": {"a": float("nan")}},
    "fraction-in-list": {"list": [1, 1.5]}, "unknown": {"column": 1},
    "raises": None, "second-of-two": None, "none": None,
}
def parse(response):
    name = response.json()["id"]
    if name == "raises":
        raise RuntimeError("poison")
    if name == "second-of-two":
        return {"things": [GOOD, {**GOOD, "n": "x"}]}
    if name == "none":
        return {"things": [None]}
    return {"things": [{**GOOD, **POISON.get(name, {})}]}
"""
COLUMNS = (
    'n = "bigint", small = "smallint", text = "text", at = "timestamptz", price = "numeric(10, 2)", '
    'short = "varchar(3)", ratio = "double precision", flag = "boolean", more = "jsonb", '
    'naive = "timestamp(3)", list = "integer[]"'
)


async def test_records_that_do_not_fit_their_columns(crawl: Crawl) -> None:
    """Exactly their keys fail. Nothing is rounded, cut, or moved to another time zone. The others are stored."""
    module: dict[str, dict[str, object]] = {}
    exec(PARSER, module)
    poison = list(module["POISON"])
    crawl.shell.write("parse.py", PARSER)
    keys = [f"k{number}" for number in range(GOOD_KEYS)]
    for name in poison:
        keys.insert(len(keys) // 2, name)
    await crawl.job(
        keys,
        request=f'url = "{crawl.upstream.url}/item/{{key}}"',
        rest=f"""
            [parse]
            python = "parse:parse"
            [[tables]]
            name = "things"
            columns = {{ {COLUMNS} }}
        """,
        code=3,
    )
    assert crawl.upstream.requests == len(keys)
    found = await crawl.outcomes()
    failed = {name for name, (outcome, _) in found.items() if outcome == "failed"}
    assert failed == set(poison), {name: found[name] for name in failed ^ set(poison)}
    rows = await crawl.shell.sql(
        "select count(*) as n, count(distinct digest) as keys from things", environ=crawl.environ
    )
    assert rows == [{"n": GOOD_KEYS, "keys": GOOD_KEYS}]
    await crawl.agreed("14 poison in records", f"{len(poison)} kinds", len(keys))


WIDE = """
WIDE = {"one": (2**28, 0), "two": (80 * 2**20, 80 * 2**20), "large": (2**23, 2**23)}
def parse(response):
    left, right = WIDE.get(response.key, (1, 1))
    return {"things": [{"left": "x" * left, "right": "y" * right}]}
"""


@pytest.mark.slow
async def test_bodies_and_records_over_their_limit_are_not_sent(crawl: Crawl) -> None:
    """Postgres ends the connection when a row has a gigabyte, which looks like a bad network: no such row is sent."""
    crawl.shell.write("parse.py", WIDE)
    crawl.upstream.bodies = {"body": b'"' + b"x" * 17 * 1024 * 1024 + b'"'}
    poison = {"body": "too-large", "one": "parse", "two": "parse"}
    keys = [*map(str, range(GOOD_KEYS)), "large", *poison]
    await crawl.job(
        keys,
        request=f'url = "{crawl.upstream.url}/item/{{key}}"',
        rest="""
            [parse]
            python = "parse:parse"
            [[tables]]
            name = "things"
            columns = { left = "text", right = "text" }
        """,
    )
    assert crawl.upstream.requests == len(keys), "none is requested again"
    found = await crawl.outcomes()
    failed = {
        name: (reason or "").partition(":")[0] for name, (outcome, reason) in found.items() if outcome == "failed"
    }
    assert failed == poison
    await crawl.agreed("15 fields too large", "a body of 17 MB, records of 268 and 168 MB", len(keys))
