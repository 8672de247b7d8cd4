"""Pages in the binary COPY format, as Postgres reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import orjson
import pytest

from coordinator.model import Outcome
from crawler.model import MAX_REASON_CHARACTERS, Page
from crawler.store.rows import copyformat
from tests.crawler.examples import MOMENT, a_loading_run, a_page

pytestmark = pytest.mark.anyio


async def test_every_field_of_a_page_is_stored_as_it_is(database: str) -> None:
    full = a_page("Zoë 日本 \U0001f600 /|\\ \x01\x7f")
    full.reason = "why not"
    full.status, full.attempts = 999, 32_000
    full.etag, full.last_modified = 'W/"é"', "Thu, 01 Jan 2026 00:00:00 GMT"
    full.body_digest = bytes(range(16))
    full.body = '{"b": [1.10, "é😀\\n"], "a": null}'.encode()
    empty = Page(full.item._replace(key="", digest=bytes(16)), None, Outcome.REFUSED)
    async with a_loading_run(database) as run:
        await run.store([full, empty])
        stored = await run.pages()
    row = stored[full.item.key]
    assert row["run_id"] == run.run_id
    assert row["digest"] == full.item.digest
    assert row["url"] == full.url
    assert (row["outcome"], row["reason"]) == ("stored", "why not")
    assert (row["status"], row["attempts"]) == (999, 32_000)
    assert row["fetched_at"] == datetime(2026, 1, 1, 0, 0, 0, 123457, tzinfo=UTC)
    assert (row["etag"], row["last_modified"]) == ('W/"é"', "Thu, 01 Jan 2026 00:00:00 GMT")
    assert row["body_digest"] == bytes(range(16))
    assert orjson.loads(row["json"]) == orjson.loads(full.body)
    assert "1.10" in row["json"], "numbers keep their digits"
    row = stored[""]
    assert (row["outcome"], row["attempts"], row["fetched_at"]) == ("refused", 0, datetime(1970, 1, 1, tzinfo=UTC))
    nulls = (
        *("url", "reason", "status", "etag", "last_modified", "body_digest"),
        *("body", "content", "content_type", "encoding"),
    )
    assert [row[name] for name in nulls] == [None] * len(nulls)


async def test_body_and_content_are_stored_as_they_are(database: str) -> None:
    values = list(
        product(
            (None, b'"x"'),
            (None, b"", b"\0\xff" * 1000, b"x" * 3_000_000),
            (None, "image/png", "odd/\0type"),
            (None, "utf-8", "utf-8, 3 replaced"),
        )
    )
    pages = []
    for number, (body, content, content_type, encoding) in enumerate(values):
        page = a_page(str(number), body=body)
        page.content, page.content_type, page.encoding = content, content_type, encoding
        pages.append(page)
    async with a_loading_run(database) as run:
        await run.store(pages)
        stored = await run.pages()
    for number, (body, content, content_type, encoding) in enumerate(values):
        row = stored[str(number)]
        assert (row["json"], row["encoding"]) == (body.decode() if body else None, encoding)
        assert row["content"] == content
        assert row["content_type"] == (
            content_type.replace("\0", "\\0") if content is not None and content_type else None
        )


@pytest.mark.parametrize("outcome", Outcome)
async def test_every_outcome_is_stored_under_its_name(database: str, outcome: Outcome) -> None:
    page = a_page("a", body=None)
    page.outcome = outcome
    async with a_loading_run(database) as run:
        await run.store([page])
        assert (await run.pages())["a"]["outcome"] == outcome.value
    assert page.outcome is outcome


async def test_microseconds_are_kept_though_binary_fractions_cannot_hold_them(database: str) -> None:
    pages = []
    for number in range(1000):
        page = a_page(str(number), body=None)
        page.fetched_at = 1_767_225_600 + number / 1_000_000
        pages.append(page)
    async with a_loading_run(database) as run:
        await run.store(pages)
        stored = await run.pages()
    assert [row["fetched_at"].microsecond for _, row in sorted(stored.items(), key=lambda item: int(item[0]))] == list(
        range(1000)
    )


async def test_bodies_of_megabytes_arrive_whole(database: str) -> None:
    pages = [a_page(str(number), body=orjson.dumps(str(number) * 700_000)) for number in range(5)]
    async with a_loading_run(database) as run:
        await run.store(pages)
        rows = await run.eye.fetch(f"SELECT key, body #>> '{{}}' AS body FROM pages_r{run.run_id}")
    assert {row["key"]: row["body"] for row in rows} == {str(number): str(number) * 700_000 for number in range(5)}


@pytest.mark.parametrize(
    ("reason", "stored_as"),
    [
        ("a\0b", "a\\0b"),
        ("tab\t newline\n bell\x07 esc\x1b", "tab\t newline\n bell\x07 esc\x1b"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("x" * 10_000, "x" * MAX_REASON_CHARACTERS),
    ],
)
async def test_every_reason_can_be_stored(database: str, reason: str, stored_as: str) -> None:
    page = a_page("a")
    page.fail(reason)
    async with a_loading_run(database) as run:
        await run.store([page])
        assert (await run.pages())["a"]["reason"] == stored_as


def test_the_moment_of_the_examples_has_microseconds() -> None:
    assert round(MOMENT * 1_000_000) % 1_000_000 == 123457


async def test_what_is_sent_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copyformat, "SEND_BYTES", 10)
    pieces = [b"12345", b"67890", b"1" * 30, b"2", b""]
    sent = [part async for part in copyformat.joined(pieces)]
    assert sent == [b"1234567890", b"1" * 10, b"1" * 10, b"1" * 10, b"2"]
