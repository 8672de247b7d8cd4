"""What a sitemap names: pages and other sitemaps, in every form of the protocol; what is none fails with one line."""

from __future__ import annotations

import gzip
import math
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import KeyContext, Outcome
from crawler.job.job import Job, read_job
from crawler.job.sections.source import SITEMAP
from crawler.model import Item, Page
from crawler.parse.follow.sitemap import MAX_LEVELS, MOST_URLS, SitemapFinder, modified_by
from crawler.parse.remote import NO_BLOCK
from crawler.parse.select.path import SelectorError
from crawler.testing import Parsed, parse, response

HOST = "https://example.org"
XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
BOMB = gzip.compress(b"<urlset>" + b" " * 2_000_000)


def a_job(**source: Any) -> Job:
    return read_job(
        {
            "run": {"name": "s"},
            "source": {"sitemap": f"{HOST}/sitemap.xml", **source},
            "request": {"max_body": 1_000_000},
        }
    )


def read(body: bytes, url: str = f"{HOST}/sitemap.xml", **source: Any) -> Parsed:
    return parse(a_job(**source).kinds[SITEMAP], response(body, key=url))


def urlset(*entries: str, head: str = "", root: str = f"urlset {XMLNS}") -> bytes:
    name = root.split()[0]
    return f"{head}<{root}>{''.join(entries)}</{name}>".encode()


def url(path: str, modified: str = "") -> str:
    return f"<url><loc>{HOST}{path}</loc>{modified and f'<lastmod>{modified}</lastmod>'}</url>"


