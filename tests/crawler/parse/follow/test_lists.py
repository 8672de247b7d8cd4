"""The next page of a list, and each way in which a list ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import KeyContext, Outcome
from coordinator.queue.sharding import digest
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.request.settings import RequestSettings
from crawler.parse import hook
from crawler.parse.follow.hiding import without_secrets
from crawler.parse.follow.lists import next_link
from tests.crawler.examples import a_job
from tests.crawler.parse.follow.examples import URL, a_list_page, next_of, parsed

API = "https://api.example/list?q={key}&offset=0"
REST: dict[str, Any] = {
    "parse": {"rows": "items"},
    "tables": [{"name": "works", "columns": {"id": {"type": "bigint", "from": "."}}}],
}


def listing(paginate: dict[str, Any], url: str | None = API, **more: Any) -> Job:
    request = more.pop("request", {} if url is None else {"url": url})
    return a_job(**{**REST, "request": request, "paginate": paginate, **more})


def sent(job: Job, key: str, context: KeyContext) -> str:
    """The method, URL and body of the request for a key."""
    target, payload = Template(job.request).build([key], context)
    return " ".join(filter(None, (payload.method, target.href, (payload.body or b"").decode())))


def walk(
    job: Job, *bodies: Any, key: str = "all", headers: dict[str, str] | None = None
) -> tuple[list[str], str | None]:
    """The requests of the list's pages, one body each and the last one for ever, and the reason on the last page."""
    page, requests = a_list_page(key), list[str]()
    while True:
        target, _ = Template(job.request).build([page.item.key], page.item.context)
        requests.append(sent(job, page.item.key, page.item.context))
        assert len(requests) <= 20, "the list does not end"
        parsed(job, bodies[min(len(requests), len(bodies)) - 1], page, url=target.href, headers=headers)
        assert page.outcome is Outcome.STORED, page.reason
        if not page.found:
            return requests, page.reason
        page = next_of(page)


def page_of(*items: int, **more: Any) -> dict[str, Any]:
    return {"items": list(items), **more}


