"""What no request could carry out is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.job.job import read_job
from crawler.job.models import RequestSettings
from crawler.job.request_checks import split_template

from .examples import a_document, a_job


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
    request = a_job(
        request={
            "redirects": 0,
            "http2": "prior-knowledge",
            "proxy": "socks5://127.0.0.1:1080",
            "ca": "ca.pem",
            "client_cert": "me.pem",
        }
    ).request
    assert (request.redirects, request.http2, request.proxy) == (0, "prior-knowledge", "socks5://127.0.0.1:1080")
    assert (request.ca, request.client_cert) == ("ca.pem", "me.pem")
    assert RequestSettings().redirects == 5


@pytest.mark.parametrize(
    ("request_", "obeyed"),
    [
        ({}, True),
        ({"url": "https://api.example/?id={key}"}, False),
        ({"robots": False}, False),
        ({"url": "https://api.example/?id={key}", "robots": True}, True),
    ],
)
def test_robots_txt_is_obeyed_where_keys_are_urls_unless_the_job_says_otherwise(
    request_: dict[str, object], obeyed: bool
) -> None:
    assert a_job(request=request_).request.obeys_robots is obeyed


@pytest.mark.parametrize("place", ["{key}", "{keys}"])
def test_a_template_is_what_stands_before_and_after_the_key(place: str) -> None:
    assert split_template(f"https://x.example/a?b={place}&c=d") == ("https://x.example/a?b=", "&c=d")


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("https://x.example/", "0 placeholders"),
        ("https://x.example/{key}/{key}", "2 placeholders"),
        ("https://x.example/{key}/{keys}", "2 placeholders"),
        ("https://x.example/{id}", "unknown placeholder {id}"),
        ("https://x.example/{}", "unknown placeholder {}"),
        ("https://x.example/${TOKEN}/{key}", "unknown placeholder {TOKEN}"),
        ("https://x.example/{key}/}", "a single"),
        ("https://x.example/{{key}}", "a single"),
        ("x.example/{key}", "no absolute"),
        ("/path/{key}", "no absolute"),
        ("ftp://x.example/{key}", "no absolute"),
        ("https:///{key}", "no absolute"),
        ("https://{key}/path", "no absolute"),
        ("https://x.{key}.example/path", "may not depend on the key"),
        ("https://x.example:{key}/path", "may not depend on the key"),
        ("https://x.example:99999/{key}", "out of range"),
        ("https://x.example:port/{key}", "Port"),
        ("https://[::1/{key}", "IPv6"),
        ("https://user:secret@x.example/{key}", "Authorization"),
        ("https://x.example/#{key}", "never sent"),
        ("https://x.example/a b/{key}", "%20"),
        ("https://x.example/\n{key}", "control character"),
    ],
)
def test_a_malformed_template_is_a_usage_error_in_one_line(template: str, word: str) -> None:
    with pytest.raises(UsageError, match=".") as caught:
        read_job(a_document(request={"url": template}))
    message = str(caught.value)
    assert word in message
    assert "[request] url" in message
    assert len(message.splitlines()) == 1
    assert "secret" not in message
