"""`retry --lists`: the pages of lists that broke off are requested again, from the first one on."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.live.shell import Shell
from tests.servers.api import Sent, api, status

pytestmark = pytest.mark.anyio

JOB = """
[run]
name = "lists"
[source]
path = "lists.txt"
[request]
url = "URL/list?q={key}"
[parse]
rows = "items"
[paginate]
set = { at = "next" }
[[follow]]
from = "links[]"
kind = "link"
[kinds.link.request]
url = "URL/link?q={key}"
[kinds.link.parse]
format = "json"
[[tables]]
name = "works"
columns = { id = "bigint" }
"""


@pytest.mark.slow
async def test_a_list_that_is_shorter_now_is_whole_again(shell: Shell, environ: dict[str, str]) -> None:
    """What its pages of before have named is kept, and the audit finds who named it."""
    ends = {"longer": 3, "shorter": 3, "whole": 2}
    broken = True

    def respond(sent: Sent) -> bytes:
        url = urlsplit(sent.path)
        query = {name: texts[0] for name, texts in parse_qs(url.query).items()}
        name, at = query["q"], int(query.get("at", "1"))
        if url.path == "/link":
            return status(200, b"{}")
        if broken and at == 3:
            return status(404)
        following = at + 1 if at < ends[name] else None
        return status(200, json.dumps({"items": [{"id": at}], "next": following, "links": [f"{name}{at}"]}).encode())

    async with api(respond) as server:
        shell.write("lists.txt", list(ends))
        job = shell.write("lists.toml", JOB.replace("URL", server.url()))
        await shell.run("run", job, environ=environ)
        broken, ends["longer"], ends["shorter"] = False, 4, 1
        ended = await shell.run("retry", "lists", "--lists", environ=environ)
        assert "4 stored, 2 gone keys go back" in ended.out
        server.sent.clear()
        await shell.run("run", job, environ=environ)
    await shell.run("audit", "lists", environ=environ)
    assert sorted(one.path for one in server.sent) == [
        *("/link?q=longer3", "/link?q=longer4", "/list?q=longer", *(f"/list?q=longer&at={at}" for at in (2, 3, 4))),
        "/list?q=shorter",
    ]
    pages = await shell.sql(
        "select page.key, origin.key as origin, page.page_no from pages page left join pages origin "
        "on origin.digest = page.origin where page.kind = 'link' or page.page_no > 1 order by 1",
        environ=environ,
    )
    assert {page["key"]: page["origin"] for page in pages if page["key"].startswith("shorter")} == {
        "shorter1": "shorter",
        "shorter2": "shorter",
    }
    assert all(page["origin"] for page in pages)
    (works,) = await shell.sql("select count(*) from works", environ=environ)
    assert works["count"] == 4 + 1 + 2
