"""Why keys were refused or failed, in words that do not differ from key to key; and which pages `retry` deletes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coordinator.model import Epoch, Outcome
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.reasons import (
    KEPT_REASONS,
    SHOWN_FAILURES,
    PagesToRetry,
    ReasonCount,
    count_outcomes,
    decode_reasons,
    newest_failures,
)
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page, finished

pytestmark = pytest.mark.anyio

EPOCH = Epoch("first")
FAILED, REFUSED, GONE, STORED = Outcome.FAILED, Outcome.REFUSED, Outcome.GONE, Outcome.STORED


async def a_run(connection: PostgresConnection, database: str, *ends: tuple[Outcome, int | None, str | None]) -> int:
    """A run with a page for each (outcome, status, reason)."""
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    run_id = await catalogue.make("test", a_document(), EPOCH, ())
    pages: list[Page] = []
    for number, (outcome, status, reason) in enumerate(ends):
        page = a_page(f"key-{number}")
        page.outcome, page.status, page.reason = outcome, status, reason
        page.body = page.body if outcome is STORED else None
        pages.append(page)
    writer = Writer(database, RunTables(run_id), EPOCH, ())
    try:
        await writer.write(pages)
    finally:
        await writer.close()
    return run_id


@pytest.mark.parametrize(
    ("outcome", "reasons", "kind"),
    [
        (REFUSED, ["status 401", "status 401"], "status 401"),
        (REFUSED, ["robots.txt of http://a.example disallows it", "robots.txt of https://b.example:8443 disallows it"],
         "robots.txt of … disallows it"),
        (REFUSED, ["redirect 302 to http://a.example/1: no more redirects are followed",
                   "redirect 302 to http://a.example/2: no more redirects are followed"],
         "redirect 302 to … no more redirects are followed"),
        (REFUSED, ["address: a.example is at 10.0.0.1, which is not public",
                   "address: b.example is at 10.12.7.3, which is not public"],
         "address: … is at N.N.N.N, which is not public"),
        (REFUSED, ["line 5: contains a space", "line 17: contains a space"], "line N: contains a space"),
        (FAILED, ["status 503 after 2 attempts: 12:00:00 status 503; 12:00:01 status 503",
                  "status 503 after 3 attempts: 12:00:02 timeout: read; 12:00:03 status 503 \u00d72"], "status 503"),
        (FAILED, ["status 206: only a part of the body after 5 attempts: 12:00:00 status 206"],
         "status 206: only a part of the body"),
        (FAILED, ["dns: a.invalid: Name or service not known after 5 attempts: …",
                  "dns: b.invalid: Name or service not known after 5 attempts: …"],
         "dns: … Name or service not known"),
        (FAILED, ["parse: ValueError: invalid literal for int() with base 10: 'a b'",
                  "parse: ValueError: invalid literal for int() with base 10: 'c'"],
         "parse: ValueError: invalid literal for int() with base N: …"),
        (FAILED, ['the key "a" has 3 records', 'the key "b" has 12 records'], "the key … has N records"),
        (FAILED, ["x" * 300, "x" * 400], "x" * 99 + "…"),
        # What is the same for all keys is told whole.
        (FAILED, ["connect: ::1 port 5 (os error 111)"] * 2, "connect: ::1 port 5 (os error 111)"),
        (FAILED, ["connect: ::1 port 5 (os error 111)", "connect: fe80::2:7 port 6 (os error 111)"],
         "connect: … port N (os error 111)"),
        (REFUSED, ["line 3: contains U+0000", "line 4: contains U+0000"], "line N: contains U+0000"),
    ],
)  # fmt: skip
async def test_reasons_that_differ_only_from_key_to_key_are_one(
    connection: PostgresConnection, database: str, outcome: Outcome, reasons: Sequence[str], kind: str
) -> None:
    run_id = await a_run(connection, database, *((outcome, None, reason) for reason in reasons))
    assert await count_outcomes(connection, RunTables(run_id).pages) == (
        {outcome: len(reasons)},
        (ReasonCount(outcome, kind, len(reasons)),),
    )


async def test_only_the_usual_reasons_are_kept_and_all_keys_are_counted(
    connection: PostgresConnection, database: str
) -> None:
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(number)) for number in range(100, 130)]
    run_id = await a_run(
        connection,
        database,
        *((FAILED, 200, f"parse: {word}") for word in words),
        *((FAILED, 503, "status 503") for _ in range(5)),
        *((REFUSED, status, f"status {status}") for status in (401, 403, 407, 451, 400)),
        *((STORED, 200, None) for _ in range(3)),
        (GONE, 404, "status 404"),
    )
    counts, reasons = await count_outcomes(connection, RunTables(run_id).pages)
    assert counts == {FAILED: 35, REFUSED: 5, STORED: 3, GONE: 1}
    failed = [one for one in reasons if one.outcome is FAILED]
    assert len(failed) == KEPT_REASONS + 1
    assert {(one.reason, one.keys) for one in failed} >= {(None, 35 - 5 - (KEPT_REASONS - 1)), ("status 503", 5)}
    assert {one.reason for one in reasons if one.denied} == {"status 401", "status 403", "status 407", "status 451"}


async def test_the_newest_failures_are_found_at_the_end_of_the_table(
    connection: PostgresConnection, database: str
) -> None:
    ends = ((FAILED, 200, "first"), (STORED, 200, None), (REFUSED, 401, "status 401"), (GONE, 404, None))
    run_id = await a_run(connection, database, *ends, *((FAILED, 500, "status 500") for _ in range(20)))
    tables = RunTables(run_id)
    found = await newest_failures(connection, tables)
    assert len(found) == SHOWN_FAILURES
    assert found[0].at >= found[-1].at
    assert {one.reason for one in found} <= {"first", "status 401", "status 500"}
    statement = query("newest-failures", part=tables.pages).replace("$1", f"'{tables.pages}'").replace("$2", "5")
    plan = await connection.fetch(f"EXPLAIN {statement}")
    assert any("Tid Range Scan" in line for (line,) in plan), "a large table is not read whole"
    assert await newest_failures(connection, RunTables(10**6)) == ()


async def test_the_reasons_of_a_complete_run_are_kept_with_it(connection: PostgresConnection, database: str) -> None:
    run_id = await a_run(connection, database, (REFUSED, 401, "status 401"), (FAILED, 200, "parse: x"))
    catalogue = Catalogue(connection)
    expected = (ReasonCount(FAILED, "parse: x", 1), ReasonCount(REFUSED, "status 401", 1, denied=True))
    assert (await catalogue.outcomes_so_far(RunTables(run_id)))[1] == expected
    await finished(connection, RunTables(run_id), EPOCH)
    run = await catalogue.find("test")
    assert run is not None
    assert run.reasons == expected
    assert await catalogue.reopen(RunTables(run_id), PagesToRetry()) == {FAILED: 1, REFUSED: 1}
    run = await catalogue.find("test")
    assert run is not None
    assert run.reasons == ()


async def test_reasons_that_take_long_to_count_are_left_out(
    connection: PostgresConnection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await a_run(connection, database, (FAILED, 200, "parse: x"))

    async def slowly(reader: PostgresConnection, _: int) -> None:
        await reader.execute("SELECT pg_sleep(60)")

    monkeypatch.setattr("crawler.store.catalogue.count_outcomes", slowly)
    assert await Catalogue(connection).outcomes_so_far(RunTables(run_id)) == ({}, ())


def test_a_run_that_an_earlier_version_completed_has_no_reasons() -> None:
    assert decode_reasons(None) == ()


ENDS = [
    (STORED, 200, None),
    (Outcome.UNCHANGED, 304, None),
    (GONE, 404, "status 404"),
    (GONE, 200, "missing"),
    (REFUSED, 400, "status 400"),
    *((REFUSED, status, f"status {status}") for status in (401, 403, 407, 451)),
    (REFUSED, None, "robots.txt of http://a.example disallows it"),
    (FAILED, None, "timeout: read after 5 attempts: …"),
    (FAILED, 503, "status 503 after 5 attempts: …"),
]


@pytest.mark.parametrize(
    ("wanted", "deleted"),
    [
        (PagesToRetry(), {FAILED: 2, REFUSED: 4}),
        (PagesToRetry(reason="TIMEOUT"), {FAILED: 1}),
        (PagesToRetry(reason="robots"), {}),
        (PagesToRetry(statuses=(401,)), {REFUSED: 1}),
        (PagesToRetry(statuses=(401, 403, 503)), {REFUSED: 2, FAILED: 1}),
        (PagesToRetry(statuses=(200, 304, 404)), {GONE: 2}),
        (PagesToRetry((FAILED,)), {FAILED: 2}),
        (PagesToRetry((REFUSED,)), {REFUSED: 6}),
        (PagesToRetry((REFUSED, GONE)), {REFUSED: 6, GONE: 2}),
        (PagesToRetry((REFUSED,), reason="robots"), {REFUSED: 1}),
        (PagesToRetry((GONE,), (404,)), {GONE: 1}),
        (PagesToRetry((Outcome.UNCHANGED,)), {Outcome.UNCHANGED: 1}),
        (PagesToRetry((GONE,), (401,)), {}),
    ],
)
async def test_only_the_pages_that_are_wanted_again_are_deleted(
    connection: PostgresConnection, database: str, wanted: PagesToRetry, deleted: dict[Outcome, int]
) -> None:
    run_id = await a_run(connection, database, *ENDS)
    assert await Catalogue(connection).reopen(RunTables(run_id), wanted) == deleted
    counts, _ = await count_outcomes(connection, RunTables(run_id).pages)
    assert sum(counts.values()) == len(ENDS) - sum(deleted.values())