@pytest.mark.parametrize(
    ("paginate", "bodies", "requests", "reason"),
    [
        # The end of a list that is whole:
        ({"set": {"offset": "+2"}}, [page_of(1, 2), page_of(3), page_of()], 3, None),
        ({"set": {"cursor": "next"}}, [page_of(1, next="a"), page_of(2)], 2, None),
        ({"set": {"cursor": "next"}}, [page_of(1, next="a"), page_of(2, next=None)], 2, None),
        ({"set": {"cursor": "next"}}, [page_of(1, next="a"), page_of(2, next="")], 2, None),
        ({"set": {"cursor": "next"}}, [page_of(1, next=0), page_of(2, next=False)], 2, None),
        ({"set": {"cursor": "next"}}, [page_of(1, next="a"), page_of(next="b")], 2, None),
        ({"set": "continue"}, [page_of(1, **{"continue": {"a": "x", "b": 2}}), page_of(2)], 2, None),
        ({"set": "continue"}, [page_of(1, **{"continue": {}})], 1, None),
        ({"set": {"offset": "+1"}, "more": "more"}, [page_of(1, more=True), page_of(2, more=False)], 2, None),
        ({"set": {"offset": "+1"}, "more": "left != 0"}, [page_of(1, left=1), page_of(2, left=0)], 2, None),
        ({"next": "next"}, [page_of(1, next="?b"), page_of(2)], 2, None),
        ({"next": "next", "most": 2}, [page_of(1, next="?b"), page_of(2)], 2, None),
        # A button that leads to no page:
        ({"next": "next"}, [page_of(1, next="?b"), page_of(2, next="#")], 2, None),
        ({"next": "next"}, [page_of(1, next="?b"), page_of(2, next="?b#top")], 2, None),
        ({"next": "next"}, [page_of(1, next="?b"), page_of(2, next=" JavaScript:void(0)")], 2, None),
        ({"next": "next"}, [page_of(1, next="?b"), page_of(2, next=" ")], 2, None),
        # A list that broke off:
        (
            {"set": {"cursor": "next"}},
            [page_of(1, next="a"), page_of(2, next="a")],
            2,
            "page 2 names itself, or the first page, as the next one",
        ),
        (
            {"next": "next"},
            [page_of(1, next="?q=all&offset=0")],
            1,
            "page 1 names itself, or the first page, as the next one",
        ),
        (
            {"next": "next"},
            [page_of(1, next="?b"), page_of(2, next="?b")],
            2,
            "page 2 names itself, or the first page, as the next one",
        ),
        # The first page again, by its URL or by the parameters that it has:
        (
            {"next": "next"},
            [page_of(1, next="?b"), page_of(2, next="?q=all&offset=0"), page_of(1, next="?b")],
            2,
            "page 2 names itself, or the first page, as the next one",
        ),
        *(
            (
                {"set": {"offset": "next"}},
                [page_of(1, next=1), page_of(2, next=first), page_of(1, next=1)],
                2,
                "page 2 names itself, or the first page, as the next one",
            )
            for first in (0, "0")
        ),
        ({"set": {"offset": "+1"}}, [page_of(1), page_of(2), page_of(2)], 3, "page 3 is the same as the one before"),
        (
            {"set": {"offset": "+1"}, "most": 3},
            [page_of(1), page_of(2), page_of(3)],
            3,
            "it has more than 3 pages ([paginate] most)",
        ),
        ({"next": "next"}, [page_of(1, next="/" + "x" * 9000)], 1, "the next page's address is longer than 8192 bytes"),
        (
            {"set": {"cursor": "next"}},
            [page_of(1, next="x" * 9000)],
            1,
            "the next page's address is longer than 8192 bytes",
        ),
        (
            {"next": "next"},
            [page_of(1, next="ftp://a.example/")],
            1,
            "the URL of the next page does not start with http:// or https://",
        ),
        (
            {"next": "next"},
            [page_of(1, next="https://me:pw@a.example/")],
            1,
            "the URL of the next page contains user information before the host",
        ),
        ({"next": "next"}, [page_of(1, next="https://a b/")], 1, "the URL of the next page has no valid host"),
    ],
)
def test_a_list_ends(paginate: dict[str, Any], bodies: list[Any], requests: int, reason: str | None) -> None:
    made, found = walk(listing(paginate), *bodies)
    assert (len(made), found) == (requests, reason and f"list incomplete: {reason}")


ROWS = {
    "json": ["items", '{"at": %d, "items": [{"id": "a"}, {"id": "b"}]}'],
    "html": ["li.work", "<input name=token value=%d><li class=work><a href=/1>1</a>"],
    "xml": ["work", "<list at='%d'><work id='1'/></list>"],
}


@pytest.mark.parametrize(("kind", "rows"), ROWS.items(), ids=ROWS)
def test_the_last_page_for_ever_ends_a_list_whatever_stands_around_its_rows(kind: str, rows: list[str]) -> None:
    """As servers do that count pages down to their last one, and write the number, a time or a token into it."""
    path, body = rows
    tables = [{"name": "works", "columns": {"id": {"type": "text", "from": "id?"}}}]
    job = listing({"set": {"page": "+1"}}, parse={"format": kind, "rows": path}, tables=tables)
    requests, reason = walk(job, *(body % number for number in range(20)))
    assert (len(requests), reason) == (2, "list incomplete: page 2 is the same as the one before")


def test_plain_values_and_pages_without_rows_are_the_same_only_with_the_same_body() -> None:
    job, plain = listing({"set": {"page": "+1"}}), {"items": [0, 0]}
    assert len(walk(job, {**plain, "at": 1}, {**plain, "at": 2}, {"items": []})[0]) == 3
    job = a_job(request={"url": API}, paginate={"set": {"page": "+1"}, "more": "more"})
    assert len(walk(job, {"more": 1}, {"more": 2}, {"more": False})[0]) == 3


