"""URLs as browsers read them: rows like those of the WHATWG tables, a kind in each."""

from __future__ import annotations

import ada_url
import pytest
from ada_url import normalize_url
from hypothesis import given
from hypothesis import strategies as st

from coordinator.url import _CANONICAL, InvalidUrl, Origin, Target, join, join_all, parse

BASE = "http://a.example:8000/b/c?d#e"

# What stands after an origin, and the request target that the standard gives; `tests/crawler/fetch` sends them.
TARGETS = [
    ("", "/"),
    ("/", "/"),
    ("?", "/?"),
    ("?q", "/?q"),
    ("#f", "/"),
    ("/a?b#c?d", "/a?b"),
    ("/a#b?c", "/a"),
    # Dots, also encoded, and empty segments.
    ("/foo/bar/..", "/foo/"),
    ("/foo/./bar", "/foo/bar"),
    ("/foo/%2e/bar", "/foo/bar"),
    ("/foo/%2E%2e/bar", "/bar"),
    ("/foo/.%2e", "/"),
    ("/../../x", "/x"),
    ("/foo/...", "/foo/..."),
    ("/foo//..//bar", "/foo//bar"),
    ("//x//y", "//x//y"),
    ("/.well-known/x", "/.well-known/x"),
    ("/a?b=/../c", "/a?b=/../c"),
    # Backslashes are slashes, but not in a query.
    ("\\s1", "/s1"),
    ("\\a\\..\\b", "/b"),
    ("/a\\b?c\\d", "/a/b?c\\d"),
    # Tabs and line ends are removed, also within a name; spaces and controls are encoded, but not at the end.
    ("/a\tb\nc\rd", "/abcd"),
    ("/.\t./x", "/x"),
    ("/a b?c d", "/a%20b?c%20d"),
    ("/a ", "/a"),
    ("/a\x01\x7f", "/a%01%7F"),
    # What is encoded in a path, and what in a query; percent signs are left as they are.
    ("/\"#$%&'()*+,-.:;<=>", "/%22"),
    ("/\"$%&'()*+,-.:;<=>@[]^_`{|}~", "/%22$%&'()*+,-.:;%3C=%3E@[]%5E_%60%7B|%7D~"),
    ("?\"$%&'()*+,-./:;<=>?@[]^_`{|}~", "/?%22$%&%27()*+,-./:;%3C=%3E?@[]^_`{|}~"),
    ("/^", "/%5E"),
    ("/%zz%4%", "/%zz%4%"),
    ("/%41%7e", "/%41%7e"),
    ("/caf\u00e9?\u00e9#\u00e9", "/caf%C3%A9?%C3%A9"),
    ("/\u65e5\u672c\U0001f600", "/%E6%97%A5%E6%9C%AC%F0%9F%98%80"),
    ("/e\u0301/\u00e9", "/e%CC%81/%C3%A9"),
    ("/\ufeff\u200b", "/%EF%BB%BF%E2%80%8B"),
    ("/x:80/@y", "/x:80/@y"),
]

# Ways to write one host, and how the standard writes its origin.
ORIGINS = [
    ("http://a.example", "http://a.example"),
    ("HTTP://A.Example", "http://a.example"),
    ("http:a.example", "http://a.example"),
    ("http:/a.example", "http://a.example"),
    ("http:///a.example", "http://a.example"),
    ("http:\\\\a.example\\x", "http://a.example"),
    (" \x00http://a.example\x1f ", "http://a.example"),
    ("h\nttp://a\t.example", "http://a.example"),
    ("http://a.example:80", "http://a.example"),
    ("http://a.example:", "http://a.example"),
    ("http://a.example:0080", "http://a.example"),
    ("https://a.example:443/x", "https://a.example"),
    ("http://a.example:443/x", "http://a.example:443"),
    ("https://a.example:80/x", "https://a.example:80"),
    ("http://@a.example", "http://a.example"),
    ("http://:@a.example", "http://a.example"),
    ("http://a%2Eexample", "http://a.example"),
    ("http://\uff41.example", "http://a.example"),
    ("http://a\u3002example", "http://a.example"),
    ("http://a\u00ad.example", "http://a.example"),
    ("http://a.example.", "http://a.example."),
    ("http://b\u00fccher.example", "http://xn--bcher-kva.example"),
    ("http://BU\u0308CHER.example", "http://xn--bcher-kva.example"),
    ("http://XN--Bcher-KVA.example", "http://xn--bcher-kva.example"),
    ("http://fa\u00df.example", "http://xn--fa-hia.example"),
    ("http://a_b.-c-.example", "http://a_b.-c-.example"),
    ("http://127.0.0.1", "http://127.0.0.1"),
    ("http://127.1", "http://127.0.0.1"),
    ("http://127.0.0.1.", "http://127.0.0.1"),
    ("http://2130706433", "http://127.0.0.1"),
    ("http://0x7f.1", "http://127.0.0.1"),
    ("http://017700000001", "http://127.0.0.1"),
    ("http://\uff11\uff12\uff17.1", "http://127.0.0.1"),
    ("http://0", "http://0.0.0.0"),
    ("http://1.2.3.4.example", "http://1.2.3.4.example"),
    ("http://[0:0::1]:80/", "http://[::1]"),
    ("http://[2001:DB8::0:1]:8080/", "http://[2001:db8::1]:8080"),
    ("http://[::127.0.0.1]", "http://[::7f00:1]"),
    ("http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]"),
    ("http://a.example\\@b.example", "http://a.example"),
    ("http://a.example#@b.example", "http://a.example"),
    ("http://a.example?@b.example", "http://a.example"),
]

