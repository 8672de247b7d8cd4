"""Selectors through HTML, CSV and NDJSON."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.parse import hook
from tests.crawler.examples import a_job
from tests.crawler.parse.select.test_selected import applied, table

PAGE = """<!doctype html><html><head><title>Shop &amp; more</title><base href="/shop/"></head><body>
<ul><li class="product" data-id=" 7 "><a href="p/7?a=1&amp;b=2">First
   <b>thing</b></a> <span class=price>$1,299.00</span><i class=tag>x</i><i class=tag>y&nbsp;z</i></li>
<li class="product" data-id="8"><a href="https://other.example/8#x">Second</a><span class=price>5</span></li></ul>
<p id=total>2</p><img src="//cdn.example/i.png"></body></html>"""
CSV = '\ufeffsku;price;seen;"name"\r\n7;1.50;2026-01-02;"a;b"\r\n8;;;"with\nline"\r\n\r\n'
FEED = """<?xml version="1.0" encoding="iso-8859-1"?>
<?xml-stylesheet href="a.xsl"?><!-- <!DOCTYPE none> -->
<rss version="2.0" xmlns:dc="urn:dc" xmlns:xlink="urn:x"><channel><title>Café &amp; more</title>
<item id="7" xml:lang="de"><dc:title>First <b>one</b></dc:title><link href="a?b=1&amp;c=2"/><tag>x</tag><tag>y</tag>
</item>
<item id="8"><title><![CDATA[<i>2</i>]]></title><dc:link xlink:href="https://other.example/8"/></item>
</channel></rss>"""
NDJSON = '{"n": 1}\n\n{"n": 12345678901234567.89}\r\n'


@pytest.mark.parametrize(
    ("rows", "column", "values"),
    [
        ("li.product", "bigint: @data-id", [7, 8]),
        ("li.product", "text: a", ["First thing", "Second"]),
        ("li.product", "text: a @href", ["https://upstream.example/shop/p/7?a=1&b=2", "https://other.example/8#x"]),
        ("li.product", "text[]: i.tag[]", [["x", "y z"], []]),
        (
            "li.product",
            "text[]: a[] @href",
            [["https://upstream.example/shop/p/7?a=1&b=2"], ["https://other.example/8#x"]],
        ),
        ("li.product[]", "integer: $index", [0, 1]),
        ("li.product", "text: ^ title", ["Shop & more"] * 2),
        ("li.product", "text: $ title", ["Shop & more"] * 2),
        ("li.product", "text: i.tag?", ["x", None]),
        ("li.product > a", "text: .", ["First thing", "Second"]),
        ("li.product > a", "text: @href", ["https://upstream.example/shop/p/7?a=1&b=2", "https://other.example/8#x"]),
        ("li.nothing?", "text: a", []),
        (None, "bigint: #total", [2]),
        (None, "text: img @src", ["https://cdn.example/i.png"]),
        (None, "text: html @none?", [None]),
        (None, "text: @lang?", [None]),
        ("$", "bigint: #total", [2]),
        (None, "text: $url", ["https://upstream.example/api"]),
    ],
)
def test_rows_and_columns_of_html(rows: str | None, column: str, values: list[Any]) -> None:
    kind, selector = column.split(": ")
    parse = {"format": "html"} | ({"rows": rows} if rows else {})
    tables = table({"c": {"type": kind, "from": selector}})
    (page,) = applied(PAGE.encode(), content_type="text/html", parse=parse, tables=tables)
    assert (page.outcome, page.reason) == (Outcome.STORED, None)
    assert [row for _, (row,) in page.records] == values


@pytest.mark.parametrize(
    ("rows", "column", "values"),
    [
        ("item", "bigint: @id", [7, 8]),
        ("channel > item", "text: title", ["First one", "<i>2</i>"]),
        ("item", "text: link @href", ["https://upstream.example/a?b=1&c=2", "https://other.example/8"]),
        ("item", "text: @lang?", ["de", None]),
        ("item", "text[]: tag[]", [["x", "y"], []]),
        ("item", "text: ^ channel > title", ["Café & more"] * 2),
        ("item title", "text: .", ["First one", "<i>2</i>"]),
        (None, "text: @version", ["2.0"]),  # of the document, that is of its root
        ("Item?", "text: title", []),
        (None, "text: $ rss > channel > title", ["Café & more"]),
    ],
)
def test_rows_and_columns_of_xml_go_by_names_without_prefixes(rows: str | None, column: str, values: list[Any]) -> None:
    kind, selector = column.split(": ")
    parse = {"format": "xml"} | ({"rows": rows} if rows else {})
    tables = table({"c": {"type": kind, "from": selector}})
    (page,) = applied(FEED.encode("latin-1"), content_type="application/rss+xml", parse=parse, tables=tables)
    assert (page.outcome, page.reason) == (Outcome.STORED, None)
    assert [row for _, (row,) in page.records] == values


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>Main St 1<br>Berlin</p>", "Main St 1 Berlin"),
        ("<p><b>Bold</b>face <i>x</i>.</p>", "Boldface x."),
        ("<div><p>a</p><p>b</p>c</div>", "a b c"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "a b c"),
        ("<div>a<script>x = 1</script><style>p {}</style>b<br></div>", "ab"),
        ('<script type="application/ld+json">{"a": 1}</script>', '{"a": 1}'),
        ("<div>" * 100_000 + "a<br>b", "a b"),
    ],
    ids=lambda text: text[:20],
)
def test_the_text_of_an_element_has_blanks_where_lines_and_cells_end(markup: str, text: str) -> None:
    tables = table({"c": {"type": "text", "from": "body > *, script"}})
    (page,) = applied(f"<body>{markup}".encode(), content_type="text/html", parse={"format": "html"}, tables=tables)
    assert page.records == [(0, (text,))]


@pytest.mark.parametrize(
    ("kind", "head"),
    [("xml", '\n<?xml version="1.0" encoding="windows-1251"?>'), ("html", '<meta charset="windows-1251">')],
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", ""])
def test_what_a_document_declares_counts_whatever_its_media_type_is(kind: str, head: str, content_type: str) -> None:
    tables = table({"c": {"type": "text", "from": "p"}})
    body = f"{head}<p>\u0416</p>".encode("windows-1251")
    (page,) = applied(body, content_type=content_type, parse={"format": kind}, tables=tables)
    assert page.records == [(0, ("\u0416",))]


@pytest.mark.parametrize(
    ("condition", "text", "holds"),
    [
        ("a", "false", False),
        ("a", "", True),
        ("a = true", "true", True),
        ("a != true", "true", False),
        ("a = false", "false", True),
        ("a = 7.50", "7.50", True),
    ],
)
def test_a_condition_reads_the_texts_of_xml(condition: str, text: str, holds: bool) -> None:
    tables = table({"c": {"type": "text", "from": "a"}})
    body, parse = f"<r><a>{text}</a></r>".encode(), {"format": "xml", "gone": condition}
    (page,) = applied(body, content_type="text/xml", parse=parse, tables=tables)
    assert (page.outcome is Outcome.GONE) is holds


def test_an_empty_cell_is_null_also_where_it_is_read() -> None:
    tables = table({"a": "text", "c": {"type": "numeric", "as": "number"}})
    (page,) = applied(b"a,c\n1,\n", content_type="text/csv", parse={"format": "csv"}, tables=tables)
    assert page.records == [(0, ("1", None))]


ENTITIES = '<!DOCTYPE a [<!ENTITY x "yy"><!ENTITY z SYSTEM "file:///etc/passwd">]><a>&x;&z;</a>'


@pytest.mark.parametrize(
    "text",
    [ENTITIES, f'<?xml version="1.0"?>\n<!-- > -- >-->{ENTITIES}', "<!doctype a><a/>", '<!DOCTYPE a SYSTEM "b"><a/>'],
)
def test_xml_with_a_doctype_is_refused(text: str) -> None:
    tables = table({"c": {"type": "text", "from": "a"}})
    (page,) = applied(text.encode(), content_type="text/xml", parse={"format": "xml"}, tables=tables)
    reason = "parse: the response is XML with a DOCTYPE, whose entities may be endless, so it is not read"
    assert (page.outcome, page.reason) == (Outcome.FAILED, reason)


ARTICLE = f"""<html><head><title>T | Site</title><meta name="author" content="Jo">
<meta property="article:published_time" content="2026-01-02T03:04:05Z"></head><body><nav><a href="/x">menu</a></nav>
<article><h1>H</h1>{"<p>Some <b>text</b> here, with commas, and words enough to be its content.</p>" * 9}</article>"""


def test_the_article_of_a_page() -> None:
    columns = {
        **{name: {"type": "text", "from": f"$article.{name}"} for name in ("text", "title", "author")},
        "at": {"type": "timestamptz", "from": "$article.date", "as": "date"},
        "markdown": {"type": "text", "from": "$markdown"},
    }
    (page,) = applied(ARTICLE.encode(), content_type="text/html", parse={"format": "html"}, tables=table(columns))
    ((_, (text, title, author, at, markdown)),) = page.records
    assert (title, author, at.isoformat()) == ("H", "Jo", "2026-01-02T03:04:05+00:00")
    assert "Some text here" in text
    assert "Some **text** here" in markdown
    assert "menu" not in text + markdown


def test_a_page_without_an_article_says_so() -> None:
    columns = {"c": {"type": "text", "from": "$markdown?"}, "d": {"type": "text", "from": "$article.text"}}
    (page,) = applied(b"<p></p>", content_type="text/html", parse={"format": "html"}, tables=table(columns))
    assert page.reason == "parse: facts.d: nothing at $article.text; write $article.text? where it may be absent"


def test_a_price_is_a_number() -> None:
    columns = {"price": {"type": "numeric", "from": ".price", "as": "number"}}
    parse = {"format": "html", "rows": "li.product"}
    (page,) = applied(PAGE.encode(), content_type="text/html", parse=parse, tables=table(columns))
    assert [str(row) for _, (row,) in page.records] == ["1299.00", "5"]


@pytest.mark.parametrize(
    ("parse", "column", "reason"),
    [
        ({"rows": "li.nothing"}, "text: a", "rows: nothing at li.nothing; write li.nothing? where that means no rows"),
        ({"rows": "li"}, "text: h1", "facts.c: nothing at h1; write h1? where it may be absent"),
        ({"rows": "li"}, "bigint: .price", "facts.c: '$1,299.00' is no whole number; as = \"number\" reads one"),
        ({"rows": "li"}, "boolean: a", "facts.c: 'First thing' is neither true nor false"),
        ({"failed": "#total = 2"}, "text: title", None),
    ],
)
def test_what_is_not_in_html_fails_by_name(parse: dict[str, Any], column: str, reason: str | None) -> None:
    kind, selector = column.split(": ")
    tables = table({"c": {"type": kind, "from": selector}})
    (page,) = applied(PAGE.encode(), content_type="text/html", parse={"format": "html", **parse}, tables=tables)
    assert page.outcome is Outcome.FAILED
    assert str(page.reason).startswith(f"parse: {reason}" if reason else "#total = 2")


@pytest.mark.parametrize(
    ("body", "content_type", "name", "values"),
    [
        (CSV, "text/csv", "sku", [7, 8]),
        (CSV.replace(";", "\t"), "text/plain", "sku", [7, 8]),
        ('\r\n"a, b, c";sku\r\n1;7\r\n', "text/csv", "sku", [7]),
        ("sku;a\r7;1,2,3\r8;4,5,6", "text/csv", "sku", [7, 8]),
        (f"sku,a\n7,{'x' * 200_000}\n", "text/csv", "sku", [7]),
        ('\x1e{"n": 1}\n\x1e{"n": 2}\n', "application/json-seq", "n", [1, 2]),
        ('{"n": 1, "é": 0}\n', "application/x-ndjson; charset=utf-16", "n", [1]),
        (NDJSON, "application/x-ndjson", "n", [1, None]),
        ("", "text/csv", "n", []),
        ("", "application/x-ndjson", "n", []),
    ],
)
def test_each_line_is_a_record(body: str, content_type: str, name: str, values: list[Any]) -> None:
    kind = "ndjson" if "json" in content_type else "csv"
    column = {"type": "numeric", "from": name}
    (page,) = applied(body.encode(), content_type=content_type, parse={"format": kind}, tables=table({"c": column}))
    assert page.outcome is Outcome.STORED, page.reason
    found = [row for _, (row,) in page.records]
    assert [number if value is not None else None for number, value in zip(found, values, strict=True)] == values


def test_the_columns_types_read_the_texts_of_csv() -> None:
    columns = {"sku": "integer", "price": "numeric(5,2)", "seen": "date", "name": "text"}
    (page,) = applied(CSV.encode(), content_type="text/csv", parse={"format": "csv"}, tables=table(columns))
    assert [[str(value) for value in row] for _, row in page.records] == [
        ["7", "1.50", "2026-01-02", "a;b"],
        ["8", "None", "None", "with\nline"],
    ]


@pytest.mark.parametrize("body", ["", "h1,h2\n", "<h1>,h1\n"])
def test_a_csv_with_its_columns_may_have_no_lines(body: str) -> None:
    columns = {"c": {"type": "bigint", "from": "h1"}, "d": {"type": "text", "from": "h9?"}}
    (page,) = applied(body.encode(), content_type="text/csv", parse={"format": "csv"}, tables=table(columns))
    assert (page.outcome, page.records) == (Outcome.STORED, [])


def test_links_of_xml_are_relative_to_their_base() -> None:
    feed = """<feed xml:base="http://ex.org/a/"><link href="b"/><entry xml:base="c/"><link href="d"/></entry>
        <entry xml:base="//other.example/"><link href="?e"/></entry></feed>"""
    columns = {"c": {"type": "text[]", "from": "link[] @href"}, "d": {"type": "text", "from": "entry link @href"}}
    (page,) = applied(feed.encode(), content_type="text/xml", parse={"format": "xml"}, tables=table(columns))
    links = ["http://ex.org/a/b", "http://ex.org/a/c/d", "http://other.example/?e"]
    assert page.records == [(0, (links, links[1]))]


@pytest.mark.parametrize(
    ("kind", "body", "content_type", "says"),
    [
        ("html", b'{"error": 1}', "application/json", "the response is no HTML but application/json: '{\"error\": 1}'"),
        ("html", b"%PDF-1.7", "application/pdf", "the response is no HTML but application/pdf"),
        (
            "csv",
            b"a,b\n1,2,3\n",
            "text/csv",
            "no CSV but text/csv: 'a,b\\n1,2,3\\n' (line 2 has 3 fields",
        ),
        ("csv", b'a,b\n"1,2\n', "text/csv", "the response is no CSV but text/csv"),
        ("csv", b"<html><h1>Sorry</h1>", "text/html", "no CSV but text/html: '<html><h1>Sorry</h1>'"),
        ("csv", b'{"error": "busy", "code": 5}', "application/json", "the response is no CSV but application/json"),
        ("csv", b"Sorry, busy", "text/plain", "facts.c: nothing at h1"),
        ("json", b'{"a": 1,\n "b": NaN}', "application/json", "(NaN is not JSON)"),
        ("json", b'{"a": 1,\n "b": }', "application/json", "(wrong at line 2, column 7)"),
        ("json", b"[" * 200_000, "application/json", "(it is nested too deeply)"),
        ("ndjson", b"1\n" + b"[" * 200_000, "application/json", "(line 2 is no JSON)"),
        ("ndjson", b'{"c": 1}\n{"c": \n', "text/plain", "(line 2 is no JSON)"),
        ("xml", b"<a>\n<b>\n</c></a>", "text/xml", "'<a>\\n<b>\\n</c></a>' (mismatched tag at line 3, column 3)"),
        ("xml", b"<a>&nbsp;</a>", "text/xml", "(undefined entity at line 1, column 4)"),
        ("xml", b"", "text/xml", "the response is no well-formed XML but text/xml: ''"),
        ("xml", b"{}", "application/json", "the response is no XML but application/json"),
        ("xml", b"<a>" * 200_000 + b"</a>" * 200_000, "text/xml", "facts.c: nothing at h1"),
        ("xml", b"<a>" * 200_000, "text/xml", "the response is no well-formed XML"),
        (
            "xml",
            b"<a " + b"".join(b"a%d='1' " % n for n in range(100_000)) + b"/>",
            "text/xml",
            "facts.c: nothing at h1",
        ),
        ("xml", b"<?a?>" * 200_000 + b"<!--a-->" * 200_000 + b"<a/>", "text/xml", "facts.c: nothing at h1"),
        ("csv", b'a,b\n1,"' + b"a" * 2**24, "text/csv", "unexpected end of data"),
        ("csv", b"c,c\n1,2\n", "text/csv", "(two columns are called 'c')"),
        ("csv", b"a,b\n" + b"1," * 2**23, "text/csv", "fields, the first line 2)"),
        ("html", b"<div>" * 200_000, "text/html", "facts.c: nothing at h1"),
        ("html", b"<p " + b"a=1 " * 200_000 + b">", "text/html", "facts.c: nothing at h1"),
    ],
    ids=[
        "json",
        "pdf",
        "too many fields",
        "open quote",
        "a page",
        "an error",
        "no column",
        "a constant",
        "a place",
        "deep json",
        "deep line",
        "broken line",
        "bad xml",
        "entity",
        "no xml",
        "json as xml",
        "deep xml",
        "open xml",
        "wide xml",
        "long prolog",
        "16 MB field",
        "two columns",
        "16 MB line",
        "deep",
        "wide",
    ],
)
def test_a_response_of_another_format_fails_and_says_what_came(
    kind: str, body: bytes, content_type: str, says: str
) -> None:
    columns = {"c": {"type": "text", "from": "h1"}}
    (page,) = applied(body, content_type=content_type, parse={"format": kind}, tables=table(columns))
    assert page.outcome is Outcome.FAILED
    assert says in str(page.reason)


@pytest.mark.parametrize(
    ("parse", "column", "says"),
    [
        ({"rows": "li["}, "a", 'table facts: rows: invalid CSS selector "li[": expected an identifier at position 3'),
        ({}, "a::text", "column c: invalid CSS selector"),
        ({}, "a @href[]", "column c: 'a @href[]': write a[] @href"),
        ({}, "$h1", "or $ h1 for what is in the response"),
        ({}, "^h1", "'^h1': write ^ h1"),
        (
            {"format": "xml"},
            "dc|title",
            "'dc|title': write names without the prefix of their namespace",
        ),
        ({"format": "xml"}, "media:content @url", "'media:content': write names without the prefix"),
        ({"format": "xml"}, "$article.text", "$article.text' is not known; write one of $key"),
        ({"gone": "p..x"}, "a", "[parse] gone: invalid CSS selector"),
    ],
)
def test_a_wrong_css_selector_is_named_before_anything_is_sent(parse: dict[str, Any], column: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        hook.load(a_job(parse={"format": "html", **parse}, tables=table({"c": {"type": "text", "from": column}})))
    assert says in str(error.value)
