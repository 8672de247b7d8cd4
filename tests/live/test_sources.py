"""Whole runs over every kind of source: what is read, what is said, and that a killed run goes on in its place."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
import os
import shlex
import sys

import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import COUNT_PAGES, each_key_once, job
from tests.live.shell import Shell, kill_tree
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = 3_000


def urls(upstream: Upstream, first: int, last: int) -> str:
    return "".join(f"{upstream.url}/item/{number}\n" for number in range(first, last))


@pytest.mark.slow
async def test_a_killed_run_over_a_folder_goes_on_in_the_file_where_it_was(shell: Shell, upstream: Upstream) -> None:
    """A folder of UTF-16 in xz, of text with CR alone, and of plain text; the whole command is killed twice."""
    folder = shell.folder / "keys"
    folder.mkdir()
    (folder / "a.xz").write_bytes(lzma.compress(("\ufeff" + urls(upstream, 0, 1_000)).encode("utf-16-le")))
    (folder / "b.txt").write_bytes(urls(upstream, 1_000, 2_000).replace("\n", "\r").encode())
    (folder / "c.txt").write_text(urls(upstream, 2_000, KEYS))
    text = '[run]\nname = "folder"\nworkers = 1\nhigh_water = 1000\n[source]\npath = "keys"\n'
    command = ("run", shell.write("job.toml", text), "--rate", "2000", "--batch-rows", "100")
    for requests in (800, 1_700):
        running = await shell.start(*command)
        await eventually(lambda most=requests: upstream.requests >= most, f"{requests} requests", seconds=60)
        kill_tree(running.process.pid)
    await shell.run(*command)
    assert await shell.sql(COUNT_PAGES) == each_key_once(KEYS)
    assert upstream.requests < KEYS + 2 * 1_000
    (folder / "d.txt").write_text(urls(upstream, 0, 1))
    again = await shell.run(*command)
    assert "run folder is complete already" in again.out
    assert "source keys has changed since run folder began: bring the old one back, or give" in again.err


async def test_a_file_that_is_added_to_a_folder_between_two_commands_is_named(shell: Shell, upstream: Upstream) -> None:
    (shell.folder / "keys").mkdir()
    shell.write("keys/b.txt", urls(upstream, 0, 500))
    running = await shell.start("run", "keys", "--rate", "100")
    await eventually(lambda: upstream.requests >= 10, "10 requests", seconds=60)
    kill_tree(running.process.pid)
    shell.write("keys/a.txt", urls(upstream, 500, 510))
    ended = await shell.run("run", "keys", code=2)
    assert "has changed since run keys began: bring the old" in ended.err


@pytest.mark.parametrize(
    "way",
    [
        "/dev/stdin",
        pytest.param("process substitution", marks=pytest.mark.slow),
        pytest.param("named pipe", marks=pytest.mark.slow),
    ],
)
async def test_a_pipe_is_read_whatever_its_name(shell: Shell, upstream: Upstream, way: str) -> None:
    text = shell.write("urls.txt", urls(upstream, 0, 300))
    source = {"/dev/stdin": "/dev/stdin < urls.txt", "process substitution": "<(cat urls.txt)", "named pipe": "pipe"}[
        way
    ]
    command = f"{shlex.quote(sys.executable)} -m crawler run {source} --name piped"
    writing = None
    if way == "named pipe":
        os.mkfifo(shell.folder / "pipe")
        writing = asyncio.create_task(asyncio.to_thread((shell.folder / "pipe").write_bytes, text.read_bytes()))
    environ = {**os.environ, "SHARDCRAWL_DATA": str(shell.data), "SHARDCRAWL_RATE": "none"}
    environ["SHARDCRAWL_ALLOW_PRIVATE"] = "127.0.0.0/8"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command), cwd=shell.folder, env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    if writing is not None:
        await writing
    assert await shell.sql(COUNT_PAGES) == each_key_once(300)
    ended = await shell.run("retry", "piped", code=2 if way != "named pipe" else None)
    assert "cannot be read again" in ended.err


async def test_keys_of_a_generator_that_blocks_are_fetched_while_it_does(shell: Shell, upstream: Upstream) -> None:
    """The generator goes on only when the upstream was asked for what it has yielded."""
    shell.write(
        "corpus.py",
        "import os, time\ndef keys():\n    yield from ('a', 'b', 'c')\n"
        "    while not os.path.exists('go-on'):\n        time.sleep(0.05)\n    yield 'd'\n",
    )
    text = job(upstream).replace('path = "keys.txt"', 'python = "corpus:keys"')
    running = await shell.start("run", shell.write("job.toml", text))
    await eventually(lambda: upstream.requests == 3, "the keys that were yielded", seconds=60)
    shell.write("go-on", "")
    ended = await running.end()
    assert (ended.code, upstream.requests) == (0, 4), ended.err


async def test_what_is_odd_about_a_source_is_said_by_check_and_by_run(shell: Shell, upstream: Upstream) -> None:
    shell.write("empty.txt", "# nothing yet\n")
    shell.write("hosts.txt", ["127.0.0.1/a", "127.0.0.1/b"])
    shell.write("some.txt", f"{upstream.url}/item/1\nhttp:///\n")
    for source, says in (
        ("empty.txt", "empty.txt is empty: it has no keys"),
        ("hosts.txt", "hosts.txt: all of its keys are refused; line 1 (127.0.0.1/a) does not start with http"),
        ("some.txt", "1 of the first 2: line 2 (http:///) has no valid host"),
    ):
        rows = json.loads((await shell.run("check", shell.folder / source, "--json")).out)
        assert [row for row in rows if says in str(row["value"])], rows
        ran = await shell.run("run", source)
        assert ran.err.count(says) == (source != "some.txt"), ran.err


@pytest.mark.slow
async def test_no_host_is_called_unlimited_when_the_only_one_has_a_limit(shell: Shell, upstream: Upstream) -> None:
    host = upstream.url.removeprefix("http://")
    shell.write("urls.txt", urls(upstream, 0, 20))
    text = f'[run]\nname = "test"\n[source]\npath = "urls.txt"\n[limits."{host}"]\nrate = "none"\n'
    environ = {"SHARDCRAWL_RATE": ""}
    checked = await shell.run("check", shell.write("job.toml", text), "--json", environ=environ)
    assert [row["what"] for row in json.loads(checked.out) if "limit of" in row["what"]] == [f"limit of {host}"]
    assert "no limit is named" not in (await shell.run("run", "job.toml", environ=environ)).err
    shell.write("urls.txt", urls(upstream, 0, 20) + "http://127.0.0.1:9/\n")
    checked = await shell.run("check", "job.toml", "--json", environ=environ)
    assert "limit of 127.0.0.1:9" in [row["what"] for row in json.loads(checked.out)]


@pytest.mark.slow
async def test_rows_with_a_key_of_two_columns_go_on_after_a_kill_and_feed_a_query(
    shell: Shell, upstream: Upstream
) -> None:
    """A packed CSV whose cells have line breaks; the command is killed. Then a query over what was stored."""
    rows = [f'{number},de,"a\n""{number}"""' for number in range(1_000)]
    text = "\n".join(["sku,land,caption", *rows[:500], "short", rows[0], *rows[500:]])
    (shell.folder / "goods.csv.gz").write_bytes(gzip.compress(text.encode()))
    source = '[source]\npath = "goods.csv.gz"\nkey = ["sku", "land"]\ncarry = ["caption"]\n'
    request = f'[request]\nurl = "{upstream.url}/item/{{key}}"\n'
    shell.write("a.toml", f'[run]\nname = "a"\nhigh_water = 1000\n{source}{request}')
    checked = json.loads((await shell.run("check", "a.toml", "--json")).out)
    assert [row["value"] for row in checked if row["what"] == "key"][:1] == [
        '["0","de"]: sku = 0, land = de, caption = a\\x0a"0"'
    ]
    running = await shell.start("run", "a.toml", "--rate", "1000", "--batch-rows", "50")
    await eventually(lambda: upstream.requests >= 400, "400 requests", seconds=60)
    kill_tree(running.process.pid)
    await shell.run("run", "a.toml")
    assert await shell.sql("select count(*) as n, count(distinct key) as k from pages") == [{"n": 1_001, "k": 1_001}]
    assert await shell.sql("select key, reason from pages where outcome = 'refused'") == [
        {"key": "short (line 1002)", "reason": "line 1002: has 1 columns, and the header 3"}
    ]
    await shell.run("audit", "a")
    first = "(select min(run_id) from runs)"
    pages = f"(select key::jsonb from pages where run_id = {first} and outcome = 'stored')"
    query = f"select key->>0 as sku, key->>1 as land from {pages} as p order by 1"
    source = f'[source]\nquery = """{query}"""\nkey = "sku"\ncarry = "land"\n'
    shell.write("b.toml", f'[run]\nname = "b"\n{source}{request}')
    assert "land = de" in (await shell.run("check", "b.toml")).out
    await shell.run("run", "b.toml")
    stored = f"select count(*) as n from pages where run_id <> {first} and outcome = 'stored'"
    assert await shell.sql(stored) == [{"n": 1_000}]
    await shell.run("audit", "b")