@pytest.mark.parametrize(("said", "requests"), [("true", 3), ("false", 1), ("", 3)])
def test_a_header_says_whether_the_list_goes_on(said: str, requests: int) -> None:
    job = listing({"set": {"page": "+1"}, "more": "$header.x-more"})
    made, reason = walk(job, page_of(1), page_of(2), page_of(), headers={"x-more": said})
    assert (len(made), reason) == (requests, None)


def test_a_page_that_comes_again_has_no_records() -> None:
    job, again = listing({"set": {"offset": "+1"}}), page_of(7)
    (first,) = parsed(job, again, a_list_page("all"), url=API)
    (second,) = parsed(job, again, next_of(first), url=API)
    assert (len(first.records), second.records, second.found) == (1, [], [])


@pytest.mark.parametrize("kind", ["get", "post"])
def test_a_page_that_is_redirected_to_the_first_one_has_no_records(kind: str) -> None:
    """But the pages of a list by POST have the URL of the first one."""
    url, more = ("https://api.example/", {"json": {"q": "{key}"}}) if kind == "post" else (API, {})
    job = listing({"set": {"offset": "+1"}}, request={"url": url, **more})
    url = Template(job.request).target(["all"]).href
    (first,) = parsed(job, page_of(1), a_list_page("all"), url=url)
    (second,) = parsed(job, page_of(2), next_of(first), url=url)
    reason = "list incomplete: page 2 was redirected to the first page"
    assert (len(second.records), second.reason) == ((0, reason) if kind == "get" else (1, None))


def test_rows_that_the_job_leaves_out_do_not_end_a_list() -> None:
    """A page with nothing but rows that are skipped is no empty page."""
    tables = [{"name": "works", "skip": "draft", "columns": {"id": "bigint"}}]
    rows = [{"items": [{"id": 1}], "next": 1}, {"items": [{"id": 2, "draft": True}], "next": 2}, {"items": []}]
    requests, reason = walk(listing({"set": {"cursor": "next"}}, tables=tables), *rows)
    assert (len(requests), reason) == (3, None)


@pytest.mark.parametrize(
    ("kind", "pages"), [("csv", ["id\n1\n", "id\n2\n", "id\n"]), ("ndjson", ['{"id": 1}\n', "{}\n", ""])]
)
def test_lines_are_rows_and_a_page_without_any_ends_a_list(kind: str, pages: list[str]) -> None:
    tables = [{"name": "works", "columns": {"id": {"type": "bigint", "from": "id?"}}}]
    requests, reason = walk(listing({"set": {"offset": "+1"}}, parse={"format": kind}, tables=tables), *pages)
    assert (len(requests), reason) == (3, None)


def test_rows_end_a_list_without_tables_too() -> None:
    job = a_job(request={"url": API}, parse={"rows": "items"}, paginate={"set": {"offset": "+1"}})
    assert len(walk(job, page_of(1), page_of(2), page_of())[0]) == 3


@pytest.mark.parametrize(
    ("paginate", "bodies", "second"),
    [
        ({"set": {"offset": "+100"}}, [page_of(1), page_of()], "offset=100"),
        ({"set": {"page": "+1"}}, [page_of(1), page_of()], "offset=0&page=1"),
        (
            {"set": {"cursor": "meta.next"}},
            [page_of(1, meta={"next": "a b&c=/é"}), page_of()],
            "offset=0&cursor=a%20b%26c%3D%2F%C3%A9",
        ),
        ({"set": {"cursor": "next", "offset": "+5"}}, [page_of(1, next=True), page_of()], "offset=5&cursor=true"),
        ({"set": "continue"}, [page_of(1, **{"continue": {"offset": 7, "x": 1.5}}), page_of()], "offset=7&x=1.5"),
    ],
)
def test_what_is_set_stands_in_the_query(paginate: dict[str, Any], bodies: list[Any], second: str) -> None:
    requests, _ = walk(listing(paginate), *bodies)
    assert requests == ["GET https://api.example/list?q=all&offset=0", f"GET https://api.example/list?q=all&{second}"]


