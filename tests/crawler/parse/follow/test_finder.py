"""What a page names: links and keys by `[[follow]]`, and by `response.follow` of a parser."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import KeyContext, Outcome
from coordinator.queue.recent import RecentKeys
from coordinator.queue.sharding import digest
from crawler.job.job import Job, read_job
from crawler.model import HttpResponse
from crawler.parse import hook
from crawler.parse.follow import finder
from crawler.parse.follow.finder import MOST_FOUND
from crawler.parse.parser import Parser
from crawler.parse.remote import ParserSetup, assign_results, parse_handler, parse_task
from tests.crawler.examples import a_document, a_job
from tests.crawler.parse.follow.examples import URL, a_list_page, found_keys, html_job, parsed
from tests.crawler.parse.test_hook import Sent

HOST = "https://shop.example"


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("/p/1", [f"{HOST}/p/1"]),
        ("p/1", [f"{HOST}/a/p/1"]),
        ("../p/./1", [f"{HOST}/p/1"]),
        ("?x=2", [f"{HOST}/a/list?x=2"]),
        ("//shop.example/p/1", [f"{HOST}/p/1"]),
        ("HTTPS://SHOP.example:443/p/1#top", [f"{HOST}/p/1"]),
        ("http://shop.example/p/1", ["http://shop.example/p/1"]),
        (f"{HOST}:8443/p/1", [f"{HOST}:8443/p/1"]),
        (" /p/1\n", [f"{HOST}/p/1"]),
        ("/p/a b/é", [f"{HOST}/p/a%20b/%C3%A9"]),
        ("#top", []),  # the page itself
        ("", []),
        (URL, []),
        ("javascript:void(0)", []),
        ("mailto:a@shop.example", []),
        ("tel:+1", []),
        ("data:text/html,x", []),
        ("https://other.example/p/1", []),
        ("https://evilshop.example/", []),
    ],
)
def test_a_link_is_read_as_browsers_do_it_and_leads_to_its_own_host(href: str, expected: list[str]) -> None:
    (page,) = parsed(html_job(), f'<a href="{href}">')
    assert found_keys(page) == expected


def test_links_are_relative_to_base_and_each_url_is_found_once() -> None:
    links = "".join(f"<a href='{href}'>" for href in ("1", "1#a", "./1", f"{HOST}/b/1", "2"))
    (page,) = parsed(html_job(), f"<base href='/b/'>{links}")
    assert found_keys(page) == [f"{HOST}/b/1", f"{HOST}/b/2"]
    assert all(one.context == KeyContext(depth=1, origin=page.item.digest) for one in page.found)
    assert [one.digest for one in page.found] == [digest(one.key) for one in page.found]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"allow": ["*/p/*"]}, ["/p/1", "/p/1?sort=x"]),
        ({"allow": ["*/p/*"], "deny": ["*?sort=*"]}, ["/p/1"]),  # ? and [ stand for themselves
        ({"deny": ["*/p/*", "*[x]*", "*/\u043f/*"]}, ["/q/1", "/q/sort=x"]),
        ({"allow": ["*/P/*"]}, []),
        ({"allow": ["/p/*"]}, []),  # the whole URL
        ({"allow": ["*/q/[1]"]}, []),
        ({"allow": ["*/\u043f/ *"]}, ["/%D0%BF/%20x"]),  # as it is written, and as a URL has it
    ],
)
def test_patterns_are_over_the_whole_url(rule: dict[str, Any], expected: list[str]) -> None:
    hrefs = ("/p/1", "/p/1?sort=x", "/q/1", "/q/[x]", "/q/sort=x", "/\u043f/ x")
    links = "".join(f"<a href='{href}'>" for href in hrefs)
    assert found_keys(parsed(html_job(rule=rule), links)[0]) == [f"{HOST}{path}" for path in expected]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("same", "shop port"),  # a host is every port of it
        ("any", "shop cdn port"),
        (["CDN.example."], "cdn"),
        (["cdn.example:443"], "cdn"),
        (["shop.example:8443"], "port"),
        (["shop.example", "cdn.example"], "shop cdn port"),
        (["example"], ""),
    ],
)
def test_links_lead_to_the_hosts_of_the_rule(hosts: Any, expected: str) -> None:
    urls = {"shop": f"{HOST}/1", "cdn": "https://cdn.example/1", "port": "https://shop.example:8443/1"}
    (page,) = parsed(html_job(rule={"hosts": hosts}), "".join(f"<a href='{url}'>" for url in urls.values()))
    assert sorted(found_keys(page)) == sorted(urls[name] for name in expected.split())


@pytest.mark.parametrize("hosts", [["a b"], ["https://shop.example/"], [""], ["*.example"]])
def test_a_host_that_is_none_is_one_line(hosts: Any) -> None:
    with pytest.raises(
        UsageError, match=r"^job: \[\[follow\]\] 1: hosts: .* (has no valid host|is no single host; .*)$"
    ):
        hook.load(html_job(rule={"hosts": hosts}))


@pytest.mark.parametrize(
    ("depth", "bound", "found"), [(0, 1, 1), (1, 1, 0), (9_998, 10_000, 1), (9_999, 10_000, 1), (10_000, 10_000, 0)]
)
def test_keys_are_found_down_to_the_depth_of_the_rule(depth: int, bound: int, found: int) -> None:
    page = a_list_page(URL, KeyContext(depth=depth))
    parsed(html_job(rule={"depth": bound}), "<a href=/p/1>", page)
    assert [one.context.depth for one in page.found] == [depth + 1] * found


KINDS = {"product": {"parse": {"format": "html"}}, "api": {"request": {"url": "https://api.example/{key}"}}}


def test_the_same_text_is_another_key_in_another_kind() -> None:
    rules = [{"from": "a @href"}, {"from": "a @href", "kind": "product"}, {"from": "b", "kind": "api"}]
    (page,) = parsed(html_job(follow=rules, kinds=KINDS), "<a href=/1></a><b>7</b><b> x y </b><b></b>")
    assert [(one.context.kind, one.key) for one in page.found] == [
        ("", f"{HOST}/1"),
        ("product", f"{HOST}/1"),
        ("api", "7"),
        ("api", "x y"),
    ]
    assert len({one.digest for one in page.found}) == 4


def test_a_rule_reads_the_pages_of_its_kind_only_and_keys_keep_the_kind_of_their_page() -> None:
    rules = [
        {"from": "b", "of": "product", "kind": "api"},
        {"from": "a @href", "of": "product"},
        {"from": "i @href", "kind": "product"},
    ]
    job = html_job(follow=rules, kinds=KINDS)
    body = "<a href=/1></a><b>7</b>"
    assert found_keys(parsed(job, body)[0]) == []
    (page,) = parsed(job, body, a_list_page(URL, KeyContext("product", 3)))
    assert [(one.context.kind, one.key, one.context.depth) for one in page.found] == [
        ("api", "7", 4),
        ("product", f"{HOST}/1", 4),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, "b", 2**70], ["1", "b", str(2**70)]),
        ([["a"], [["b", "a"]]], ["a", "b"]),
        ("a", ["a"]),
        (None, []),
        ([None, "", " "], []),
        ([{"id": 1}], "follow: an object is no key; select texts or numbers"),
        ([True], "follow: True is no key; select texts or numbers"),
        ([1.5], "follow: 1.5 is no key; select texts or numbers"),
    ],
)
def test_keys_in_json_are_texts_and_numbers(value: Any, expected: list[str] | str) -> None:
    job = a_job(request={"url": "https://api.example/{key}"}, follow=[{"from": "ids"}])
    (page,) = parsed(job, {"ids": value}, a_list_page("list"))
    if isinstance(expected, str):
        assert (page.outcome, page.reason) == (
            Outcome.FAILED,
            f"parse: ValueError: {expected}".replace("ValueError: ", ""),
        )
    else:
        assert found_keys(page) == expected


def test_what_cannot_be_requested_is_a_refused_key_without_secrets() -> None:
    bad = [
        "http://",
        "http://me:pa55word@shop.example/",
        "HTTP://pa55word@shop.example/",
        f"{HOST}:99999/",
        f"{HOST}/" + "x" * 9000,
        "https://x\ud800/",
        "//me:pa55word@shop.example/",
        "/\t\\pa55word@other.example/",
        "//",
    ]
    no_pages = ["mailto:me:pa55word@shop.example", "java\nscript:void(0)", " tel:1"]
    (page,) = parsed(a_job(follow=[{"from": "links"}]), {"links": [*bad, *no_pages]})
    assert page.outcome is Outcome.STORED
    refusals = {one.key: one.refusal for one in page.found}
    assert list(refusals.values()) == [
        "it has no valid host",
        "it contains user information before the host",
        "it contains user information before the host",
        "it has no valid port",
        "it is longer than 8192 bytes",
        "it has no valid host",
        "it contains user information before the host",
        "it contains user information before the host",
        "it has no valid host",
    ]
    assert "pa55word" not in str(page.found)
    assert max(map(len, refusals)) <= 200
    for one in page.found:
        assert one.digest == digest(one.key, one.context)


def test_keys_of_a_template_that_it_cannot_take_are_refused() -> None:
    request = {"url": "https://api.example/?ids={keys}", "keys_per_request": 5}
    job = a_job(
        request=request,
        parse={"key": "id"},
        tables=[{"name": "t", "columns": {"id": "text"}}],
        follow=[{"from": "ids"}],
    )
    page = a_list_page("list")
    body = {"ids": ["a|b", "a\u0001b", "good"], "id": "list"}
    parsed(job, body, page)
    assert [(one.key, one.refusal.partition(",")[0]) for one in page.found] == [
        ("a|b", "it contains the separator '|'"),
        ("a\\x01b", "it contains a control character (U+0001)"),
        ("good", ""),
    ]


def test_pages_that_are_not_stored_name_nothing() -> None:
    job = html_job(
        parse={"format": "html", "gone": "p", "wait": "i"},
        tables=[{"name": "t", "columns": {"a": {"type": "text", "from": "a"}}}],
    )
    for end in ("<p>", "<i>"):
        (page,) = parsed(job, f"{end}x<a href=/1>y</a>")
        assert page.found == []
    assert page.again is not None
    (page,) = parsed(job, '{"not": "html"}', headers={"content-type": "application/json"})
    assert page.outcome is Outcome.FAILED


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("format_name", ["html", "json"])
def test_a_page_with_links_far_beyond_the_bound_is_one_clear_reason(format_name: str, distinct: bool) -> None:
    """Or a single key, when all of them lead to the same page."""
    names = (str(number % (10**9 if distinct else 1)) for number in range(3 * MOST_FOUND))
    if format_name == "html":
        job, body = html_job(), "".join(f"<a href=/{name}>" for name in names)
    else:
        job, body = a_job(follow=[{"from": "l"}]), '{"l":["' + '","'.join(f"/{name}" for name in names) + '"]}'
    page = a_list_page()
    parser = hook.load(job)
    assert parser is not None
    parser.apply([page], URL, HttpResponse(200, Sent(), body.encode()))
    if distinct:
        assert page.reason == f"parse: follow: the response names more than {MOST_FOUND:,} keys, and none is followed"
        assert page.outcome is Outcome.FAILED
    else:
        assert [one.key for one in page.found] == [f"{HOST}/0"]


def test_the_keys_behind_the_bound_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "MOST_FOUND", 500)
    parser = hook.load(a_job(follow=[{"from": "l"}]))
    assert parser is not None
    peaks = []
    for links in (500, 20_000):
        body = json.dumps({"l": [f"/{number}" for number in range(links)]}).encode()
        tracemalloc.start()
        parser.apply([page := a_list_page()], URL, HttpResponse(200, Sent(), body))
        peaks.append(tracemalloc.get_traced_memory()[1] - len(body))
        tracemalloc.stop()
    assert page.outcome is Outcome.FAILED
    assert peaks[1] < 30 * peaks[0], f"{peaks}: they would take forty times the memory"


PARSER = """
def parse(response):
    for name in response.json()["follow"]:
        response.follow(*name) if isinstance(name, list) else response.follow(name)
    return {}
