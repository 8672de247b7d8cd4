"""What users do first: they give one command a corpus, and get rows."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter

import pytest
from redis.asyncio import Redis

from crawler.sample.upstream import Upstream
from tests.live.examples import COUNT_PAGES, UPSTREAM_KEYS, each_key_once, job
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_a_file_of_urls_ends_as_one_row_for_each(shell: Shell, upstream: Upstream) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(3000)])
    ended = await shell.run("run", urls, "--workers", "2")
    assert "run urls is complete: 3,000 keys" in ended.out
    assert await shell.sql(COUNT_PAGES) == each_key_once(3000)
    assert upstream.requests == 3000


async def test_a_complete_run_says_so_and_fetches_nothing(shell: Shell, upstream: Upstream) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(200)])
    await shell.run("run", urls)
    ended = await shell.run("run", urls)
    assert "complete already: 200 keys, nothing fetched" in ended.out
    assert upstream.requests == 200


async def test_every_kind_of_response_becomes_its_outcome(shell: Shell, upstream: Upstream) -> None:
    """Stored, gone, refused and failed, each with its reason; after a 503 there is another attempt."""
    paths = ["/item/1", "/missing/x", "/status/403/x", "/status/301/x", "/flaky/2/x", "/notjson/x", "/text/x"]
    urls = shell.write("urls.txt", [upstream.url + path for path in paths])
    ended = await shell.run("run", urls, code=3)
    assert "see why keys failed" in ended.out
    rows = await shell.sql("select key, outcome, reason, status, attempts, body from pages")
    found = {row["key"].removeprefix(upstream.url): row for row in rows}
    assert {path: row["outcome"] for path, row in found.items()} == {
        "/item/1": "stored",
        "/missing/x": "gone",
        "/status/403/x": "refused",
        "/status/301/x": "stored",
        "/flaky/2/x": "stored",
        "/notjson/x": "failed",
        "/text/x": "stored",
    }
    assert found["/flaky/2/x"]["attempts"] == 3
    assert found["/status/301/x"]["body"]["id"] == "x", "a redirect is followed"
    assert "JSON" in found["/notjson/x"]["reason"] or "json" in found["/notjson/x"]["reason"]
    assert isinstance(found["/text/x"]["body"], str)


async def test_failed_keys_go_back_into_their_run(shell: Shell, upstream: Upstream) -> None:
    """`retry`: only keys that failed for that reason are fetched again, and the final counts are true."""
    paths = [*(f"/item/{number}" for number in range(50)), *(f"/flaky/3/{number}" for number in range(5)), "/notjson/x"]
    job = """
        [run]
        name = "again"
        max_failed = 1.0
        [source]
        path = "urls.txt"
        [retry]
        attempts = 2
        backoff = 0.05
    """
    shell.write("urls.txt", [upstream.url + path for path in paths])
    path = shell.write("job.toml", job)
    await shell.run("run", path)
    counted = "select outcome, count(*) as keys from pages_current group by 1 order by 1"
    assert await shell.sql(counted) == [{"outcome": "failed", "keys": 6}, {"outcome": "stored", "keys": 50}]
    history = await shell.sql(
        "select distinct regexp_replace(reason, '[0-9:]{8}', 'TIME') as reason from pages where status = 503"
    )
    assert history == [{"reason": "status 503 after 2 attempts: TIME status 503 \u00d72"}]
    sent = upstream.requests
    ended = await shell.run("retry", "again", "--reason", "no such reason")
    assert "nothing is changed" in ended.out
    ended = await shell.run("retry", "again", "--reason", "Status 503")
    assert "5 failed keys go back into run again" in ended.out
    assert await shell.sql(counted) == [{"outcome": "failed", "keys": 1}, {"outcome": "stored", "keys": 50}]
    await shell.run("run", path)
    assert await shell.sql(counted) == [{"outcome": "failed", "keys": 1}, {"outcome": "stored", "keys": 55}]
    assert upstream.requests == sent + 10, "each flaky page is good at its fourth request"
    await shell.run("audit", "again")


async def test_failed_keys_go_back_while_their_run_goes_on(shell: Shell, upstream: Upstream) -> None:
    """`retry` beside a `run` in the same data folder: `run` sees it, and takes these keys long before its end."""
    paths = [f"/status/500/{number}" if number % 10 == 0 else f"/item/{number}" for number in range(3000)]
    text = '[run]\nname = "on"\nmax_failed = 1.0\n[source]\npath = "urls.txt"\n[retry]\nattempts = 1\n'
    shell.write("urls.txt", [upstream.url + path for path in paths])
    running = await shell.start(
        "run", shell.write("job.toml", text + '[limits."*"]\nconcurrency = 16\n'), "--rate", "20"
    )

    async def went_back() -> bool:
        return "back into run on" in (await shell.run("retry", "on", code=None)).out

    async def is_at_work() -> bool:
        return bool(json.loads((await shell.run("status", "on", "--json")).out)["workers"])

    await eventually(lambda: bool(upstream.requests), "the run, which has the folder from then on", seconds=60)
    await eventually(went_back, "keys that failed", seconds=60)
    await eventually(is_at_work, "the rebuilt run: until then nobody is at work on it", seconds=60)
    await shell.run("limit", "on", "*", "--rate", "none")
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert "nothing is called done until the run is rebuilt" in ended.err
    counts = await shell.sql("select outcome, count(*) as keys from pages_current group by 1 order by 1")
    assert counts == [{"outcome": "failed", "keys": 300}, {"outcome": "stored", "keys": 2700}]


async def test_keys_that_wait_for_their_next_attempt_hold_nothing_up(shell: Shell, upstream: Upstream) -> None:
    """Backoff beyond two seconds: the deferred set keeps the key, and `status` says so.

    Each of 24 keys waits a random time of up to eight seconds, so one of them waits nearly as long: also a slow machine
    sees a key in the deferred set.
    """
    paths = [*(f"/item/{number}" for number in range(200)), *(f"/flaky/1/{number}" for number in range(24))]
    job = """
        [run]
        name = "delayed"
        workers = 1
        [source]
        path = "urls.txt"
        [retry]
        backoff = 8.0
    """
    shell.write("urls.txt", [upstream.url + path for path in paths])
    running = await shell.start("run", shell.write("job.toml", job), "--rate", "none")
    environ = {"SHARDCRAWL_LOG_LEVEL": "error"}

    async def waiting() -> bool:
        ended = await shell.run("status", "delayed", "--json", environ=environ, code=None)
        if ended.code:
            return False
        snapshot = json.loads(ended.out)
        return bool(snapshot["deferred"] and snapshot["outcomes"]["stored"] >= 200)

    await eventually(waiting, "all but the deferred keys to be stored")
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql("select attempts, count(*) as keys from pages group by 1 order by 1") == [
        {"attempts": 1, "keys": 200},
        {"attempts": 2, "keys": 24},
    ]
    await shell.run("audit", "delayed")


async def test_bad_lines_are_refused_with_their_number(shell: Shell, upstream: Upstream) -> None:
    good = f"{upstream.url}/item/1"
    lines = ["# a comment", "", good, "not a url", f"{upstream.url}/item/\x07bell", "http://x/" + "y" * 9000, good]
    await shell.run("run", shell.write("urls.txt", lines))
    rows = await shell.sql("select outcome, reason from pages order by outcome, reason")
    assert [row["outcome"] for row in rows] == ["refused", "refused", "refused", "stored"]
    assert all("line" in row["reason"] for row in rows[:3]), rows
    assert upstream.requests == 1


async def test_several_keys_share_a_request_and_each_has_its_own_outcome(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", [f"k{number}" for number in range(190)] + [f"missing{number}" for number in range(10)])
    shell.write(
        "parse.py",
        """
