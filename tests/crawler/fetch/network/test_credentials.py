"""Secrets: where they come from, which headers are credentials, and that no message shows them."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.fetch.network.credentials import resolve_credentials
from crawler.job.job import read_job
from crawler.job.models import RequestSettings
from tests.crawler.examples import a_document, a_job

HEADERS = {"Authorization": "Bearer ${TOKEN}", "X-Two": "${A}-${A}-$B-{C}", "X-None": "plain", "cookie": "a=1"}


def settings(**request: Any) -> RequestSettings:
    return a_job(request=request).request


def test_secrets_come_from_the_environment_that_is_given_and_make_a_header_a_credential() -> None:
    credentials = resolve_credentials(settings(headers=HEADERS), {"TOKEN": "s3cret ${A}", "A": "1"})
    assert credentials.headers == (("X-None", "plain"),)
    assert credentials.secret_headers == (
        ("Authorization", "Bearer s3cret ${A}"),
        ("X-Two", "1-1-$B-{C}"),
        ("cookie", "a=1"),
    )
    assert "s3cret" not in repr(credentials)


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


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"auth": "basic:user:password"}, "auth: write basic:USER:${PASSWORD} or bearer:${TOKEN}"),
        ({"auth": "bearer:token"}, "the secret stays in the environment"),
        ({"auth": "digest:${A}"}, "auth: write basic:USER"),
        ({"auth": "${AUTH}"}, "auth: write basic:USER"),
        ({"auth": "bearer:${A}", "headers": {"authorization": "x"}}, "leave one out"),
        ({"cookies": {"a": "1"}, "headers": {"Cookie": "x"}}, "leave one out"),
        ({"cookies": {"a": "1; b=2"}}, "cookies: 'a'"),
        ({"cookies": {"a b": "1"}}, "cookies: 'a b'"),
        ({"cookies": {"a": 1}}, "cookies: 'a'"),
        ({"proxy": "proxy.test:3128"}, "proxy: write it like http://host:3128"),
        ({"proxy": "ftp://proxy.test"}, "proxy: write it like http://host:3128"),
        ({"proxy": "http://proxy.test/path"}, "proxy: write it like http://host:3128"),
        ({"proxy": "http://proxy.test:port"}, "proxy: write it like http://host:3128"),
        ({"proxy": "http://me:s3cret@proxy.test"}, "write its password as ${NAME}"),
        ({"redirects": 21}, "redirects is 21; it must be from 0 to 20"),
        ({"redirects": True}, "redirects is True"),
        ({"http2": "h2c"}, "http2 is 'h2c'; write true, false or \"prior-knowledge\""),
        ({"ca": ""}, "ca is empty"),
    ],
)
def test_what_cannot_be_sent_or_would_be_stored_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_job(a_document(request=request_))
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_settings_of_the_network_are_read() -> None:
    request = settings(
        redirects=0, http2="prior-knowledge", proxy="socks5://127.0.0.1:1080", ca="ca.pem", client_cert="me.pem"
    )
    assert (request.redirects, request.http2, request.proxy) == (0, "prior-knowledge", "socks5://127.0.0.1:1080")
    assert (request.ca, request.client_cert) == ("ca.pem", "me.pem")
    assert RequestSettings().redirects == 5
