"""Where a redirect leads, which ones are invalid, and where credentials may be sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.url import parse
from crawler.fetch.network.redirect import MAX_URL_CHARACTERS, InvalidRedirect, may_carry_credentials, redirect_target

HERE = parse("https://a.example/one/two?x=1#part")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://b.example/other", "https://b.example/other"),
        ("http://a.example/one/two", "http://a.example/one/two"),
        ("/root?y=2", "https://a.example/root?y=2"),
        ("three", "https://a.example/one/three"),
        ("../up", "https://a.example/up"),
        ("../../../../up", "https://a.example/up"),
        ("?y=2", "https://a.example/one/two?y=2"),
        ("//b.example:8443/x", "https://b.example:8443/x"),
        ("  /padded\t", "https://a.example/padded"),
        ("/fragment#here", "https://a.example/fragment"),
        ("HTTPS://B.example/Case", "https://b.example/Case"),
        ("https://[2001:db8::1]:444/x", "https://[2001:db8::1]:444/x"),
        ("/b\xc3\xbccher", "https://a.example/b%C3%83%C2%BCcher"),  # the engine has decoded it already
        ("/b\xfccher", "https://a.example/b%C3%BCcher"),
        ("/b\N{CYRILLIC SMALL LETTER A}", "https://a.example/b%D0%B0"),
        ("https://b.example", "https://b.example/"),
        ("https:///b.example/x", "https://b.example/x"),
        ("https://@b.example/", "https://b.example/"),
        ("\\x", "https://a.example/x"),
        ("\\\\b.example\\x", "https://b.example/x"),
        ("///b.example/x", "https://b.example/x"),
        ("/a b\tc|^", "https://a.example/a%20bc|%5E"),
        ("https:three", "https://a.example/one/three"),
        ("http:three", "http://three/"),
    ],
)
def test_a_redirect_leads_to_an_absolute_url_without_a_fragment(location: str, target: str) -> None:
    assert redirect_target(HERE, location).href == target


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (None, "no Location"),
        ("", "no Location"),
        (" \t ", "no Location"),
        ("ftp://b.example/x", "does not start with http"),
        ("file:///etc/passwd", "does not start with http"),
        ("javascript:alert(1)", "does not start with http"),
        ("data:text/html,x", "does not start with http"),
        ("x" * 100 + ":y", "does not start with http"),
        ("https://:443/x", "no valid host"),
        ("https://b.example:0/x", "no valid port"),
        ("https://b.example:99999/x", "no valid port"),
        ("https://b.example:port/x", "no valid port"),
        ("https://[::1/x", "no valid host"),
        ("https://user:secret@b.example/", "user information"),
        ("https://a.example@b.example/", "user information"),
        ("/" + "x" * MAX_URL_CHARACTERS, "more than 8192"),
    ],
)
def test_a_redirect_that_cannot_be_followed_says_why(location: str | None, why: str) -> None:
    with pytest.raises(InvalidRedirect, match=why.replace("[", r"\[")) as caught:
        redirect_target(HERE, location)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_location_is_an_http_url_or_an_invalid_redirect(location: str) -> None:
    try:
        target = redirect_target(HERE, location).href
    except InvalidRedirect:
        return
    assert target.startswith(("http://", "https://"))
    assert "#" not in target


@pytest.mark.parametrize(
    ("origin", "url", "allowed"),
    [
        ("https://a.example/x", "https://a.example/x", True),
        ("https://a.example/x", "https://A.example:443/y", True),
        ("https://a.example/x", "https:\\\\a.example\\y", True),
        ("https://a.example/x", "https://a.example.evil.example\\@a.example/y", False),
        ("https://127.0.0.1/x", "https://2130706433/y", True),
        ("https://b\xfccher.example/x", "https://xn--bcher-kva.example/y", True),
        ("http://a.example:80/x", "http://a.example/y", True),
        ("http://a.example/x", "https://a.example/x", True),
        ("http://a.example/x", "https://a.example:8443/x", False),
        ("http://a.example:8080/x", "https://a.example/x", False),
        ("https://a.example/x", "http://a.example/x", False),
        ("https://a.example/x", "https://a.example:8443/x", False),
        ("https://a.example/x", "https://www.a.example/x", False),
        ("https://a.example/x", "https://a.example.evil.example/x", False),
        ("https://a.example/x", "https://b.example/x", False),
    ],
)
def test_credentials_are_sent_only_to_the_origin_that_they_are_for(origin: str, url: str, allowed: bool) -> None:
    assert may_carry_credentials(parse(origin), parse(url)) is allowed