"""


def parser_job(folder: Path, **more: Any) -> Job:
    (folder / "following.py").write_text(PARSER)
    return read_job(a_document(parse={"python": "following:parse"}, **more), str(folder))


def in_child(job: Job, body: bytes) -> Any:
    """The page after the code of the parser's child process, as the worker gets it back."""
    page = a_list_page()
    handle = parse_handler(ParserSetup(job, "following"))
    assign_results([page], handle(parse_task([page], URL, HttpResponse(200, Sent(), body))).keys)
    return page


@pytest.mark.parametrize("child", [False, True])
def test_a_parser_follows_links_and_keys(folder: Path, child: bool) -> None:
    job = parser_job(folder, kinds=KINDS, follow=[{"kind": "product", "allow": ["*/p/*"], "most": 5}])
    given = ["/1#x", "https://other.example/2", ["7", "api"], ["/p/3", "product"], ["/q/4", "product"], "mailto:a@b"]
    body = json.dumps({"follow": given}).encode()
    page = in_child(job, body) if child else parsed(job, body)[0]
    assert [(one.context.kind, one.key, one.rule) for one in page.found] == [
        ("", f"{HOST}/1", -1),
        ("", "https://other.example/2", -1),
        ("api", "7", -1),
        ("product", f"{HOST}/p/3", 0),
    ]
    assert {one.context.origin for one in page.found} == {page.item.digest}


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize(
    ("follow", "body", "reason"),
    [
        ([], b'{"follow": ["/1"]}', "response.follow: the job follows nothing; write [[follow]] in it"),
        ([{}], b'{"follow": [["/1", "prodct"]]}', "response.follow: no kind 'prodct'; [kinds] has product, api"),
        (
            [{}],
            b'{"follow": [null]}',
            "response.follow: None is no key; give it a text or a whole number (following.py, line 4)",
        ),
        (
            [{}],
            b'{"follow": [1.5]}',
            "response.follow: 1.5 is no key; give it a text or a whole number (following.py, line 4)",
        ),
    ],
)
def test_what_a_parser_cannot_follow_is_one_line(
    folder: Path, follow: list[Any], body: bytes, reason: str, child: bool
) -> None:
    job = parser_job(folder, **({"follow": follow, "kinds": KINDS} if follow else {}))
    page = in_child(job, body) if child else parsed(job, body)[0]
    assert (page.outcome, page.reason, page.found) == (Outcome.FAILED, f"parse: ValueError: {reason}", [])


