"""Secrets: where they come from, which headers are credentials, and that no message shows them."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.url import parse
from crawler.fetch.network.credentials import resolve_credentials, resolve_every
from crawler.fetch.template import Template
from crawler.job.request.settings import RequestSettings
from tests.crawler.examples import a_job

HEADERS = {"Authorization": "Bearer ${TOKEN}", "X-Two": "${A}-${A}-$B-{{C}}", "X-None": "plain", "cookie": "a=1"}


def settings(**request: Any) -> RequestSettings:
    return a_job(request={"hosts": ["a.example"], **request}).request


def test_secrets_come_from_the_environment_that_is_given_and_make_a_header_a_credential() -> None:
    credentials = resolve_credentials(settings(headers=HEADERS), {"TOKEN": "s3cret ${A}", "A": "1"})
    assert credentials.headers == (("X-None", "plain"),)
    assert credentials.secret_headers == (
        ("Authorization", "Bearer s3cret ${A}"),
        ("X-Two", "1-1-$B-{C}"),
        ("cookie", "a=1"),
    )
    assert "s3cret" not in repr(credentials)


def test_a_secret_in_the_template_is_filled_in_only_for_the_engine_and_hidden_in_what_quotes_it() -> None:
    url = "https://a.example/${PATH_KEY}/{key}?k=${KEY}"
    request = a_job(request={"url": url}).request
    credentials = resolve_credentials(request, {"KEY": "s3cret/ä+", "PATH_KEY": "p4thkey", "OTHER": "x"})
    target = Template(request).target(["${KEY}"])
    assert target.href == "https://a.example/$%7BPATH_KEY%7D/%24%7BKEY%7D?k=${KEY}"
    filled = credentials.filled(target).href
    assert filled == "https://a.example/p4thkey/%24%7BKEY%7D?k=s3cret%2F%C3%A4%2B"
    assert credentials.hidden(filled) == "https://a.example/${PATH_KEY}/%24%7BKEY%7D?k=${KEY}"
    assert credentials.hidden("no s3cret/ä+") == "no ${KEY}"
    assert credentials.filled(parse("https://a.example/?${OTHER}")).href == "https://a.example/?${OTHER}"
    assert "s3cret" not in repr(credentials)
    with pytest.raises(UsageError, match=r"url: \$\{KEY\} is not set"):
        resolve_credentials(request, {"PATH_KEY": "1"})


@pytest.mark.parametrize(
    "spelled", ["s3cret /ä+", "s3cret%20%2F%C3%A4%2B", "s3cret+%2f%c3%a4%2b", "s3cret%20/%C3%A4+", "%733cret /ä+"]
)
def test_a_secret_is_hidden_however_it_is_spelled_in_a_url(spelled: str) -> None:
    request = a_job(request={"url": "https://a.example/{key}?k=${KEY}"}).request
    credentials = resolve_credentials(request, {"KEY": "s3cret /ä+"})
    assert credentials.hidden(f"/next?k={spelled}&page=2") == "/next?k=${KEY}&page=2"
    assert credentials.hidden("/next?k=S3cret /ä+") == "/next?k=S3cret /ä+", "another text"


def test_with_several_kinds_each_secret_goes_to_the_origin_of_its_url_only() -> None:
    kinds = {"b": {"request": {"url": "http://b.example/{key}?k=${B_KEY}"}}, "page": {"parse": {"format": "html"}}}
    job = a_job(
        request={"url": "https://a.example/{key}?k=${A_KEY}", "auth": "bearer:${TOKEN}"},
        kinds=kinds,
        follow=[{"from": "b", "kind": "b"}, {"from": "c", "kind": "page"}],
    )
    credentials = resolve_every(job.every_kind, {"A_KEY": "of-a", "B_KEY": "of-b", "TOKEN": "t"})
    assert credentials.origins == {"https://a.example", "http://b.example", "https://b.example"}
    both = "/?a=${A_KEY}&b=${B_KEY}"
    filled = [credentials.filled(parse(f"{origin}{both}")).path for origin in sorted(credentials.origins)]
    assert filled == ["/?a=${A_KEY}&b=of-b", "/?a=of-a&b=${B_KEY}", "/?a=${A_KEY}&b=of-b"]
    assert credentials.filled(parse(f"https://evil.example{both}")).path == both
    assert credentials.filled(parse(f"https://a.example:8443{both}")).path == both
    with pytest.raises(UsageError, match=r"url: \$\{B_KEY\} is not set"):
        resolve_every(job.every_kind, {"A_KEY": "1", "TOKEN": "t"})


def test_a_secret_that_is_not_set_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"headers: \$\{TOKEN\} is not set in the environment"):
        resolve_credentials(settings(headers=HEADERS), {"A": "1"})


def test_a_secret_with_a_line_break_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match=r"\$\{TOKEN\} has a line break") as caught:
        resolve_credentials(settings(headers=HEADERS), {"TOKEN": "s3cret\n", "A": "1"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("auth", "value"),
    [
        ("basic:${USER}:${PASSWORD}", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617, section 2
        ("basic:Aladdin:${PASSWORD}", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ("bearer:${PASSWORD}", "Bearer open sesame"),
    ],
)
def test_auth_makes_an_authorization_header(auth: str, value: str) -> None:
    credentials = resolve_credentials(settings(auth=auth), {"USER": "Aladdin", "PASSWORD": "open sesame"})
    assert credentials.secret_headers == (("Authorization", value),)


def test_a_password_may_have_a_colon_and_a_user_may_not() -> None:
    resolve_credentials(settings(auth="basic:${USER}:${PASSWORD}"), {"USER": "a", "PASSWORD": "b:c"})
    with pytest.raises(UsageError, match="no colon"):
        resolve_credentials(settings(auth="basic:${USER}:${PASSWORD}"), {"USER": "a:b", "PASSWORD": "c"})


def test_cookies_make_one_header() -> None:
    credentials = resolve_credentials(
        settings(cookies={"consent": "yes", "session": "${SESSION}"}), {"SESSION": "abc="}
    )
    assert credentials.secret_headers == (("Cookie", "consent=yes; session=abc="),)
    with pytest.raises(UsageError, match="cookies: .*SESSION"):
        resolve_credentials(settings(cookies={"session": "${SESSION}"}), {"SESSION": "a; admin=1"})


def test_a_proxy_may_have_any_character_in_its_password() -> None:
    request = settings(proxy="http://${USER}:${PASSWORD}@proxy.test:3128")
    credentials = resolve_credentials(request, {"USER": "me", "PASSWORD": "p@ss:w/rd"})
    assert credentials.proxy == "http://me:p%40ss%3Aw%2Frd@proxy.test:3128"
    assert "p%40ss" not in repr(credentials)
    assert (
        resolve_credentials(settings(proxy="${PROXY}"), {"PROXY": "socks5://a:b@c:1080"}).proxy == "socks5://a:b@c:1080"
    )
    with pytest.raises(UsageError, match="proxy: .* no http, https or socks5 URL") as caught:
        resolve_credentials(settings(proxy="${PROXY}"), {"PROXY": "s3cret"})
    assert "s3cret" not in str(caught.value)
