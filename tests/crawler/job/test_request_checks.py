"""What no request could carry out is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.job.job import read_job
from crawler.job.request.placeholders import Placeholder, split_template
from crawler.job.request.settings import RequestSettings
from crawler.job.request_checks import credential_origins, credentials_in, seconds_of

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
        ({"fill": "soon"}, 'fill is \'soon\'; write a time like "1s", "500ms", "1min", or seconds'),
        ({"fill": -1}, "fill is -1; write a time like"),
        ({"headers": {"Authorization": "Bearer s3cret"}}, '{ Authorization = "Bearer ${TOKEN}" } and set TOKEN in the'),
        ({"headers": {"authorization": "s3cret"}}, '{ authorization = "${AUTHORIZATION}" }'),
        ({"headers": {"X-Api-Key": "s3cret"}}, 'headers = { X-Api-Key = "${X_API_KEY}" } and set X_API_KEY in the env'),
        ({"headers": {"PRIVATE-TOKEN": "s3cret"}}, "has its secret written out"),
        ({"headers": {"Ocp-Apim-Subscription-Key": "s3cret"}}, "has its secret written out"),
        ({"headers": {"X-RapidAPI-Key": "s3cret"}}, "has its secret written out"),
        ({"headers": {"X-Who": "Basic s3cret"}}, '{ X-Who = "Basic ${TOKEN}" }'),
        ({"headers": {"Cookie": "a=1; PHPSESSID=s3cret"}}, 'cookies = { PHPSESSID = "${PHPSESSID}" }'),
        ({"cookies": {"auth_token": "s3cret"}}, 'cookies = { auth_token = "${AUTH_TOKEN}" }'),
        (
            {"auth": "bearer:${A}"},
            "auth: each key is a URL, and nobody says which servers may have that; name",
        ),
        ({"headers": {"X-Who": "me ${A}"}}, "headers.X-Who: each key is a URL"),
        ({"cookies": {"consent": "yes"}}, "cookies: each key is a URL"),
        ({"hosts": ["a.example/path"]}, "hosts: 'a.example/path' is no single host; write one like"),
        ({"hosts": ["*.a.example"]}, "is no single host"),
        ({"hosts": ["me:s3@a.example"]}, "contains user information"),
        ({"hosts": ["ftp://a.example"]}, "does not start with http"),
        ({"hosts": ["a b"]}, "no valid host"),
        ({"url": "https://a.example/{key}", "hosts": ["a.example"]}, "leave hosts out"),
        ({"fill": "11min"}, "fill is '11min'; it must be at most 10min"),
    ],
)
def test_what_cannot_be_sent_or_would_be_stored_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_job(a_document(request=request_))
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_headers_and_cookies_that_are_no_secrets_may_be_written_out() -> None:
    plain = {"Accept": "application/json", "X-Auth-User": "me", "Idempotency-Key": "1", "Cookie": "consent=yes"}
    assert credentials_in(a_job(request={"headers": plain, "hosts": ["a.example"]}).request) == ["headers.Cookie"]
    a_job(request={"headers": {"Accept": "*/*", "X-Key-Version": "2", "Tokens": "many"}})


def test_credentials_go_to_the_hosts_of_the_job_or_to_the_templates_own() -> None:
    hosts = ["A.example", "b.example:8443", "http://10.0.0.5:8080", "https://c.example:443/"]
    assert credential_origins(a_job(request={"hosts": hosts, "auth": "bearer:${A}"}).request) == {
        "https://a.example",
        "https://b.example:8443",
        "http://10.0.0.5:8080",
        "https://c.example",
    }
    template = a_job(request={"url": "https://a.example/${A}?k=${B}&${A}&{key}", "headers": {"X": "${C}"}}).request
    assert credential_origins(template) is None
    assert credentials_in(template) == ["headers.X", "${A} in url", "${B} in url"]


@pytest.mark.parametrize(
    ("fill", "seconds"), [("1s", 1.0), ("500ms", 0.5), ("1.5 min", 90.0), ("0s", 0.0), (0, 0.0), (2.5, 2.5)]
)
def test_a_time_is_a_text_with_its_unit_or_a_number_of_seconds(fill: str | float, seconds: float) -> None:
    assert seconds_of(a_job(request={"fill": fill}).request.fill) == seconds


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
    assert split_template(f"https://x.example/a?b={place}&c=d") == (
        "https://x.example/a?b=",
        Placeholder(place.strip("{}")),
        "&c=d",
    )


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("https://x.example/", "0 placeholders"),
        ("https://x.example/{key}/{key}", "2 placeholders"),
        ("https://x.example/{key}/{keys}", "2 placeholders"),
        ("https://x.example/{id}", "url names {id}, which no key has"),
        ("https://x.example/{}", "a single"),
        ("https://x.example/{key:upper}", "a single"),
        ("https://x.example/{key:number}", ":number is for json"),
        ("https://${HOST}/{key}", "may not come from the environment"),
        ("https://x.${HOST}.example/{key}", "may not come from the environment"),
        ("https://x.example/${TOKEN}/", "0 placeholders"),
        ("https://x.example/${TO-KEN}/{key}", "a single"),
        ("https://x.example/{key}/}", "a single"),
        ("https://x.example/{{key}}", "a single"),
        ("x.example/{key}", "does not start with http"),
        ("/path/{key}", "does not start with http"),
        ("ftp://x.example/{key}", "does not start with http"),
        ("https:///{key}", "no valid host"),
        ("https://{key}/path", "no valid host"),
        ("https://x.{key}.example/path", "may not depend on the key"),
        ("https://x.example:{key}/path", "may not depend on the key"),
        ("https://x.example:99999/{key}", "no valid port"),
        ("https://x.example:port/{key}", "no valid port"),
        ("https://[::1/{key}", "no valid host"),
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


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"json": {"a": "{key}"}, "form": {"a": "b"}}, "json and form: a request has one body"),
        ({"url": "https://x.example/", "json": {"a": 1}}, "url or json: 0 placeholders"),
        ({"url": "https://x.example/", "json": ["{{key}}"]}, "url or json: 0 placeholders"),
        ({"json": {"a": "{name}"}}, "json names {name}, which no key has"),
        ({"headers": {"X-A": "{name}"}}, "headers names {name}, which no key has"),
        ({"json": {"a": "{name}"}, "keys_per_request": 2}, "json: {name} is of one key"),
        ({"url": None, "json": {"a": "${TOKEN}"}}, "any server would get its secret"),
        ({"headers": {"X-A": "{key}-${TOKEN}"}}, "'X-A' has a secret and a {name}"),
        ({"idempotent": False}, "a GET may be sent again in any case"),
        ({"method": "TRACE"}, 'write "GET", "POST"'),
        ({"json": "{key}"}, "write a table or a list"),
        ({"form": {"a": {"b": 1}}}, "'a' must be a text, a number, or a list of texts"),
        ({"cookie_jar": True, "cookies": {"a": "b"}}, "leave yours out"),
        ({"url": None, "login": {"url": "https://x.example/"}}, "nobody says which servers may have that"),
    ],
)
def test_a_request_that_cannot_be_made_is_an_error_in_one_line(request_: dict[str, Any], words: str) -> None:
    given = {"url": "https://x.example/{key}", **request_}
    with pytest.raises(UsageError) as caught:
        read_job(a_document(request={name: value for name, value in given.items() if value is not None}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "method", "repeatable"),
    [
        ({}, "GET", True),
        ({"json": {"a": "{key}"}}, "POST", False),
        ({"body": "{key}", "method": "PUT"}, "PUT", True),
        ({"method": "POST"}, "POST", False),
        ({"method": "PATCH", "idempotent": True}, "PATCH", True),
        ({"method": "DELETE", "idempotent": False}, "DELETE", False),
    ],
)
def test_a_body_makes_a_post_which_is_not_sent_again_unless_the_job_says_so(
    request_: dict[str, Any], method: str, repeatable: bool
) -> None:
    request = a_job(request={"url": "https://x.example/{key}", **request_}).request
    assert (request.sent_method, request.is_repeatable) == (method, repeatable)