XML = '<?xml version="1.0" encoding="UTF-8"?>'
BODIES = {
    "xml": urlset(url("/a"), url("/b"), head=XML),
    "xml behind an empty line": urlset(url("/a"), url("/b"), head=f"\r\n{XML}"),
    "xml with a byte order mark": b"\xef\xbb\xbf" + urlset(url("/a"), url("/b"), head=XML),
    "xml in UTF-16": urlset(url("/a"), url("/b")).decode().encode("utf-16"),
    "gzip": gzip.compress(urlset(url("/a"), url("/b"), head=XML)),
    "gzip in several members": gzip.compress(urlset(url("/a"), url("/b"))[:50])
    + gzip.compress(urlset(url("/a"), url("/b"))[50:]),
    "prefixes": (
        f'<s:urlset xmlns:s="x"><s:url><s:loc>\n {HOST}/a </s:loc></s:url>'
        f"<s:url><s:loc>{HOST}/b</s:loc></s:url></s:urlset>"
    ).encode(),
    "images": urlset(
        f'<url><loc>{HOST}/a</loc><image:image xmlns:image="i"><image:loc>{HOST}/a.png</image:loc></image:image></url>',
        url("/b"),
    ),
    "CDATA and a comment": urlset(f"<url><loc><![CDATA[{HOST}/a]]></loc></url>", "<!-- x -->", url("/b")),
    "relative, twice, other schemes, none": urlset(
        *("<url><loc>/a</loc></url>", url("/a"), url("/b"), "<url><loc>mailto:x@example.org</loc></url>"),
        *("<url><loc/></url>", "<url/>"),
    ),
    "a byte order mark and an empty line": b"\xef\xbb\xbf\n" + urlset(url("/a"), url("/b"), head=XML),
    "an encoding of several bytes": urlset(
        url("/a"), f"<!-- \u65e5 -->{url('/b')}", head='<?xml version="1.0" encoding="gb2312"?>'
    )
    .decode()
    .encode("gb2312"),
    "two places, and that of an image before": urlset(
        f'<url><image:loc xmlns:image="i">{HOST}/a.png</image:loc><loc>{HOST}/a</loc><loc>{HOST}/c</loc></url>',
        url("/b"),
    ),
    "text": f"{HOST}/a\r\n\r\n{HOST}/b\n".encode(),
    "text with a byte order mark, in gzip": gzip.compress(f"\ufeff{HOST}/a\n{HOST}/b".encode()),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_form_names_its_pages_once(body: bytes) -> None:
    parsed = read(body)
    assert parsed.outcomes == {f"{HOST}/sitemap.xml": ("stored", None)}
    assert parsed.found == ((f"{HOST}/a", ""), (f"{HOST}/b", ""))


def test_an_entity_of_xml_and_a_fragment_are_read_as_in_a_link() -> None:
    assert read(urlset(url("/a?x=1&amp;y=2#top"))).found == ((f"{HOST}/a?x=1&y=2", ""),)


def test_an_index_and_a_robots_txt_name_sitemaps() -> None:
    index = f"<sitemapindex {XMLNS}><sitemap><loc>{HOST}/1.xml.gz</loc></sitemap></sitemapindex>".encode()
    assert read(index).found == ((f"{HOST}/1.xml.gz", SITEMAP),)
    robots = f"User-agent: *\nDisallow: /a\nsitemap: {HOST}/1.xml # all\nSitemap:/2.xml\n".encode()
    named = ((f"{HOST}/1.xml", SITEMAP), (f"{HOST}/2.xml", SITEMAP))
    assert read(robots, f"{HOST}/robots.txt").found == named


@pytest.mark.parametrize(
    ("modified", "is_kept"),
    [
        ("2026-05-10", True),
        ("2026-05-09", False),
        ("2026-05-10T00:00:00+02:00", True),
        ("2026-05-09T23:59:59Z", False),
        ("2026-05", True),
        ("2026-04", False),
        ("2026", True),
        ("2025", False),
        ("", True),
        ("yesterday", True),
        ("1600000000", True),  # no date, but seconds since 1970
        ("0001-01-01T00:00:00", True),  # where a program knows none
        ("1970-01-01T00:00:00Z", True),
    ],
)
def test_since_leaves_out_what_is_older(modified: str, is_kept: bool) -> None:
    assert bool(read(urlset(url("/a", modified)), since="2026-05-10").found) is is_kept
    index = urlset(f"<sitemap><loc>/1.xml</loc><lastmod>{modified}</lastmod></sitemap>", root="sitemapindex")
    assert bool(read(index, since="2026-05-10").found) is is_kept


@pytest.mark.parametrize(
    ("modified", "moment"),
    [
        ("1991-08-06T00:00:00Z", 681436800.0),
        ("2026-05-10T02:00:00+02:00", 1778371200.0),
        ("2026-05-10", 1778371200.0 + 36 * 3600),
        ("0001-01-01T00:00:00", math.inf),
        ("1970-01-01T00:00:00Z", math.inf),
        ("1600000000", math.inf),
        ("", math.inf),
    ],
)
def test_when_a_page_was_changed_at_the_latest(modified: str, moment: float) -> None:
    assert modified_by(modified) == moment


NO_SITEMAPS = {
    "html": (b"<!DOCTYPE html><title>404</title>", "it has a DOCTYPE, whose entities may be endless"),
    "html without a doctype": (b"<html><body>404</body></html>", "no sitemap but XML or HTML that begins with <html>"),
    "an entity bomb": (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><urlset><url><loc>&a;</loc></url></urlset>', "DOCTYPE"),
    "html in lower case": (b"<!doctype html><title>404</title>", "it is not well-formed XML: "),
    "cut short": (urlset(url("/a"))[:-9], "it is not well-formed XML: "),
    "other elements": (urlset("<URL><loc>/a</loc></URL>"), "it has <URL> where <url> should be"),
    "an unknown entity": (urlset("<url><loc>/&a;</loc></url>"), "it is not well-formed XML: undefined entity"),
    "an unknown encoding": (urlset(url("/a"), head='<?xml version="1.0" encoding="x-y"?>'), "unknown encoding"),
    "a text that is none": (b"not found\n", "neither XML nor a list of URLs, but 'not found'"),
    "nothing": (b"", "neither XML nor a list of URLs, but ''"),
    "bytes": (b"\x89PNG\xff\xfe", "neither XML nor a text in UTF-8"),
    "a gzip bomb": (BOMB, "the body exceeds 1000000 bytes (see [request] max_body)"),
    "a damaged gzip": (gzip.compress(b"<urlset/>")[:-9], "the compressed body ended early"),
    "no gzip": (b"\x1f\x8bxxxxxxxxxxxxx", "its gzip cannot be read: "),
    "too many": (b"\n".join(b"https://a.b/%d" % n for n in range(MOST_URLS + 1)), "names more than 50,000 URLs"),
}


@pytest.mark.parametrize(("body", "words"), NO_SITEMAPS.values(), ids=NO_SITEMAPS)
def test_what_is_no_sitemap_fails_in_one_line(body: bytes, words: str) -> None:
    parsed = read(body)
    outcome, reason = parsed.outcomes[f"{HOST}/sitemap.xml"]
    assert (outcome, parsed.found) == ("failed", ())
    assert reason is not None
    assert reason.startswith("parse: sitemap: ")
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "robots",
    [b"User-agent: *\rSitemap: /1.xml\rDisallow:\r", b"# caf\xe9\nSitemap: /1.xml\n", b"Sitemap:\n sitemap:/1.xml"],
)
def test_a_robots_txt_is_read_by_lines_of_any_kind(robots: bytes) -> None:
    assert read(robots, f"{HOST}/robots.txt").found == ((f"{HOST}/1.xml", SITEMAP),)


def test_a_robots_txt_without_a_sitemap_fails() -> None:
    outcome = read(b"User-agent: *\nDisallow:\nSitemap:\n", f"{HOST}/robots.txt").outcomes[f"{HOST}/robots.txt"]
    assert outcome == ("failed", "parse: sitemap: the robots.txt has no line that begins with Sitemap:")


def test_indexes_in_indexes_end() -> None:
    index = f"<sitemapindex><sitemap><loc>{HOST}/next.xml</loc></sitemap></sitemapindex>"
    finder, context = SitemapFinder(a_job()), KeyContext(SITEMAP)

    def found_in(context: KeyContext) -> KeyContext:
        page = Page(Item("k", b"d", NO_BLOCK, context), None, Outcome.STORED)
        finder.find([page], response(index.encode(), key="k", url=f"{HOST}/sitemap.xml"))
        return page.found[0].context

    for _ in range(MAX_LEVELS - 1):
        context = found_in(context)
        assert (context.depth, context.kind) == (0, SITEMAP)
    with pytest.raises(SelectorError, match="an index in an index"):
        found_in(context)


def test_a_url_that_no_key_can_be_is_refused_and_the_others_are_found() -> None:
    bad = ("https://user:pass@example.org/", "HTTPS://user:pass@example.org/", "//user:pass@example.org/")
    parsed = read(urlset(*(f"<url><loc>{one}</loc></url>" for one in bad), url("/a")))
    assert len(parsed.found) == 4
    assert not [key for key, _ in parsed.found if "pass" in key]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"source": {"sitemap": "/sitemap.xml"}}, "[source] sitemap: '/sitemap.xml' "),
        ({"source": {"sitemap": "https://a.example/s", "since": "2026-13-01"}}, "write a day like 2026-01-01"),
        ({"source": {"path": "a", "since": "2026-01-01"}}, "since is for sitemap"),
        ({"source": {"sitemap": "https://a.example/s", "key": "a"}}, "pages of a sitemap have no columns"),
        ({"request": {"url": "https://a.example/{key}"}}, "leave [request] url out"),
        ({"kinds": {"sitemap": {}}}, "[kinds.sitemap] is built in"),
        ({"tables": [{"name": "t", "kind": "sitemap", "columns": {"a": "text"}}]}, "[kinds] has none"),
    ],
)
def test_a_job_that_cannot_be_is_refused(document: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_job({"run": {"name": "s"}, "source": {"sitemap": "https://a.example/s"}, **document})
    assert words in str(raised.value)


def test_short_urls_below_a_long_one_are_bounded() -> None:
    url = f"{HOST}/{'a' * 8000}/sitemap.xml"
    outcome, reason = read(
        b"<urlset>" + b"<url><loc>%d</loc></url>" * 5000 % tuple(range(5000)) + b"</urlset>", url
    ).outcomes[url]
    assert (outcome, reason) == ("failed", "parse: sitemap: it names URLs of more than 32 MB")