REFUSED = [
    ("", "does not start with http:// or https://"),
    ("an id", "does not start with http:// or https://"),
    ("//a.example", "does not start with http:// or https://"),
    ("/a", "does not start with http:// or https://"),
    ("ftp://a.example", "does not start with http:// or https://"),
    ("blob:http://a.example/x", "does not start with http:// or https://"),
    ("javascript:alert(1)", "does not start with http:// or https://"),
    ("http1://a.example", "does not start with http:// or https://"),
    ("http://me:secret@a.example", "contains user information before the host"),
    ("http://me@a.example", "contains user information before the host"),
    ("http:\\\\me@a.example", "contains user information before the host"),
    ("http://a.example@a.example/", "contains user information before the host"),
    ("http://:secret@a.example", "contains user information before the host"),
    ("http://", "has no valid host"),
    ("http:", "has no valid host"),
    ("http://:80", "has no valid host"),
    ("http://a b", "has no valid host"),
    ("http://a<b", "has no valid host"),
    ("http://a%00b", "has no valid host"),
    ("http://a%2fb", "has no valid host"),
    ("http://%zz", "has no valid host"),
    ("http://\u00ad", "has no valid host"),
    ("http://xn--a\u00fc", "has no valid host"),
    ("http://256.0.0.1", "has no valid host"),
    ("http://1.2.3.4.5", "has no valid host"),
    ("http://a.0x", "has no valid host"),
    ("http://4294967296", "has no valid host"),
    ("http://[::1", "has no valid host"),
    ("http://[::g]", "has no valid host"),
    ("http://[::1%25eth0]", "has no valid host"),
    ("http://a.example:b", "has no valid port"),
    ("http://a.example:65536", "has no valid port"),
    ("http://a.example:8 0", "has no valid port"),
    ("http://a.example:-1", "has no valid port"),
    ("http://a.example:0", "has no valid port"),
    ("http://\ud800", "has no valid host"),
]


@pytest.mark.parametrize(("written", "path"), TARGETS)
@pytest.mark.parametrize("origin", ["http://a.example:8000", "https://127.0.0.1"])
def test_a_url_has_the_request_target_of_the_standard(origin: str, written: str, path: str) -> None:
    target = parse(origin + written)
    assert (target.origin.text, target.path, target.href) == (origin, path, origin + path)
    assert parse(target.href) == target


@pytest.mark.parametrize(("written", "text"), ORIGINS)
def test_a_url_has_the_origin_of_the_standard(written: str, text: str) -> None:
    assert parse(written).origin.text == text


@pytest.mark.parametrize(("written", "why"), REFUSED)
def test_other_texts_are_refused_with_the_reason(written: str, why: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse(written)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("location", "href"),
    [
        ("", "http://a.example:8000/b/c?d"),
        ("x", "http://a.example:8000/b/x"),
        ("./x/../y", "http://a.example:8000/b/y"),
        ("../../../x", "http://a.example:8000/x"),
        ("/x", "http://a.example:8000/x"),
        ("\\x", "http://a.example:8000/x"),
        ("?x", "http://a.example:8000/b/c?x"),
        ("?", "http://a.example:8000/b/c?"),
        ("#x", "http://a.example:8000/b/c?d"),
        ("//g", "http://g/"),
        ("///g/x", "http://g/x"),
        ("\\\\g\\x", "http://g/x"),
        ("/\\g/x", "http://g/x"),
        ("http:x", "http://a.example:8000/b/x"),
        ("http:/x", "http://a.example:8000/x"),
        ("https:x", "https://x/"),
        (":8000", "http://a.example:8000/b/:8000"),
        (" x y\tz ", "http://a.example:8000/b/x%20yz"),
        ("//g\n.example/x\r\n", "http://g.example/x"),
        ("caf\u00e9", "http://a.example:8000/b/caf%C3%A9"),
        ("//b\u00fccher.example:80", "http://xn--bcher-kva.example/"),
    ],
)
def test_a_relative_url_is_resolved_against_its_base(location: str, href: str) -> None:
    assert parse(location, parse(BASE)).href == href


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("//", "has no valid host"),
        ("//[::1/x", "has no valid host"),
        ("//g:99999/x", "has no valid port"),
        ("//me@g/x", "contains user information before the host"),
        ("mailto:me@g", "does not start with http:// or https://"),
    ],
)
def test_a_relative_url_is_refused_with_the_reason(location: str, why: str) -> None:
    with pytest.raises(InvalidUrl, match=why):
        parse(location, parse(BASE))


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "upstream_host", "upstream"),
    [
        ("https://a.example", "https", "a.example", 443, "a.example", "a.example"),
        ("http://a.example:443", "http", "a.example", 443, "a.example", "a.example:443"),
        ("http://a.example.:8000", "http", "a.example.", 8000, "a.example", "a.example:8000"),
        ("http://[::1]", "http", "[::1]", 80, "[::1]", "[::1]"),
        ("http://[::ffff:7f00:1]:8000", "http", "[::ffff:7f00:1]", 8000, "127.0.0.1", "127.0.0.1:8000"),
        ("http://.", "http", ".", 80, ".", "."),
    ],
)
def test_an_upstream_is_the_same_however_its_host_is_written(
    text: str, scheme: str, host: str, port: int, upstream_host: str, upstream: str
) -> None:
    assert parse(text).origin == Origin(text, scheme, host, port, upstream_host, upstream)


