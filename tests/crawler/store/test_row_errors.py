"""A row that Postgres refuses fails its key and no other, whether or not the error names the row."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import PostgresRefused
from coordinator.model import Outcome
from crawler.store.writer import Writer
from tests.crawler.examples import a_loading_run, a_page, a_table

pytestmark = pytest.mark.anyio

FACTS = a_table(n="numeric(5,2)")


POISONS = {
    "no JSON": (b'{"a": tru}', "invalid input syntax for type json"),
    "not a word of JSON": (b"\xff\xfe", "invalid byte sequence"),
    "a NUL escape": (rb'["\u0000"]', "cannot be converted to text"),
    "a lone surrogate": (rb'["\ud800"]', "surrogate"),
    "a number that is too large": (b"1e1000000", "overflow"),
    "nesting that is too deep": (b"[" * 100_000, "stack depth"),
    # The words of an error quote the body: they must not blame the key in line 1.
    "an error message": (rb'["COPY pages_r1, line 1, \u0000"]', "cannot be converted to text"),
    "an error message in a line of its own": (b'["a",\nCOPY pages_r1, line 1, column body]', "invalid input syntax"),
}


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
@pytest.mark.parametrize("poison", POISONS)
async def test_a_poisoned_body_costs_its_key_alone(database: str, poison: str, merging: bool) -> None:
    body, words = POISONS[poison]
    pages = [a_page(str(number), records=[(number % 100,)]) for number in range(400)]
    culprit = pages[211]
    culprit.body = body
    async with a_loading_run(database, FACTS) as run:
        if merging:
            await run.store([a_page(str(number), records=[(number % 100,)]) for number in range(100)])
        await run.store(pages)
        stored = await run.pages()
        assert len(await run.records()) == 399
    assert len(stored) == 400
    assert [key for key, row in stored.items() if row["outcome"] != "stored"] == ["211"]
    row = stored["211"]
    assert (row["outcome"], row["body"]) == ("failed", None)
    assert words in row["reason"]
    assert [page for page in pages if page.outcome is not Outcome.STORED] == [culprit]
    assert (culprit.outcome, culprit.reason) == (Outcome.FAILED, row["reason"])


async def test_many_poisons_of_many_kinds_leave_the_rest_of_a_full_batch(database: str) -> None:
    pages = [a_page(str(number)) for number in range(1000)]
    poisoned = set(range(7, 1000, 97))
    for number, (body, _) in zip(sorted(poisoned), list(POISONS.values()) * 2, strict=False):
        pages[number].body = body
    async with a_loading_run(database) as run:
        await run.store(pages)
        stored = await run.pages()
    assert {int(key) for key, row in stored.items() if row["outcome"] == "failed"} == poisoned
    assert len(stored) == 1000
    assert all(row["reason"] for row in stored.values() if row["outcome"] == "failed")
    assert {int(page.item.key) for page in pages if page.outcome is Outcome.FAILED} == poisoned


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
async def test_a_record_that_postgres_refuses_costs_its_key_alone(database: str, merging: bool) -> None:
    pages = [a_page(str(number), records=[(1,), (2,)]) for number in range(200)]
    pages[77].records.append((0, (99_999,)))
    pages[155].records.insert(0, (0, (-1000,)))
    async with a_loading_run(database, FACTS) as run:
        if merging:
            # Stored keys come with records that are not copied again: lines are counted without them.
            await run.store([a_page(str(number), records=[(1,), (2,)]) for number in range(0, 200, 2)])
        await run.store(pages)
        stored = await run.pages()
        assert len(await run.records()) == 2 * 198
    failed = {key: row["reason"] for key, row in stored.items() if row["outcome"] == "failed"}
    assert sorted(failed) == ["155", "77"]
    for reason in failed.values():
        assert reason.startswith("facts: numeric field overflow")
        assert "precision 5, scale 2" in reason
    assert sorted(page.item.key for page in pages if page.outcome is Outcome.FAILED) == ["155", "77"]
    assert all(page.records == [] for page in pages if page.outcome is Outcome.FAILED)


async def test_a_stored_key_is_not_blamed_for_a_record_that_was_not_copied(database: str) -> None:
    async with a_loading_run(database, FACTS) as run:
        await run.store([a_page("a", records=[(1,)])])
        again = a_page("a", records=[(99_999,)])
        await run.store([again, a_page("b", records=[(1,)])])
        assert (await run.pages())["a"]["outcome"] == "stored"
        assert len(await run.records()) == 2
    assert again.outcome is Outcome.STORED


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
@pytest.mark.parametrize("value", ["text", 2**40, object()], ids=["type", "range", "object"])
async def test_an_error_that_names_no_line_costs_its_key_alone(database: str, value: Any, merging: bool) -> None:
    pages = [a_page(str(number), records=[(number,)]) for number in range(40)]
    pages[23].records = [(0, (value,))]
    async with a_loading_run(database, a_table(n="integer")) as run:
        if merging:
            await run.store([a_page(str(number), records=[(number,)]) for number in range(0, 40, 2)])
        await run.store(pages)
        stored = await run.pages()
        assert [n for (n,) in await run.records()] == [number for number in range(40) if number != 23]
    assert [key for key, row in stored.items() if row["outcome"] != "stored"] == ["23"]
    assert stored["23"]["reason"]


async def test_a_body_without_a_line_in_its_error_is_isolated_too(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "_poisoned", lambda self, error: [])
    pages = [a_page(str(number)) for number in range(20)]
    for number in (0, 13, 19):
        pages[number].body = b"{"
    async with a_loading_run(database) as run:
        await run.store(pages)
        stored = await run.pages()
    assert sorted(key for key, row in stored.items() if row["outcome"] == "failed") == ["0", "13", "19"]
    assert len(stored) == 20


async def test_a_users_unique_index_costs_the_keys_that_break_it(database: str) -> None:
    async with a_loading_run(database, a_table(n="bigint")) as run:
        await run.eye.execute(f"CREATE UNIQUE INDEX ON facts_r{run.run_id} (n)")
        await run.store([a_page("first", records=[(5,)])])
        pages = [a_page(str(number), records=[(number,)]) for number in range(10)]
        await run.store(pages)
        stored = await run.pages()
        assert [n for (n,) in await run.records()] == list(range(10))
    assert [key for key, row in stored.items() if row["outcome"] == "failed"] == ["5"]
    assert "Key (n)=(5) already exists" in stored["5"]["reason"]


async def test_an_error_that_no_failed_page_heals_is_raised_and_not_repeated_for_ever(database: str) -> None:
    async with a_loading_run(database) as run:
        await run.eye.execute(f"ALTER TABLE pages_r{run.run_id} ADD CHECK (key <> 'unwanted')")
        with pytest.raises(PostgresRefused, match="was the schema changed during the run"):
            await run.store([a_page("a"), a_page("unwanted"), a_page("z")])
