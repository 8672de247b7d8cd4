"""Keys that brought nothing: page by page, by search, and by reason, with a bound on what is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from coordinator.model import Outcome
from coordinator.queue.sharding import digest
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.reasons import like_pattern
from crawler.store.rows import ended
from crawler.store.rows.ended import KEYS_OF_A_VIEW, KeysOfRun
from tests.crawler.examples import LoadingRun, a_loading_run, a_page

pytestmark = pytest.mark.anyio


def failed(key: str, reason: str) -> Page:
    return replace(a_page(key, body=None), outcome=Outcome.FAILED, reason=reason, status=503)


async def keys_of(run: LoadingRun) -> KeysOfRun:
    found = await Catalogue(run.eye).find("test")
    assert found is not None
    return KeysOfRun(run.eye, found)


async def test_every_key_is_in_one_view(database: str) -> None:
    async with a_loading_run(database) as run:
        await run.store([failed(f"key {number}", "status 503") for number in range(2 * KEYS_OF_A_VIEW + 7)])
        await run.store([a_page("stored"), replace(failed("gone", "status 404"), outcome=Outcome.GONE)])
        keys = await keys_of(run)
        seen: list[str] = []
        behind: bytes | None = b""
        sizes = []
        while behind is not None:
            view = await keys.ended(Outcome.FAILED, behind)
            sizes.append(len(view.keys))
            seen += [one.key for one in view.keys]
            behind = view.more_behind
        assert sizes == [KEYS_OF_A_VIEW, KEYS_OF_A_VIEW, 7]
        assert sorted(seen) == sorted(f"key {number}" for number in range(2 * KEYS_OF_A_VIEW + 7))
        assert [one.key for one in (await keys.ended(Outcome.GONE)).keys] == ["gone"]
        assert (await keys.ended(Outcome.REFUSED)).keys == []


async def test_a_search_says_where_it_stopped(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "LOOKED_AT", 30)
    async with a_loading_run(database) as run:
        await run.store([failed(f"key {number}", "status 503" if number else "100 % of_it") for number in range(100)])
        keys = await keys_of(run)
        found: list[str] = []
        behind: bytes | None = b""
        calls = 0
        while behind is not None:
            view = await keys.ended(Outcome.FAILED, behind, "100 % OF_it")
            found += [one.key for one in view.keys]
            assert view.looked_at == (30 if view.more_behind is not None else 0)
            behind, calls = view.more_behind, calls + 1
        assert (found, calls) == (["key 0"], 4)
        assert [one.key for one in (await keys.ended(Outcome.FAILED, b"", "100 x of it")).keys] == []


async def test_a_search_that_takes_too_long_looks_at_fewer(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "LOOKED_AT", 100)
    async with a_loading_run(database) as run:
        await run.store([failed(f"key {number}", "status 503") for number in range(100)])
        keys, fetch, looks = await keys_of(run), asyncpg.Connection.fetch, []

        async def fetch_slowly(connection: asyncpg.Connection, statement: str, *given: Any) -> Any:
            looks.append(given[2])
            if given[2] == 100:
                await connection.execute("SET LOCAL statement_timeout = '1ms'")
                await connection.execute("SELECT pg_sleep(60)")
            return await fetch(connection, statement, *given)

        monkeypatch.setattr(asyncpg.Connection, "fetch", fetch_slowly)
        view = await keys.ended(Outcome.FAILED, b"", "no such")
        assert (looks, view.keys, view.looked_at) == ([100, 5], [], 5)
        assert view.more_behind == sorted(digest(f"key {number}") for number in range(100))[4]


async def test_a_view_reads_an_index_and_no_other_page(database: str) -> None:
    async with a_loading_run(database) as run:
        await run.eye.execute(
            f"INSERT INTO pages_r{run.run_id} (run_id, digest, key, outcome, reason, attempts, fetched_at) "
            f"SELECT {run.run_id}, decode(md5(n::text), 'hex'), 'key ' || n, "
            "CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'stored' END, 'status 503', 1, now() "
            "FROM generate_series(1, 20000) AS n"
        )
        await run.eye.execute(f"ANALYZE pages_r{run.run_id}")
        view = await (await keys_of(run)).ended(Outcome.FAILED)
        assert (len(view.keys), view.more_behind) == (20, None)
        plan = await run.eye.fetch(
            f"EXPLAIN SELECT * FROM pages_r{run.run_id} "
            "WHERE outcome = 'failed' AND digest > '' ORDER BY digest LIMIT 51"
        )
        assert "outcome_digest_idx" in str(plan)


async def test_the_usual_reasons_of_many_are_those_of_a_sample(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "SAMPLED_KEYS", 40)
    async with a_loading_run(database) as run:
        await run.store([failed(f"key {number}", f"dns: no{number}.example: no such host") for number in range(60)])
        await run.store([replace(failed("secret", "status 403"), outcome=Outcome.REFUSED, status=403)])
        reasons = await (await keys_of(run)).usual_reasons()
        assert [(one.reason, one.keys, one.denied) for one in reasons] == [
            ("dns: \u2026 no such host", 40, False),
            ("status 403", 1, True),
        ]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("status 503", "%status 503%"),
        ("100 %_\\", "%100 \\%\\_\\\\%"),
        ("dns: \u2026 no such host", "%dns: % no such host%"),
        ("N of N keys, No", "%% of % keys, No%"),
    ],
)
def test_a_reason_as_status_shows_it_is_a_pattern(text: str, pattern: str) -> None:
    assert like_pattern(text) == pattern