CHARACTERS = st.sampled_from("http://ax.example:80443?#[]\\%2eEF0123.-_xn@ |^~'\"`{}\u00fc\t")


@given(st.text(CHARACTERS, max_size=24), st.sampled_from(["", "http://", "https://a", "http://a.b/", "http://1.2.3.4"]))
def test_what_is_called_canonical_is_what_the_library_leaves_as_it_is(text: str, begin: str) -> None:
    canonical = _CANONICAL.fullmatch(begin + text)
    if canonical is not None:
        assert normalize_url(begin + text) == canonical[1] + (canonical[2] or "/")


@given(st.text(max_size=40), st.booleans())
def test_any_text_is_a_target_in_ascii_or_an_invalid_url(text: str, relative: bool) -> None:
    try:
        target = parse(text, parse(BASE)) if relative else parse(f"http://{text}")
    except InvalidUrl:
        return
    assert target.href.isascii()
    assert target.href.isprintable()
    assert target.path.startswith("/")
    assert not {" ", "#"} & set(target.href)
    assert parse(target.href) == Target(target.origin, target.path)


@pytest.mark.parametrize(
    ("base", "link", "url"),
    [
        ("https://h.example/a/b?c#d", "/x/y?z=1", "https://h.example/x/y?z=1"),
        ("https://h.example:8443/", "/x", "https://h.example:8443/x"),
        ("https://h.example", "/x", "https://h.example/x"),
        ("https://h.example/a/b", "//other.example/x", "https://other.example/x"),
        ("https://h.example/a/b", "/a/../x", "https://h.example/x"),
        ("https://h.example/a/b", "/%2e%2E/x", "https://h.example/x"),
        ("https://h.example/a/b", "x", "https://h.example/a/x"),
        ("https://h.example/a/b", "/x\\y z#f", "https://h.example/x/y%20z#f"),
        ("https://h.example/a/b", "/caf\u00e9", "https://h.example/caf%C3%A9"),
        ("https://h.example/a/b", "http://other.example:62000/x?y", "http://other.example:62000/x?y"),
        ("https://h.example/a/b", "http://other.example", "http://other.example/"),
        ("https://h.example/a/b", "http://other.example:66000/x", None),
        ("data:text/html,x", "https://h.example/y", "https://h.example/y"),
    ],
)
def test_a_link_leads_where_the_standard_says(base: str, link: str, url: str | None) -> None:
    assert join_all(base, [link]) == [by_the_standard(base, link)] == [link if url is None else url]
    if url is not None:
        assert join(base, link) == url


def by_the_standard(base: str, link: str) -> str:
    try:
        return str(ada_url.join_url(base, link.strip()))
    except ValueError:
        return link.strip()


LINKS = st.one_of(
    st.from_regex(r"/[a-z0-9/.]{0,6}(\?[a-z=&/]{0,4})?", fullmatch=True),
    st.from_regex(r"https?://[a-z0-9.]{1,4}(:[0-9]{1,5})?(/[a-z.%]{0,3})*", fullmatch=True),
    st.text("/.?#:\\%@ \n\tAahtps2e\u00e9", max_size=8),
)


@given(st.lists(LINKS, max_size=4), st.sampled_from(["https://h.example/a/b?c", "http://h.example:81/", "data:,x"]))
def test_links_that_are_joined_at_once_lead_where_the_standard_says(links: list[str], base: str) -> None:
    assert join_all(base, links) == [by_the_standard(base, link) for link in links]


@pytest.mark.parametrize("link", ["/a\n/b", "/a\n", "\n/a", "", "/a\nhttp://h.example/"])
def test_a_link_with_a_line_end_is_one_link(link: str) -> None:
    links = ["/x", link, "/y"]
    assert join_all(BASE, links) == [by_the_standard(BASE, one) for one in links]
