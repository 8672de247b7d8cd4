"""A refresh as a schedule starts it: the same command, again and again."""

from __future__ import annotations

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

RUNS = "select name, corpus, state from runs order by run_id"


def a_job(upstream: Upstream, path: str = "item") -> str:
    return f"""
        [run]
        refresh = true
        [source]
        path = "keys.txt"
        [request]
        url = "{upstream.url}/{path}/{{key}}"
    """


@pytest.mark.parametrize("embedded", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_refresh_that_still_runs_is_not_started_twice_and_goes_on_after_an_interruption(
    shell: Shell, upstream: Upstream, environ: dict[str, str], *, embedded: bool
) -> None:
    places = {} if embedded else environ
    shell.write("keys.txt", [str(number) for number in range(60)])
    path = shell.write("items.toml", a_job(upstream, "slow/1500"))
    first = await shell.start("run", path, "--concurrency", "4", environ=places)
    await eventually(lambda: upstream.requests >= 5, "5 requests", seconds=60)
    second = await shell.run("run", path, environ=places, code=5)
    assert second.err.startswith("error: items: ")
    assert len(second.err.splitlines()) == 1
    if embedded:
        other = shell.write("others.toml", a_job(upstream))
        assert "another command (pid" in (await shell.run("run", other, environ=places, code=1)).err
    first.interrupt()
    assert (await first.end()).code == 130
    await shell.run("run", path, environ=places)
    assert upstream.requests == 60
    (run,) = await shell.sql(RUNS, environ=places)
    assert run["corpus"] == "items"
    assert run["name"].startswith("items-20")
    assert run["state"] == "complete"


@pytest.mark.slow
async def test_each_run_of_a_day_has_a_name_of_its_own(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", ["a", "b"])
    path = shell.write("items.toml", a_job(upstream))
    assert "none: the first run" in (await shell.run("check", path, environ=environ)).out
    begins = [(await shell.run("run", path, environ=environ)).err for _ in range(3)]
    names = [run["name"] for run in await shell.sql(RUNS, environ=environ)]
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert "a refresh of" not in begins[0]
    assert f"run {names[1]} begins, a refresh of {names[0]}, about 2 keys" in begins[1]
    assert names[2] in (await shell.run("check", path, environ=environ)).out
    shown = await shell.sql("select count(*) as keys, min(run_id) as run from pages_current", environ=environ)
    assert shown == [{"keys": 2, "run": 3}]


async def test_a_list_of_urls_is_a_corpus_too(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(3)])
    await shell.run("run", urls, environ=environ)
    await shell.run("run", urls, "--refresh", environ=environ)
    runs = await shell.sql(RUNS, environ=environ)
    assert [run["corpus"] for run in runs] == ["urls", "urls"]
    assert runs[0]["name"] == "urls"