@pytest.mark.parametrize(
    ("parse", "rule", "words"),
    [
        ({}, "items[", "[[follow]] 1: from: 'items[' is wrong at character 6"),
        ({"format": "html"}, "li[[", "[[follow]] 1: from: "),
        ({"format": "html"}, "$nothing", "[[follow]] 1: from: '$nothing' is not known"),
        ({"format": "html"}, "$markdown.x", "[[follow]] 1: from: '$markdown.x' is not known"),
    ],
)
def test_a_wrong_selector_is_one_line_before_anything_is_sent(parse: dict[str, Any], rule: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        hook.load(a_job(parse=parse, follow=[{"from": rule}]))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.anyio
async def test_what_a_parser_follows_comes_back_from_its_child_process(folder: Path) -> None:
    job = parser_job(folder, kinds=KINDS, follow=[{"kind": "product"}])
    parser = hook.load(job)
    assert parser is not None
    page = a_list_page(URL, KeyContext(depth=4))
    page.item.block.deliveries = 2  # keys that a worker died with are parsed there
    worker = Parser(parser, job)
    try:
        await worker.parse([page], URL, HttpResponse(200, Sent(), b'{"follow": ["/1", ["/2", "product"]]}'))
    finally:
        await worker.close()
    assert [(one.context.kind, one.key, one.context.depth) for one in page.found] == [
        ("", f"{HOST}/1", 5),
        ("product", f"{HOST}/2", 5),
    ]


def test_short_links_of_a_page_with_a_long_path_are_bounded() -> None:
    base = f"{HOST}/{'a' * 8000}/"
    body = f"<base href={base}>" + "".join(f"<a href={number}>" for number in range(MOST_FOUND))
    (page,) = parsed(html_job(), body)
    assert page.outcome is Outcome.FAILED
    assert page.reason == "parse: follow: the response names keys of more than 32 MB, and none is followed"
    few = f"<base href={base}>" + "".join(f"<a href={number}>" for number in range(100))
    (page,) = parsed(html_job(), few)
    assert page.memory_bytes > 100 * 8000


@pytest.mark.parametrize(
    ("pattern", "path", "takes"),
    [
        ("*/c/*/p/*", "/c/c/c/x/p/y", True),
        ("*/c/*/p/*", "/p/c/c/", False),
        ("*/c/*/c", "/c/x/c/y/c", True),
        ("*/c", "/c/c/d", False),
        ("**", "/x", True),
        (f"{HOST}/*x*x", "/xx", True),
        (f"{HOST}/*x*x", "/x", False),
        ("*/c/" * 9 + "*/p/*", "/c/" * 2700, False),
    ],
)
def test_a_pattern_is_matched_in_linear_time(pattern: str, path: str, takes: bool) -> None:
    """With backtracking, the last one would take years."""
    (page,) = parsed(html_job(rule={"allow": [pattern]}), f"<a href='{HOST}{path}'>")
    assert [one.key for one in page.found] == [f"{HOST}{path}"] * takes


@pytest.mark.parametrize("bounded", [0, 1])
def test_what_a_rule_without_a_bound_takes_counts_for_no_bound(bounded: int) -> None:
    rules: list[dict[str, Any]] = [{"from": "a @href"}, {"from": "a @href"}]
    rules[bounded]["most"] = 5
    (page,) = parsed(a_job(parse={"format": "html"}, follow=rules), "<a href=/x><a href=/y>")
    assert [(one.key, one.rule) for one in page.found] == [(f"{HOST}/x", -1), (f"{HOST}/y", -1)]


def test_keys_that_are_known_to_be_stored_are_left_out() -> None:
    """But not keys of another kind that are called the same."""
    recent = {kind: RecentKeys() for kind in ("", "product")}
    recent["product"].add([f"{HOST}/p/1"])
    recent[""].add([f"{HOST}/p/2"])
    job = html_job(rule={"kind": "product"}, kinds={"product": {"parse": {"format": "html"}}})
    page, parser = a_list_page(), hook.load(job, recent=recent)
    assert parser is not None
    parser.apply([page], URL, HttpResponse(200, Sent(), b"<a href='/p/1'><a href='/p/2'>"))
    assert found_keys(page) == [f"{HOST}/p/2"]


@pytest.mark.parametrize(
    ("more", "fields", "is_key", "is_key_when_known"),
    [
        ({}, {}, True, True),
        ({"rule": {"deny": ["*page=*"]}}, {}, False, True),
        ({"rule": {"kind": "product"}, "kinds": {"product": {"parse": {"format": "html"}}}}, {}, False, True),
        ({"rule": {"depth": 3}}, {}, False, False),
        ({"rule": {"most": 3}}, {}, False, False),
        ({}, {"sku": "7"}, False, False),  # which a followed key does not have
    ],
)
def test_a_next_page_that_a_rule_follows_is_a_key_and_no_page_of_the_list(
    more: dict[str, Any], fields: dict[str, str], is_key: bool, is_key_when_known: bool
) -> None:
    """Else each page of a list would be the first one of another list."""
    job = html_job(paginate={"next": "a.next @href"}, **more)
    for known, ends in (([], is_key), ([f"{URL}&page=2"], is_key_when_known)):
        recent = {kind: RecentKeys() for kind in ("", "product")}
        recent[""].add(known)
        page, parser = a_list_page(context=KeyContext(fields=fields)), hook.load(job, recent=recent)
        assert parser is not None
        parser.apply([page], URL, HttpResponse(200, Sent(), f"<a class=next href='{URL}&page=2'>".encode()))
        pages_of_list = [one for one in page.found if one.context.list_key]
        assert [one.context.list_key for one in pages_of_list] == ([] if ends else [URL])
        assert [one for one in page.found if one.key != f"{URL}&page=2"] == []


def test_a_page_that_names_too_much_fails_also_when_all_of_it_is_known() -> None:
    recent = {"": RecentKeys()}
    links = [f"/{number}" for number in range(MOST_FOUND + 1)]
    recent[""].add([HOST + link for link in links])
    page, parser = a_list_page(), hook.load(html_job(), recent=recent)
    assert parser is not None
    parser.apply([page], URL, HttpResponse(200, Sent(), "".join(f"<a href={link}>" for link in links).encode()))
    assert page.outcome is Outcome.FAILED


def test_a_link_is_taken_by_its_own_rule_only() -> None:
    link = '<a href="https://shop.example/p/1">'
    assert [found_keys(parsed(html_job(rule=rule), link)[0]) for rule in ({}, {"deny": ["*/p/*"]}, {"depth": 1})] == [
        [f"{HOST}/p/1"],
        [],
        [f"{HOST}/p/1"],
    ]