def items(response):
    rows = []
    for item in response.json()["items"]:
        if item.get("missing"):
            response.gone(item["id"])
        else:
            rows.append({"_key": item["id"], "name": item["id"], "size": len(item)})
    return {"things": rows}
""",
    )
    tables = '\n[parse]\npython = "parse:items"\n[[tables]]\nname = "things"\ncolumns = { name = "text", size = "int" }'
    text = job(upstream, "keys_per_request = 50" + tables.replace('"int"', '"integer"'), "/batch?ids={keys}")
    await shell.run("run", shell.write("job.toml", text.replace('name = "test"', 'name = "test"\nshards = 1')))
    assert upstream.requests == 4
    assert await shell.sql("select outcome, count(*) as keys from pages group by 1 order by 1") == [
        {"outcome": "gone", "keys": 10},
        {"outcome": "stored", "keys": 190},
    ]
    joined = "select count(*) as n from things join pages using (run_id, digest) where things.name = pages.key"
    assert await shell.sql(joined) == [{"n": 190}]


async def test_a_key_is_kept_byte_for_byte(shell: Shell, upstream: Upstream) -> None:
    keys = ["US", "Us", "a b", "ü/ß?", "100%", "%41"]
    shell.write("keys.txt", keys)
    await shell.run("run", shell.write("job.toml", job(upstream)))
    rows = await shell.sql("select key, body->>'id' as id from pages")
    assert sorted(row["key"] for row in rows) == sorted(keys)
    assert all(row["key"] == row["id"] for row in rows), rows


@pytest.mark.slow
async def test_compressed_and_piped_corpora(shell: Shell, upstream: Upstream) -> None:
    lines = "".join(f"{upstream.url}/item/{number}\n" for number in range(300)).encode()
    (shell.folder / "urls.txt.gz").write_bytes(gzip.compress(lines))
    await shell.run("run", shell.folder / "urls.txt.gz", "--name", "packed")
    read_end, write_end = os.pipe()
    os.write(write_end, lines)
    os.close(write_end)
    piped = await shell.start("run", "-", "--name", "piped", stdin=read_end)
    os.close(read_end)
    assert (await piped.end()).code == 0
    rows = await shell.sql("select name, counts->>'stored' as stored from runs order by name")
    assert rows == [{"name": "packed", "stored": "300"}, {"name": "piped", "stored": "300"}]


async def test_a_generator_of_keys(shell: Shell, upstream: Upstream) -> None:
    shell.write("corpus.py", "def keys():\n    for number in range(250):\n        yield f'k{number}'\n")
    text = job(upstream).replace('path = "keys.txt"', 'python = "corpus:keys"')
    await shell.run("run", shell.write("job.toml", text))
    assert await shell.sql("select count(*) as n from pages where outcome = 'stored'") == [{"n": 250}]


async def test_all_workers_together_keep_below_the_rate(shell: Shell, upstream: Upstream) -> None:
    """From the first to the last request, the upstream gets no more than the rate, but for jitter on the way there."""
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(400)])
    await shell.run("run", urls, "--workers", "4", "--rate", "200")
    stats = upstream.stats()
    assert stats["requests"] == 400
    assert (400 - 1) / (stats["last"] - stats["first"]) <= 200 * 1.1


async def test_a_429_is_waited_out(shell: Shell) -> None:
    async with Upstream(size=200, limit_rate=50) as upstream:
        urls = shell.write("urls.txt", [f"{upstream.url}/limited/{number}" for number in range(120)])
        await shell.run("run", urls, "--workers", "2")
        assert await shell.sql("select count(*) as n from pages where outcome = 'stored'") == [{"n": 120}]


async def test_duplicates_in_the_corpus_are_one_row(shell: Shell, upstream: Upstream) -> None:
    lines = [f"{upstream.url}/item/{number % 700}" for number in range(2100)]
    ended = await shell.run("run", shell.write("urls.txt", lines), "--json")
    assert json.loads(ended.out)["outcomes"]["stored"] == 700
    assert await shell.sql(COUNT_PAGES) == each_key_once(700)
    assert upstream.requests == 700


async def test_httpx_engine_does_the_same_job(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", [f"k{number}" for number in range(100)])
    await shell.run("run", shell.write("job.toml", job(upstream, 'engine = "httpx"\nhttp2 = true')))
    assert await shell.sql("select count(*) as n from pages where outcome = 'stored'") == [{"n": 100}]


async def test_status_and_runs_work_while_a_run_goes_on(shell: Shell, upstream: Upstream) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/slow/50/{number}" for number in range(2000)])
    running = await shell.start("run", urls, "--concurrency", "4", "--workers", "1")
    await eventually(lambda: upstream.requests > 20, "requests at the upstream")
    status = json.loads((await shell.run("status", "urls", "--json")).out)
    assert status["state"] == "running"
    assert status["workers"] == 1
    assert status["total"] == 2000
    listed = json.loads((await shell.run("runs", "--json")).out)
    assert [(run["name"], run["state"]) for run in listed] == [("urls", "running")]
    again = await shell.run("run", urls, "--name", "other", code=1)
    assert "another command" in again.err
    assert len(again.err.strip().splitlines()) == 1, again.err
    running.interrupt()
    assert (await running.end()).code == 130


async def test_no_redis_key_of_the_queue_outlives_a_complete_run(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(500)])
    await shell.run("run", urls, environ=environ)
    names = Counter(name.decode().rpartition("}:")[2].partition(":")[0] for name in await redis.keys("*"))
    assert set(names) <= {"shardcrawl", "spec", "state", "timings", "history", "done", "leader", *UPSTREAM_KEYS}, names


@pytest.mark.slow
async def test_fewer_requests_at_once_than_workers(shell: Shell, upstream: Upstream) -> None:
    """Workers whose fair share of the upstream is zero claim nothing; keys that they had claimed are fetched."""
    shell.write("keys.txt", [f"k{number}" for number in range(400)])
    limits = '[limits."*"]\nconcurrency = 1'
    await shell.run("run", shell.write("job.toml", job(upstream, limits)), "--workers", "3")
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(400)])
    text = f'[run]\nname = "urls"\n[source]\npath = "{urls}"\n{limits}\n'
    await shell.run("run", shell.write("urls.toml", text), "--workers", "3")
    assert await shell.sql("select counts->>'stored' as n from runs") == [{"n": "400"}] * 2
