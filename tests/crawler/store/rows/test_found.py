"""Keys that pages named, in a real Postgres: committed with their page, each once, and never lost by a merge."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import msgpack
import pytest

from coordinator.model import FoundBatch, FoundKey, KeyContext
from coordinator.queue.sharding import digest
from crawler.model import Page
from crawler.store.rows.found import LIST_REPEATS, FoundReader, decode_context
from crawler.store.tables import RunTables
from tests.crawler.examples import LoadingRun, a_loading_run, a_page, a_table
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


ONE_LINK = KeyContext(depth=1)


def a_found_key(key: str, context: KeyContext = ONE_LINK, *, rule: int = -1, refusal: str = "") -> FoundKey:
    return FoundKey(digest(key, context), key, context, rule, refusal)


def naming(key: str, names: Iterable[str | FoundKey], *, records: Sequence[tuple[object, ...]] = ()) -> Page:
    """The page of a key, which names these."""
    page = a_page(key, records=records)
    page.found = [a_found_key(name) if isinstance(name, str) else name for name in names]
    return page


def next_page(list_key: str, token: str, page_no: int = 2) -> FoundKey:
    return a_found_key(f"{list_key} {token}", KeyContext(page_no=page_no, list_key=list_key, params={"at": token}))


def page_of(found: FoundKey, names: Iterable[str | FoundKey] = ()) -> Page:
    """The page of a found key."""
    page = naming(found.key, names)
    page.item = page.item._replace(digest=found.digest, context=found.context)
    return page


@dataclass
class Stored:
    """What a run has in Postgres, and what writers returned."""

    run: LoadingRun
    reader: FoundReader

    async def names(self) -> dict[str, int]:
        """{found key: the number of its batch}."""
        rows = await self.run.eye.fetch(f"SELECT key, batch FROM pages_found_r{self.run.run_id}")
        assert len({row["key"] for row in rows}) == len(rows)
        return {row["key"]: row["batch"] for row in rows}

    async def rebuilt(self) -> tuple[dict[tuple[int, int], int], Mapping[int, int], set[bytes]]:
        """What a rebuild reads: {(batch, depth): keys without a page}, {rule: keys with one}, and these digests."""
        batches, by_rule = await self.reader.unfetched()
        digests = [one async for part in self.reader.unfetched_digests() for one in part]
        assert len(digests) == len(set(digests)) == sum(batch.size for batch in batches)
        return {(batch.batch, batch.depth): batch.size for batch in batches}, by_rule, set(digests)


@asynccontextmanager
async def a_following_run(database: str) -> AsyncIterator[Stored]:
    async with a_loading_run(database, a_table(n="smallint"), follows=True) as run:
        reader = FoundReader(database, RunTables(run.run_id))
        try:
            yield Stored(run, reader)
        finally:
            reader.close()


def keys_of(batches: Iterable[FoundBatch]) -> list[str]:
    return sorted(one.key for batch in batches for one in batch.keys)


async def test_a_page_is_stored_with_what_it_names_and_where_it_was_found(database: str) -> None:
    context = KeyContext("product", 3, page_no=2, origin=b"o" * 16, list_key="all", params={"at": 1})
    async with a_following_run(database) as stored:
        page = page_of(a_found_key("x", context), ["child"])
        (batch,) = await stored.run.store([page])
        row = (await stored.run.pages())["x"]
        assert [row[name] for name in ("kind", "depth", "page_no", "origin")] == ["product", 3, 2, b"o" * 16]
        assert row["list"] is not None
        assert await stored.names() == {"child": row["batch"]}
    assert batch == FoundBatch(row["batch"], 1, 1, (a_found_key("child"),))


async def test_found_keys_come_back_as_they_were(database: str) -> None:
    context = KeyContext(
        "product", 4, 7, b"o" * 16, {"name": "Zoë"}, "a list", {"at": 3, "text": "x", "share": 0.5}, b"s" * 16
    )
    found = a_found_key("x", context, rule=3)
    refused = a_found_key("y", KeyContext(depth=4), refusal="it has no host")
    async with a_following_run(database) as stored:
        (batch,) = await stored.run.store([naming("a", [found, refused])])
        read = await stored.reader.read(batch)
    assert sorted(read, key=lambda one: one.key) == [found, refused]
    assert (batch.depth, batch.size, keys_of([batch])) == (4, 2, ["x", "y"])


async def test_the_keys_of_each_depth_are_a_batch(database: str) -> None:
    pages = [naming("a", [a_found_key(f"x{depth}", KeyContext(depth=depth)) for depth in (1, 2, 2 + 1)])]
    pages.append(naming("b", [a_found_key("y", KeyContext(depth=2))]))
    async with a_following_run(database) as stored:
        batches = await stored.run.store(pages)
        assert len({batch.batch for batch in batches}) == 1
        assert {batch.depth: keys_of([batch]) for batch in batches} == {1: ["x1"], 2: ["x2", "y"], 3: ["x3"]}
        assert {
            batch.depth: keys_of([replace(batch, keys=tuple(await stored.reader.read(batch)))]) for batch in batches
        } == {
            1: ["x1"],
            2: ["x2", "y"],
            3: ["x3"],
        }


async def test_of_pages_that_name_the_same_key_the_first_has_found_it(database: str) -> None:
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        first = await writer.write([naming("a", ["x", "y"]), naming("b", ["y", "z"])])
        second = await writer.write([naming("c", ["x", "z", "new"])])
        third = await writer.write([naming("d", ["x"])])
        assert len(await stored.names()) == 4
    assert [keys_of(batches) for batches in (first, second, third)] == [["x", "y", "z"], ["new"], []]


async def test_a_repeated_batch_yields_what_the_first_had_named_and_nothing_of_its_own(database: str) -> None:
    """The worker died after the commit: Redis has not heard of these keys, and the responses may differ now."""
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        depths = [a_found_key("deep", KeyContext(depth=2)), "x"]
        first = await writer.write([naming("a", depths), naming("b", ["y"]), naming("childless", [])])
        again = await writer.write([naming("a", ["other"]), naming("childless", ["another"])])
        assert sorted((batch.batch, batch.depth, batch.size) for batch in again) == sorted(
            (batch.batch, batch.depth, batch.size) for batch in first
        )
        of_depth = {batch.depth: {one.digest for one in batch.keys} for batch in first}
        assert all(batch.keys == () and batch.example in of_depth[batch.depth] for batch in again)
        assert sorted(await stored.names()) == ["deep", "x", "y"]


async def test_a_merge_stores_the_children_of_new_pages_and_yields_the_batches_of_old_ones(database: str) -> None:
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        (old,) = await writer.write([naming("a", ["x"])])
        merged = await writer.write([naming("a", ["never"]), naming("b", ["x", "new"])])
        names = await stored.names()
        assert sorted(names) == ["new", "x"]
        assert names["new"] == (await stored.run.pages())["b"]["batch"] != names["x"] == old.batch
    assert [(batch.batch, keys_of([batch])) for batch in merged] == [(old.batch, []), (names["new"], ["new"])]


async def test_a_bad_row_fails_its_page_with_its_children_and_the_others_keep_theirs(database: str) -> None:
    pages = [naming(str(number), [f"of {number}"], records=[(number * 4_000,)]) for number in range(20)]
    async with a_following_run(database) as stored:
        batches = await stored.run.store(pages)
        good = [f"of {number}" for number in range(9)]
        assert sorted(await stored.names()) == good == keys_of(batches)
        rows = await stored.run.pages()
        names = await stored.names()
        assert all(names[f"of {number}"] == rows[str(number)]["batch"] for number in range(9))
    assert sum(batch.size for batch in batches) == 9


@pytest.mark.parametrize("key", ["nul \0", "half a pair \ud800"])
async def test_a_found_key_that_postgres_refuses_fails_its_page_only(database: str, key: str) -> None:
    """The finder refuses such keys; here it is let through."""
    bad = FoundKey(b"d" * 16, key, KeyContext(depth=1))
    async with a_following_run(database) as stored:
        await stored.run.store([naming("a", ["x"]), naming("b", [bad]), naming("c", ["y"])])
        outcomes = {key: row["outcome"] for key, row in (await stored.run.pages()).items()}
        assert sorted(await stored.names()) == ["x", "y"]
    assert outcomes == {"a": "stored", "b": "failed", "c": "stored"}


async def test_writers_that_name_the_same_keys_at_the_same_time_store_each_once(database: str) -> None:
    names = [f"x{number}" for number in range(8_000)]
    async with a_following_run(database) as stored, AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(stored.run.writer()) for _ in "abcd"]
        for writer in writers:
            await writer.open()
        pages = [
            [naming(word, names[start:] + names[:start])] for word, start in zip("abcd", (0, 3, 50, 7_000), strict=True)
        ]
        returned = await asyncio.gather(*(writer.write(batch) for writer, batch in zip(writers, pages, strict=True)))
        counts = Counter(key for found in returned for key in keys_of(found))
        assert sorted(await stored.names()) == sorted(names) == sorted(counts)
    assert set(counts.values()) == {1}, "no two writers publish the same key"


async def test_writers_that_store_the_same_pages_at_the_same_time_name_each_key_once(database: str) -> None:
    async with a_following_run(database) as stored:
        pages = [[naming(str(number), [f"{word}{number}" for word in "xyz"]) for number in range(200)] for _ in "12"]
        one, two = await asyncio.gather(*(stored.run.store(batch) for batch in pages))
        assert len(await stored.names()) == 600
    (first, second) = (one, two) if any(batch.keys for batch in one) else (two, one)
    assert sum(batch.size for batch in first) == 600
    assert [(batch.batch, batch.size, batch.keys) for batch in second] == [
        (batch.batch, batch.size, ()) for batch in first
    ]


# -- lists


async def test_a_list_that_names_a_page_again_says_so(database: str) -> None:
    second, third = next_page("list", "2"), next_page("list", "3", page_no=3)
    again = second._replace(context=second.context._replace(page_no=4))
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        await writer.write([naming("list", [second])])
        await writer.write([page_of(second, [third, "x"])])
        found = await writer.write([page_of(third, [again, "y"])])
        reasons = {key: row["reason"] for key, row in (await stored.run.pages()).items()}
    assert keys_of(found) == ["y"]
    assert reasons == {"list": None, second.key: None, third.key: LIST_REPEATS}


async def test_a_list_does_not_repeat_because_its_page_was_stored_before(database: str) -> None:
    second = next_page("list", "2")
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        await writer.write([naming("list", [second])])
        (batch,) = await writer.write([naming("list", [second])])
        assert (await stored.run.pages())["list"]["reason"] is None
    assert (batch.size, batch.example) == (1, second.digest)


async def test_the_same_token_in_two_lists_is_two_pages(database: str) -> None:
    async with a_following_run(database) as stored:
        found = await stored.run.store([naming(key, [next_page(key, "2")]) for key in ("a", "b")])
        reasons = {row["reason"] for row in (await stored.run.pages()).values()}
    assert keys_of(found) == ["a 2", "b 2"]
    assert reasons == {None}


# -- what a rebuild reads


async def test_a_rebuild_finds_the_keys_without_a_page_and_counts_those_with_one_by_rule(database: str) -> None:
    ruled = {number: [a_found_key(f"{number}.{one}", rule=number) for one in range(10)] for number in (0, 1)}
    deep = [a_found_key(f"deep {one}", KeyContext(depth=2)) for one in range(5)]
    refused = a_found_key("refused", refusal="it has no host")
    async with a_following_run(database) as stored, stored.run.writer() as writer:
        (shallow, deeper) = sorted(
            await writer.write([naming("a", ruled[0] + ruled[1]), naming("b", [*deep, refused])]),
            key=lambda one: one.depth,
        )
        await writer.write([page_of(one) for one in ruled[0][:4] + deep[:2]])
        batches, by_rule, digests = await stored.rebuilt()
        assert batches == {(shallow.batch, 1): 17, (deeper.batch, 2): 3}
        assert by_rule == {0: 4}
        assert digests == {one.digest for one in [*ruled[0][4:], *ruled[1], *deep[2:], refused]}
        await writer.write([page_of(one) for one in [*ruled[0][4:], *ruled[1], *deep[2:], refused]])
        assert await stored.rebuilt() == ({}, {0: 10, 1: 10}, set())


async def test_many_keys_are_read_part_by_part(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crawler.store.rows.found.ROWS_PER_FETCH", 7)
    async with a_following_run(database) as stored:
        await stored.run.store([naming("a", [f"x{number}" for number in range(50)])])
        parts = [part async for part in stored.reader.unfetched_digests()]
    assert [len(part) for part in parts] == [7] * 7 + [1]


async def test_a_reader_connects_again(database: str) -> None:
    async with a_following_run(database) as stored:
        (batch,) = await stored.run.store([naming("a", ["x"])])
        assert await stored.reader.read(batch) == list(batch.keys)
        await stored.run.eye.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        ended = stored.reader._connection
        assert ended is not None
        await eventually(ended.is_closed, "the end of its connection")
        assert await stored.reader.read(batch) == list(batch.keys)


async def test_a_context_that_is_none_of_ours_is_an_error() -> None:
    with pytest.raises(msgpack.FormatError):
        decode_context(b"\xc1")
