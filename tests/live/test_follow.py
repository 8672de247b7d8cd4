"""Keys that pages name: the same corpus six ways, a site by its links, lists without an end, and secrets in URLs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import pytest
from redis.asyncio import Redis

from tests.live.shell import Shell
from tests.servers.api import Sent, api, status

pytestmark = pytest.mark.anyio

WORKS, PER_PAGE = 47, 10
SECRET = "s3cr3t k+y/7"

JOB = """
[run]
name = "{name}"
[source]
path = "{name}.txt"
[request]
{request}
[parse]
{parse}
[paginate]
{paginate}
[[tables]]
name = "works"
columns = {{ id = {id}, title = {title} }}
"""
COLUMNS = {"id": '"bigint"', "title": '"text"'}
HTML_COLUMNS = {"id": '{ type = "bigint", from = "b" }', "title": '{ type = "text", from = "i" }'}
SECRET_JOB = """
[run]
name = "secret"
[source]
path = "secret.txt"
[request]
url = "URL/l?page={key}&api_key=${KEY}"
auth = "bearer:${KEY}"
[paginate]
next = "next"
[[follow]]
from = "links"
kind = "link"
hosts = "any"
[kinds.link.parse]
format = "json"
"""
WAYS: dict[str, tuple[str, str, str]] = {
    "offset": ('url = "{url}/offset?q={{key}}&offset=0"', 'rows = "items"', 'set = { offset = "+10" }'),
    "cursor": ('url = "{url}/cursor?q={{key}}"', 'rows = "items"', 'set = { cursor = "meta.next" }'),
    "posted": (
        'url = "{url}/posted"\njson = {{ q = "{{key}}", page = {{ size = 10 }} }}\nidempotent = true',
        'rows = "items"',
        'set = { "page.after" = "meta.next" }',
    ),
    "link": ('url = "{url}/link?q={{key}}"', 'rows = "items"', 'next = "$header.link"'),
    "html": ('url = "{url}/html?q={{key}}"', 'format = "html"\nrows = "li.work"', 'next = "a.next @href"'),
}


def work(number: int) -> dict[str, object]:
    return {"id": number, "title": f"Work {number}"}


def works_server(sent: Sent) -> bytes:
    """The works by id, and five kinds of lists of them."""
    path, query = (
        urlsplit(sent.path).path,
        {name: texts[0] for name, texts in parse_qs(urlsplit(sent.path).query).items()},
    )
    if path.startswith("/works/"):
        return status(200, json.dumps(work(int(path.rpartition("/")[2]))).encode())
    at = sent.json["page"].get("after", 0) if path == "/posted" else query.get("offset", query.get("cursor", 0))
    begin = int(at)
    items = [work(number) for number in range(begin, min(begin + PER_PAGE, WORKS))]
    end = begin + PER_PAGE if begin + PER_PAGE < WORKS else None
    if path == "/html":
        rows = "".join(f"<li class=work><b>{one['id']}</b><i>{one['title']}</i>" for one in items)
        return status(200, f"<ul>{rows}</ul>{'' if end is None else f'<a class=next href=?offset={end}>'}".encode())
    body = json.dumps({"items": items, "meta": {"next": end}} if path != "/link" else {"items": items}).encode()
    link = (
        [f'Link: </link?offset=0>; rel=first, </link?q=x&offset={end}>; rel="next"'] if path == "/link" and end else []
    )
    return status(200, body, *link)


async def rows_of(shell: Shell, run: str) -> list[tuple[int, str]]:
    found = await shell.sql(
        f"select w.id, title from works w join runs using (run_id) where runs.name = '{run}' order by 1, 2"
    )
    return [(row["id"], row["title"]) for row in found]


async def by_run(shell: Shell, query: str, environ: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a query, by the name of their run, which is in column `run`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in await shell.sql(query, environ):
        found.setdefault(row.pop("run"), []).append(row)
    return found


async def test_the_same_corpus_six_ways(shell: Shell, environ: dict[str, str]) -> None:
    """Equal rows, and each page is requested for once. Only the list by offsets needs an empty page to end."""
    expected = [{"id": number, "title": f"Work {number}"} for number in range(WORKS)]
    requests = {name: 6 if name == "offset" else 5 for name in WAYS}
    async with api(works_server) as server:
        shell.write("ids.txt", [str(number) for number in range(WORKS)])
        job = JOB.format(name="ids", request=f'url = "{server.url()}/works/{{key}}"', parse="", paginate="", **COLUMNS)
        await shell.run("run", shell.write("ids.toml", job.replace("[paginate]", "")), environ=environ)
        for name, (request, parse, paginate) in WAYS.items():
            server.sent.clear()
            shell.write(f"{name}.txt", ["all"])
            columns = COLUMNS if name != "html" else HTML_COLUMNS
            request = request.format(url=server.url())
            job = JOB.format(name=name, request=request, parse=parse, paginate=paginate, **columns)
            await shell.run("run", shell.write(f"{name}.toml", job), environ=environ)
            assert (len(server.lines), len(set(server.lines))) == (requests[name], requests[name]), server.lines
    rows = await by_run(
        shell, "select name as run, id, title from works join runs using (run_id) order by 1, 2, 3", environ
    )
    assert rows == dict.fromkeys(["ids", *WAYS], expected)
    pages = await by_run(
        shell,
        "select name as run, page_no, outcome, reason, depth, kind, origin, list, digest "
        "from pages join runs using (run_id) where name <> 'ids' order by 1, 2",
        environ,
    )
    assert pages.keys() == WAYS.keys()
    for name, found in pages.items():
        seen = [(page["page_no"], page["outcome"], page["reason"], page["depth"], page["kind"]) for page in found]
        assert seen == [(number, "stored", None, 0, None) for number in range(1, requests[name] + 1)], name
        assert [page["origin"] for page in found[1:]] == [page["digest"] for page in found[:-1]]
        assert {page["list"] for page in found[1:]} == {found[0]["digest"]}
    for name in ("cursor", "html"):
        await shell.run("audit", name, environ=environ)


SITE = """
[run]
name = "shop"
[source]
path = "shop.txt"
[parse]
format = "html"
[[follow]]
from = "nav a @href"
depth = 3
deny = ["*?sort=*"]
[[follow]]
from = "li a @href"
kind = "product"
allow = ["*/p/*"]
[kinds.product.parse]
format = "html"
[[tables]]
name = "categories"
[tables.columns]
title = { type = "text", from = "h1" }
[[tables]]
name = "products"
kind = "product"
[tables.columns]
sku = { type = "text", from = "$url" }
price = { type = "numeric", from = "b" }
"""
# Each page's <nav>: 3 is two links from the first page, and 5 is four.
NAVIGATION = {"0": "1 2 0 1", "1": "2 0", "2": "3", "3": "4", "4": "5"}


def shop_server(sent: Sent) -> bytes:
    _, kind, name = urlsplit(sent.path).path.split("/")
    if kind == "p":
        return status(200, f"<b>{name}.50</b><a href=/c/9>up</a>".encode())
    links = "".join(f"<a href='/c/{other}'>" for other in NAVIGATION.get(name, "").split())
    links += f"<a href='/c/{name}?sort=price'><a href='mailto:x@y'><a href='http://127.0.0.2/'><a href='#top'>"
    products = "".join(f"<li><a href='../p/{number}#{name}'></a>" for number in range(int(name), int(name) + 3))
    return status(200, f"<h1>{name}</h1><nav>{links}</nav>{products}<li><a href=/about>".encode())


async def test_a_site_is_crawled_by_its_links(shell: Shell) -> None:
    """Every page once, with the least number of links that lead to it; each kind fills its own table."""
    async with api(shop_server) as server:
        shell.write("shop.txt", [server.url("/c/0")])
        await shell.run("run", shell.write("shop.toml", SITE))
        await shell.run("audit", "shop")
        expected = [*(f"GET /c/{number}" for number in range(5)), *(f"GET /p/{number}" for number in range(7))]
        assert sorted(server.lines) == expected
    pages = await shell.sql("select key, kind, depth from pages_current")
    depths = {(page["kind"], page["key"].rpartition("/")[2]): page["depth"] for page in pages}
    assert [depths[None, str(number)] for number in range(5)] == [0, 1, 1, 2, 3]
    assert [depths["product", str(number)] for number in range(7)] == [1, 1, 1, 2, 2, 3, 4]
    rows = await shell.sql("select sku, price::text from products_current order by 1")
    assert [row["price"] for row in rows] == [f"{number}.50" for number in range(7)]
    assert [row["title"] for row in await shell.sql("select title from categories_current order by 1")] == [*"01234"]


def _page(sent: Sent) -> int:
    return int(parse_qs(urlsplit(sent.path).query).get("t", ["0"])[0])


def listed(number: int, following: object, more: bool = True) -> bytes:
    return json.dumps({"items": [work(number)], "next": following, "more": more}).encode()


# What the server gives for the list, what the job says, how many requests it costs, and the last page's reason.
ENDLESS: dict[str, tuple[Callable[[Sent], bytes], str, int, str | None]] = {
    "token": (
        lambda sent: status(200, listed(_page(sent), 1)),
        'set = { t = "next" }',
        2,
        "list incomplete: page 2 names itself, or the first page, as the next one",
    ),
    "body": (
        lambda sent: status(200, listed(0, 0), f"Link: <?t={_page(sent) + 1}>; rel=next"),
        'next = "$header.link"',
        2,
        "list incomplete: page 2 is the same as the one before",
    ),
    "more": (
        lambda sent: status(200, listed(min(_page(sent), 2), None)),
        'set = { t = "+1" }\nmore = "more = true"',
        4,
        "list incomplete: page 4 is the same as the one before",
    ),
    "cycle": (
        lambda sent: status(200, listed(_page(sent), (_page(sent) % 3) + 1)),
        'set = { t = "next" }',
        4,
        "list incomplete: the next page is one that the list had before",
    ),
    "first": (
        lambda sent: status(
            200, b'{"items": [{"id": %d, "title": ""}], "next": "?t=%d"}' % ((n := _page(sent)), (n + 1) % 3)
        ),
        'next = "next"',
        3,
        "list incomplete: page 3 names itself, or the first page, as the next one",
    ),
    "tokens": (
        lambda sent: status(200, listed(_page(sent), _page(sent) + 1)),
        'set = { t = "next" }\nmost = 7',
        7,
        "list incomplete: it has more than 7 pages ({} most)",
    ),
    "empty": (lambda sent: status(200, json.dumps({"items": [], "next": 9}).encode()), 'set = { t = "next" }', 1, None),
    "false": (
        lambda sent: status(200, listed(0, 9, more=False)),
        'set = { t = "next" }\nmore = "more = true"',
        1,
        None,
    ),
    "nourl": (
        lambda sent: status(200, listed(0, "http://me:pa55word@127.0.0.1/")),
        'next = "next"',
        1,
        "list incomplete: the URL of the next page contains user information before the host",
    ),
}


async def test_a_list_that_never_ends_costs_little_and_says_why_it_ended(shell: Shell) -> None:
    def respond(sent: Sent) -> bytes:
        name = urlsplit(sent.path).path.strip("/")
        if not name:
            return status(200, json.dumps({name: f"/{name}?t=0" for name in ENDLESS}).encode())
        return ENDLESS[name][0](sent)

    job = '[run]\nname = "endless"\n[source]\npath = "endless.txt"\n'
    for name, (_, paginate, _, _) in ENDLESS.items():
        job += f'[[follow]]\nfrom = "{name}"\nkind = "{name}"\n[kinds.{name}.parse]\nrows = "items"\n'
        job += f'[kinds.{name}.paginate]\n{paginate}\n[[tables]]\nname = "{name}_works"\nkind = "{name}"\n'
        job += 'columns = { id = "bigint" }\n'
    async with api(respond) as server:
        shell.write("endless.txt", [server.url("/")])
        await shell.run("run", shell.write("endless.toml", job))
        await shell.run("audit", "endless")
    pages = await shell.sql("select kind, reason, outcome from pages where kind is not null order by page_no")
    assert {page["outcome"] for page in pages} == {"stored"}
    for name, (_, _, requests, reason) in ENDLESS.items():
        requested = [one.path for one in server.sent if one.path.startswith(f"/{name}?")]
        assert len(requested) == len(set(requested)) == requests, (name, requested)
        expected = [None] * (requests - 1) + [reason and reason.format(f"[kinds.{name}.paginate]")]
        assert [page["reason"] for page in pages if page["kind"] == name] == expected, name
        (rows,) = await shell.sql(f"select count(*) = count(distinct id) as once from {name}_works")
        assert rows["once"], f"{name}: a page that came again has no rows"


async def test_keys_of_one_request_are_requested_alone_when_they_have_a_next_page(shell: Shell) -> None:
    def respond(sent: Sent) -> bytes:
        query = parse_qs(urlsplit(sent.path).query)
        ids, at = query["ids"][0].split("|"), query.get("at", ["0"])[0]
        found = [{"key": key, "id": int(key), "title": at} for key in ids]
        return status(200, json.dumps({"items": found, "next": "1" if "3" in ids and at == "0" else None}).encode())

    async with api(respond) as server:
        shell.write("keys.txt", ["1", "2", "3", "4"])
        request = f'url = "{server.url()}/?ids={{keys}}"\nkeys_per_request = 2'
        parse = 'rows = "items"\nkey = "key"'
        job = JOB.format(name="keys", request=request, parse=parse, paginate='set = { at = "next" }', **COLUMNS)
        await shell.run("run", shell.write("keys.toml", job))
    assert await rows_of(shell, "keys") == [(1, "0"), (2, "0"), (3, "0"), (3, "1"), (4, "0")]


async def test_a_secret_that_the_upstream_sends_back_is_not_written_down(
    shell: Shell, redis: Redis, environ: dict[str, str]
) -> None:
    """Spelled in any way, it is sent to the origin of its URL, and to no other one."""
    written: list[str] = []

    async def respond(sent: Sent) -> bytes:
        async for key in redis.scan_iter():
            kind = await redis.type(key)
            found = await redis.xrange(key) if kind in (b"stream", "stream") else await redis.dump(key)
            written.extend((str(key), str(found)))
        query = parse_qs(urlsplit(sent.path).query)
        following = {"1": f"/l?api_key={quote_plus(SECRET)}&page=2", "2": f"/l?page=3&api_key={quote(SECRET).lower()}"}
        elsewhere = server.url("/l?page=4&api_key=${KEY}", host="127.0.0.2")
        page = query["page"][0]
        links = [f"/l?page=linked&api_key={SECRET}", server.url("/l?page=evil&api_key=${KEY}", host="127.0.0.3")]
        return status(
            200, json.dumps({"next": following.get(page, elsewhere if page == "3" else None), "links": links}).encode()
        )

    async with api(respond) as server:
        shell.write("secret.txt", ["1"])
        job = SECRET_JOB.replace("URL", server.url())
        environ = {**environ, "KEY": SECRET}
        ended = await shell.run("run", shell.write("job.toml", job), "--log-level", "debug", environ=environ)
        at_home = [one for one in server.sent if one.address == "127.0.0.1"]
        elsewhere = [one for one in server.sent if one.address != "127.0.0.1"]
    for one in at_home:
        assert parse_qs(urlsplit(one.path).query)["api_key"] == [SECRET], one.path
    assert sorted(parse_qs(urlsplit(one.path).query)["page"][0] for one in at_home) == ["1", "2", "3", "linked"]
    assert {one.headers.get("authorization") for one in at_home} == {f"Bearer {SECRET}"}
    for one in elsewhere:
        assert not re.search("s3cr3t", str(one), re.IGNORECASE), one
    assert len(elsewhere) == 3
    pages = await shell.sql("select key, url, reason from pages", environ=environ)
    found = await shell.sql("select key, encode(context, 'escape') as context from pages_found_r1", environ=environ)
    assert (len(pages), len(found)) == (7, 6)
    assert written
    for text in (str(pages), str(found), ended.out, ended.err, *written):
        assert not re.search("s3cr3t", text, re.IGNORECASE), text


async def test_a_wrong_selector_of_a_kind_is_one_line_before_anything_is_sent(shell: Shell) -> None:
    async with api(lambda _: status(500)) as server:
        shell.write("shop.txt", [server.url("/c/0")])
        for right, wrong, words in (
            ('"b"', '"b[["', "job: table products: column price: "),
            ('"li a @href"', '"li[[ a @href"', "job: [[follow]] 2: from: "),
        ):
            path = shell.write("shop.toml", SITE.replace(right, wrong))
            ended = await shell.run("check", path, code=2)
            assert [line for line in ended.err.splitlines() if words in line], ended.err
            assert "Traceback" not in ended.err
        ended = await shell.run("run", path, code=2)
        assert words in ended.err
        assert server.sent == []
