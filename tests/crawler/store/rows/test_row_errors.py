"""A row that Postgres refuses fails its key and no other, whether or not the error names the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.errors import PostgresRefused
from coordinator.model import Outcome
from crawler.model import Page
from crawler.store.postgres import PostgresConnection
from crawler.store.writer import Writer
from tests.crawler.examples import a_loading_run, a_page, a_table

pytestmark = pytest.mark.anyio

FACTS = a_table(n="numeric(5,2)")


POISONS = {
    "no JSON": (b'{"a": tru}', "invalid input syntax for type json"),
    "not a word of JSON": (b"\xff\xfe", "invalid input syntax for type json"),
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


# Every kind of body whose JSON one reader takes and another refuses: what Postgres takes of them, and what it refuses.
TAKEN = {
    "an exponent beyond a double": b'{"a":1e400}',
    "a fraction below a double": b"[1e-400]",
    "as many digits as a numeric has": b"[%s]" % (b"9" * 131_072),
    "nested lists": b"[" * 1500 + b"]" * 1500,
    "nested objects": b'{"a":' * 1500 + b"1" + b"}" * 1500,
    "a key that is there twice": b'{"a":1,"a":2}',
    "a pair of surrogates": rb'["\ud83d\ude00"]',
    "an escaped backslash before u0000": rb'["\\u0000"]',
    "minus zero": b"[-0, -0.0]",
    "blanks around it": b" \t\r\n[1]\n ",
    "a lone word": b"null",
    # What is not UTF-8 is decoded as windows-1252.
    "a surrogate in UTF-8": b'["\xed\xa0\x80"]',
    "too long a form in UTF-8": b'["\xc0\x80"]',
    "beyond Unicode": b'["\xf4\x90\x80\x80"]',
    "latin-1": b'["\xe9"]',
    "a text of all bytes of UTF-8": '["\x7f\u0080\uffff\U0010ffff"]'.encode(),
}
REFUSED = {
    "no JSON": b'{"a": tru}',
    "one word too many": b"{} {}",
    "not a number": b"[NaN]",
    "infinite": b"[-Infinity]",
    "a number in hex": b"[0x10]",
    "a zero before a number": b"[01]",
    "a point without digits": b"[1.]",
    "a plus": b"[+1]",
    "an exponent beyond a numeric": b"[1e131072]",
    "a comma too many": b"[1,]",
    "single quotes": b"['a']",
    "a comment": b"[1] // one",
    "a line break in a text": b'["a\nb"]',
    "a NUL": b'["a\x00b"]',
    "an escaped NUL": rb'["\u0000"]',
    "an escaped NUL in a key": rb'{"\u0000":1}',
    "a lone high surrogate": rb'["\ud800"]',
    "a lone low surrogate": rb'["\udc00"]',
    "surrogates in the wrong order": rb'["\udc00\ud800"]',
    "a byte order mark": b"\xef\xbb\xbf[1]",
    "another kind of blank": "[1\u00a0]".encode(),
    "nesting beyond the stack": b"[" * 100_000,
    "half of it": b'{"a": ',
    "nothing": b"",
    "only a blank": b" ",
}


@pytest.mark.parametrize("body", [*TAKEN.values(), *REFUSED.values()], ids=[*TAKEN, *REFUSED])
async def test_what_becomes_of_a_body_does_not_depend_on_its_neighbours(database: str, body: bytes) -> None:
    async with a_loading_run(database) as run:
        await run.store([a_page("alone", body=body)])
        neighbours = [
            a_page(str(number), body=poison)
            for number, poison in enumerate([b"{", b"{}", rb'["\ud800"]', b'["a\x00b"]'])
        ]
        await run.store([*neighbours, a_page("among others", body=body)])
        stored = await run.pages()
    alone, among = ((stored[key]["outcome"], stored[key]["reason"]) for key in ("alone", "among others"))
    assert alone == among
    assert alone[0] == ("stored" if body in TAKEN.values() else "failed")
    assert {stored[str(number)]["outcome"] for number in range(len(neighbours))} == {"stored", "failed"}


async def test_what_becomes_of_a_record_does_not_depend_on_its_neighbours(database: str) -> None:
    """A user's CHECK, unique index and trigger, and values that only Postgres refuses, all in one batch and alone."""
    rows = {
        "good": (1, "a", None),
        "overflow": (99_999, "a", None),
        "long": (1, "abcdef", None),
        "CHECK": (-1, "a", None),
        "unique": (7, "a", 5),
        "trigger": (1, "boom", None),
    }
    table = a_table(n="numeric(5,2)", t="varchar(5)", u="bigint")
    async with a_loading_run(database, table) as run:
        await run.eye.execute(
            f"""
            ALTER TABLE facts_r{run.run_id} ADD CHECK (n >= 0);
            CREATE UNIQUE INDEX ON facts_r{run.run_id} (u);
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN IF NEW.t = 'boom' THEN RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = 'not this';
                END IF; RETURN NEW; END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON facts_r{run.run_id} FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
        await run.store([a_page("first", records=[(0, "a", 5)])])
        for name, row in rows.items():
            await run.store([a_page(f"alone {name}", records=[row])])
        await run.store([a_page(f"among {name}", records=[row]) for name, row in rows.items()])
        stored = await run.pages()
    for name in rows:
        alone, among = (stored[f"{which} {name}"] for which in ("alone", "among"))
        assert alone["outcome"] == among["outcome"]
        assert (alone["reason"] or "")[:60] == (among["reason"] or "")[:60], (
            "what follows shows the row with its digest"
        )
        assert alone["outcome"] == ("stored" if name == "good" else "failed")
        assert name == "good" or alone["reason"].startswith("facts: ")


@pytest.mark.parametrize(
    ("kind", "transactions", "rows"),
    [("bodies", 2, 2000), ("bodies beyond the stack", 80, 5000), ("records", 80, 4000)],
)
async def test_bad_rows_cost_few_transactions_and_send_no_row_often(
    database: str, kind: str, transactions: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    copy_pages = Writer._copy_pages

    async def counted(
        self: Writer,
        connection: PostgresConnection,
        table: str,
        pages: Sequence[Page],
        batch: int | None,
        schema: str = "",
    ) -> None:
        sent.append(len(pages))
        await copy_pages(self, connection, table, pages, batch, schema)

    monkeypatch.setattr(Writer, "_copy_pages", counted)
    pages = [a_page(str(number), records=[(1,)]) for number in range(1000)]
    for page in pages if kind == "bodies" else pages[::50]:
        if kind == "records":
            page.records = [(0, (99_999,))]
        else:
            page.body = b"{" if kind == "bodies" else b"[" * 20_000
    async with a_loading_run(database, FACTS) as run:
        await run.store(pages)
        stored = await run.pages()
    assert sum(row["outcome"] == "failed" for row in stored.values()) == (1000 if kind == "bodies" else 20)
    assert len(stored) == 1000
    assert (len(sent) <= transactions, sum(sent) <= rows) == (True, True), (len(sent), sum(sent))


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
async def test_json_that_is_not_the_utf8_that_it_seemed_to_be_is_decoded(database: str, merging: bool) -> None:
    pages = [a_page(str(number), body=b'["caf\xe9"]') for number in range(300)]
    said = a_page("said", body=b'["\xff"]')
    said.content_type = "application/json; charset=utf-8"
    poison = a_page("poison", body=b'["\xe9')
    async with a_loading_run(database) as run:
        if merging:
            await run.store([a_page(str(number)) for number in range(200, 300)])
        await run.store([*pages, said, poison, a_page("good")])
        stored = await run.pages()
    assert {(row["json"], row["encoding"]) for key, row in stored.items() if key.isdecimal() and int(key) < 200} == {
        ('["café"]', "windows-1252")
    }
    assert (stored["said"]["json"], stored["said"]["encoding"]) == ('["\ufffd"]', "utf-8, 1 replaced")
    assert (stored["good"]["json"], stored["good"]["outcome"]) == ('{"a": 1}', "stored")
    assert [key for key, row in stored.items() if row["outcome"] == "failed"] == ["poison"]


async def test_content_is_never_what_postgres_refuses(database: str) -> None:
    pages = [a_page(str(number), body=None) for number in range(100)]
    for page in pages:
        page.content, page.content_type = b"COPY pages_r1, line 1\0\xff", "image/png"
    pages[50].content, pages[50].body = None, b"no JSON"
    async with a_loading_run(database) as run:
        await run.store(pages)
        stored = await run.pages()
    assert [key for key, row in stored.items() if row["content"] is None] == ["50"]
    assert [key for key, row in stored.items() if row["outcome"] == "failed"] == ["50"]


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
    monkeypatch.setattr(Writer, "_named_page", lambda self, error: None)
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