def test_a_number_counts_on_over_all_pages() -> None:
    requests, _ = walk(listing({"set": {"offset": "+10"}}), page_of(1), page_of(2), page_of(3), page_of())
    assert [request.rpartition("=")[2] for request in requests] == ["0", "10", "20", "30"]


def test_a_number_counts_on_from_the_request_and_not_from_where_it_was_redirected() -> None:
    """Sites lead ?page=1 to the URL without it: counted from there, the second page would be the first one again."""
    job = listing({"set": {"page": "+1"}}, "https://api.example/list?q={key}&page=1")
    page = a_list_page("all")
    parsed(job, page_of(1), page, url="https://api.example/all/")
    assert sent(job, page.found[0].key, page.found[0].context).endswith("&page=2")


def test_what_cannot_stand_in_the_request_is_said_of_the_next_page() -> None:
    request = {"url": "https://api.example/", "json": [{"q": "{key}"}]}
    page = a_list_page("all")
    parsed(listing({"set": {"page": "+1"}}, request=request), page_of(1), page, url="https://api.example/")
    assert (page.outcome, len(page.records), len(page.found)) == (Outcome.STORED, 1, 1)


def test_the_key_of_a_list_stands_in_the_headers_of_all_of_its_pages() -> None:
    request = {"url": API, "headers": {"X-Topic": "{key}"}}
    job, page = listing({"next": "next"}, request=request), a_list_page("all")
    parsed(job, page_of(1, next="https://api.example/list?at=2"), page, url="https://api.example/list?q=all")
    second = next_of(page).item
    assert Template(job.request).build([second.key], second.context)[1].headers == (("X-Topic", "all"),)


@pytest.mark.parametrize(
    ("body", "name", "second"),
    [
        ({"json": {"q": "{key}", "page": {"n": 5}}}, "page.n", '{"q":"all","page":{"n":6}}'),
        ({"json": {"q": "{key}"}}, "page.n", '{"q":"all","page":{"n":1}}'),
        ({"json": {"q": "{key}", "page.n": 3}}, "page.n", '{"q":"all","page.n":4}'),
        ({"form": {"q": "{key}", "n": 8}}, "n", "q=all&n=9"),
    ],
)
@pytest.mark.parametrize("kind", ["", "work"])
def test_what_is_set_stands_in_the_body(kind: str, body: dict[str, Any], name: str, second: str) -> None:
    own = {"request": {"url": "https://api.example/", "idempotent": True, **body}, "paginate": {"set": {name: "+1"}}}
    if kind:
        job = a_job(kinds={kind: own}, follow=[{"from": "x", "kind": kind}], parse={"rows": "items"})
    else:
        job = a_job(**own, parse={"rows": "items"})
    page = a_list_page("all", KeyContext(kind))
    parsed(job, page_of(1), page, url="https://api.example/")
    (found,) = page.found
    assert sent(job.kinds[kind] if kind else job, found.key, found.context) == f"POST https://api.example/ {second}"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("/list?page=2", "https://shop.example/list?page=2"),
        ("?page=2#rows", "https://shop.example/a/list?page=2"),
        ("more", "https://shop.example/a/more"),
        ("http://other.example/2", "http://other.example/2"),
    ],
)
@pytest.mark.parametrize("where", ["json", "header", "html"])
def test_the_url_of_the_next_page_is_relative_to_the_response(given: str, url: str, where: str) -> None:
    """Wherever it stands, and to any host: the upstream says where its list goes on."""
    headers = {"link": f"<{given}>; rel=next"} if where == "header" else {}
    if where == "html":
        job, body = a_job(parse={"format": "html"}, paginate={"next": "a.next @href"}), f"<a class=next href='{given}'>"
    else:
        job = listing({"next": "$header.link" if where == "header" else "links.next"}, None)
        body = json.dumps(page_of(1, links={"next": given}))
    (page,) = parsed(job, body, headers=headers)
    (found,) = page.found
    assert found.key == url
    assert sent(job, found.key, found.context) == f"GET {url}"


