"""Addresses that are not public are refused unless the user allows them."""

from __future__ import annotations

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio


async def test_a_loopback_upstream_is_refused_with_the_way_to_allow_it(shell: Shell, upstream: Upstream) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(20)])
    default = {"SHARDCRAWL_ALLOW_PRIVATE": ""}
    await shell.run("run", urls, "--workers", "1", environ=default)
    rows = await shell.sql("select distinct outcome, reason from pages")
    assert [row["outcome"] for row in rows] == ["refused"]
    assert "address: 127.0.0.1 is not public; --allow-private 127.0.0.1 " in rows[0]["reason"]
    assert upstream.requests == 0
    await shell.run("run", urls, "--workers", "1", "--name", "again", "--allow-private", "127.0.0.1", environ=default)
    assert upstream.requests == 20
