"""`shardcrawl serve` on the data folder of a run: it starts servers of its own, makes way for the run, and looks on."""

from __future__ import annotations

import re

import httpx
import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Running, Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TOKEN = {"SHARDCRAWL_TOKEN": "a token of this test"}


async def address_of(serving: Running) -> str:
    assert serving.process.stderr is not None
    while line := (await serving.process.stderr.readline()).decode():
        if found := re.search(r"the page is at (http://\S+/)", line):
            return found[1]
    pytest.fail("serve has ended")


@pytest.mark.slow
async def test_a_run_takes_the_folder_over_and_its_keys_go_back_by_the_page(shell: Shell, upstream: Upstream) -> None:
    serving = await shell.start("serve", "--listen", "127.0.0.1:0", environ=TOKEN)
    async with httpx.AsyncClient(base_url=await address_of(serving)) as page:

        async def has_no_run() -> bool:
            async with page.stream("GET", "/api/news") as news:
                async for line in news.aiter_lines():
                    if line.startswith("data:"):
                        return '"runs":[]' in line
            return False

        await eventually(has_no_run, "servers of its own")
        shell.write("keys.txt", [f"{upstream.url}/item/1", "http://10.0.0.1/not-public"])
        ended = await shell.run("run", "keys.txt", "--name", "urls", "--workers", "1")
        assert "run urls is complete" in ended.out
        assert upstream.requests > 0

        async def shows_the_refused_key() -> bool:
            found = await page.get("/api/runs/urls/keys", params={"outcome": "refused"})
            return found.status_code == 200 and len(found.json()["keys"]) == 1

        await eventually(shows_the_refused_key, "the refused key, after the run has ended")
        headers = {"Authorization": f"Bearer {TOKEN['SHARDCRAWL_TOKEN']}"}
        retried = await page.post("/api/actions/retry", json={"run": "urls", "outcome": "refused"}, headers=headers)
        assert "1 key goes back into run urls" in retried.json()["done"]
        # The servers that a run has started end with it while it is cancelled.
        shell.write("more.txt", [f"{upstream.url}/item/{number}" for number in range(100)])
        slow = await shell.start("run", "more.txt", "--name", "slow", "--workers", "1", "--rate", "1/s")
        before = upstream.requests
        await eventually(lambda: upstream.requests > before, "the run to begin")

        async def is_cancelled() -> bool:
            done = await page.post("/api/actions/cancel", json={"run": "slow"}, headers=headers, timeout=60)
            return done.status_code == 200

        await eventually(is_cancelled, "the run to be cancelled")
        assert (await slow.end()).code == 6
        # A page that is open must not keep the command from ending.
        async with page.stream("GET", "/api/news?run=urls") as news:
            await anext(news.aiter_lines())
            serving.interrupt()
            assert (await serving.end()).code == 0