def test_a_next_page_has_the_place_of_its_list() -> None:
    job = listing({"next": "next"})
    first = a_list_page("all", KeyContext(depth=3, origin=b"o" * 16, fields={"sku": "7"}))
    parsed(job, page_of(1, next="?b"), first, url=URL)
    second = next_of(first)
    context = second.item.context
    assert (context.depth, context.page_no, context.origin, context.list_key) == (3, 2, first.item.digest, "all")
    assert context.fields == {"sku": "7"}
    assert second.item.digest == digest(second.item.key, context) != digest(second.item.key)
    assert second.item.user_key == "all"
    parsed(job, page_of(2, next="?c"), second, url=URL)
    third = next_of(second).item.context
    assert (third.depth, third.page_no, third.origin, third.list_key) == (3, 3, second.item.digest, "all")


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('<https://a.example/?page=2>; rel="next"', "https://a.example/?page=2"),
        ("<?2>;rel=next", "?2"),
        ('<?1>; rel="prev", <?2>; rel="next"', "?2"),
        ('<?1>; rel=first,<?2>; title="a, b"; REL="last NEXT"', "?2"),
        ('<?1>; title="x; rel=next"; rel=prev, <?2>; rel=next', "?2"),
        ('<?1>; title="a \\" <b>; rel=next"; rel=prev, <?2>; rel=next', "?2"),
        ("<?1>; rel=prev; rel=next, <?2>; rel=next", "?2"),  # the first rel counts
        ("<?a,b;c>; rel=next", "?a,b;c"),
        ("<?2> ; rel = next", "?2"),
        ("<?2>; title=two words; rel=next", "?2"),
        ('<?2>; rel="ne\\xt"', "?2"),
        ('<?1>; rel=next; anchor="#part", <?2>; rel=next', "?2"),  # the next one of another resource
        ("<?2>; rel=nextpage", None),
        ('<?2>; rel="prev"', None),
        ("<?2>", None),
        ("?2; rel=next", None),
        ("<?2; rel=next", None),
        ('<?2>; rel="next', None),
        ("", None),
        ("<" * 100_000, None),
        ("<a>" + ";" * 100_000, None),
        ("<a>; x=" + " " * 100_000, None),
    ],
)
def test_a_link_header_is_read_by_rfc_8288(header: str, target: str | None) -> None:
    assert next_link(header) == target


@pytest.mark.parametrize(
    ("paginate", "more", "reason"),
    [
        ({"next": "next"}, {"next": ["a"]}, "[paginate] next: ['a'] is no URL; select one text"),
        ({"next": "next"}, {"next": 7}, "[paginate] next: 7 is no URL; select one text"),
        ({"set": {"c": "next"}}, {"next": {"a": 1}}, "[paginate] set.c: {'a': 1} is no text, and no number of 64 bits"),
        ({"set": {"c": "next"}}, {"next": 2**64}, f"[paginate] set.c: {2**64} is no text, and no number of 64 bits"),
        (
            {"set": {"c": "next"}},
            {"next": "\ud800"},
            "[paginate] set.c: '\\ud800' is no text, and no number of 64 bits",
        ),
        ({"set": "next"}, {"next": "a"}, "[paginate] set: 'a' is no object"),
        ({"set": "next"}, {"next": {"a": None}}, "[paginate] set.a: None is no text, and no number of 64 bits"),
        ({"set": {"q": "+1"}}, {}, "[paginate] set.q: 'all' is no number to add to"),
    ],
)
def test_what_is_no_next_page_is_one_line(paginate: dict[str, Any], more: dict[str, Any], reason: str) -> None:
    page = a_list_page("all")
    parsed(listing(paginate), page_of(1, **more), page, url="https://api.example/list?q=all")
    assert (page.outcome, page.reason, page.found) == (Outcome.FAILED, f"parse: {reason}", [])


@pytest.mark.parametrize(
    ("paginate", "words"),
    [
        ({"next": "items["}, "[paginate] next: 'items[' is wrong at character 6"),
        ({"set": {"a": "items["}}, "[paginate] set.a: 'items[' is wrong at character 6"),
        ({"set": "items["}, "[paginate] set: 'items[' is wrong at character 6"),
        ({"next": "a", "more": "items["}, "[paginate] more: 'items[' is wrong at character 6"),
    ],
)
@pytest.mark.parametrize("kind", ["", "work"])
def test_a_wrong_selector_is_one_line_before_anything_is_sent(kind: str, paginate: dict[str, Any], words: str) -> None:
    kinds = {"kinds": {kind: {"paginate": paginate}}, "follow": [{"from": "a", "kind": kind}]}
    job = a_job(**kinds) if kind else a_job(paginate=paginate)
    with pytest.raises(UsageError) as caught:
        hook.load(job, kind=kind)
    assert str(caught.value).startswith(
        f"job: {words.replace('[paginate]', '[kinds.work.paginate]') if kind else words}"
    )


def test_several_keys_have_no_common_next_page() -> None:
    request = {"url": "https://api.example/?ids={keys}", "keys_per_request": 5}
    tables = [{"name": "t", "columns": {"id": "text"}}]
    job = a_job(request=request, parse={"rows": "items", "key": "id"}, tables=tables, paginate={"set": {"at": "next"}})
    body = {"items": [{"id": "a"}, {"id": "b"}], "next": "x"}
    pages = parsed(job, body, a_list_page("a"), a_list_page("b"))
    assert {page.reason for page in pages} == {"parse: the response has a next page, and it is not known of which key"}
    assert not any(page.found for page in parsed(job, {**body, "next": None}, a_list_page("a"), a_list_page("b")))
    # The first key has no row, and the second one has: the response is no empty page.
    pages = parsed(job, {**body, "items": [{"id": "b"}]}, a_list_page("a"), a_list_page("b"))
    assert {page.outcome for page in pages} == {Outcome.FAILED}


SECRET = "s3cr3t k+y/7é"


@pytest.mark.parametrize(
    "spelled", [SECRET, "s3cr3t%20k%2By%2F7%C3%A9", "s3cr3t+k%2by%2f7%c3%a9", "s3cr3t%20k+y/7%C3%A9", "%733cr3t k+y/7é"]
)
def test_a_secret_in_a_next_url_is_not_in_its_key(spelled: str) -> None:

    request = {"url": "https://api.example/?q={key}&api_key=${KEY}"}
    hidden = resolve_credentials(RequestSettings(**request), {"KEY": SECRET}).hidden
    page = a_list_page("all")
    parsed(a_job(request=request, paginate={"next": "next"}), {"next": f"?api_key={spelled}&page=2"}, page)
    found = without_secrets(page.found[0], hidden)
    assert found.key == "https://shop.example/a/list?api_key=${KEY}&page=2"
    assert found.digest == digest(found.key, found.context)
    page = a_list_page("all")
    parsed(a_job(request=request, paginate={"set": "next"}), {"next": {"api_key": SECRET, "page": 2}}, page)
    found = without_secrets(page.found[0], hidden)
    assert found.key == 'all {"page":2}'
    assert (found.context.params, found.digest) == ({"page": 2}, digest(found.key, found.context))
