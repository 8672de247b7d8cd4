"""The URL of a request for one key or several, and templates that are malformed."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.model import KeyContext
from coordinator.url import InvalidUrl, parse
from crawler.fetch.template import Template
from crawler.job.request.settings import RequestSettings
from crawler.model import GET, Payload

API = "https://en.wikipedia.org/w/api.php?titles={keys}&format=json"


def url(template: str | None, *keys: str, separator: str = "|") -> str:
    return Template(RequestSettings(url=template, separator=separator)).target(keys).href


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        ("plain", "plain"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("a|b", "a%7Cb"),
        ("a&b=c#d?e", "a%26b%3Dc%23d%3Fe"),
        ("50%", "50%25"),
        ("%7C", "%257C"),
        ("a+b", "a%2Bb"),
        ("Zoë", "Zo%C3%AB"),
        ("日本", "%E6%97%A5%E6%9C%AC"),
        ("{key}", "%7Bkey%7D"),
        ("../up", "..%2Fup"),
    ],
)
def test_a_key_is_percent_encoded_whole(key: str, encoded: str) -> None:
    assert url("https://x.example/wiki/{key}?a=1", key) == f"https://x.example/wiki/{encoded}?a=1"


@pytest.mark.parametrize("key", ["file:///etc/passwd", "https://user:secret@x.example/", "https://x.example:a/", ""])
def test_a_key_that_is_no_url_can_be_requested_only_with_a_template(key: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        url(None, key)
    assert "secret" not in str(caught.value)
    assert url(API, key)


def test_several_keys_are_joined_by_the_encoded_separator() -> None:
    assert url(API, "A|B", "C D", "É") == (
        "https://en.wikipedia.org/w/api.php?titles=A%7CB%7CC%20D%7C%C3%89&format=json"
    )
    assert url("https://x.example/?ids={keys}", "1", "2", separator=",") == "https://x.example/?ids=1%2C2"


def test_keys_are_kept_byte_for_byte() -> None:
    assert url("https://x.example/wiki/{key}", "US") != url("https://x.example/wiki/{key}", "Us")
    # The two spellings of é are two keys.
    assert url("https://x.example/{key}", "\u00e9") != url("https://x.example/{key}", "e\u0301")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="|")), min_size=1, max_size=5))
def test_an_upstream_reads_back_what_the_template_was_given(keys: list[str]) -> None:
    query = urlsplit(url(API, *keys)).query
    assert parse_qs(query, keep_blank_values=True)["titles"] == ["|".join(keys)]


# Templates whose head or tail the standard changes, and some in which a key can become a part of something else.
TEMPLATES = (
    *(
        "https://x.example/{key}",
        "https://X.example:443/a/./b/{key}",
        "https://x.example\\a\\{key}\\b",
        "https://127.1/{key}",
    ),
    *(
        "https://x.example/a/{key}/../b",
        "https://x.example/a/{key}/.",
        "https://x.example/a/.{key}",
        "https://x.example/a/{key}.",
    ),
    *(
        "https://x.example/a/{key}%2e/b",
        "https://x.example/a/%2e{key}/b",
        "https://x.example/%{key}/b",
        "https://x.example/%2{key}",
    ),
    *(
        "https://x.example?{key}",
        "https://x.example/?a=^|'{key}'^&b#c",
        "https://x.example/^{key}|#c",
        "https://x.example/0key0{key}",
    ),
    *("https://x.example/\u00e9/{key}?\u00e9", "https://b\u00fccher.example/{key}", "https://x.example/..{key}..;/%zz"),
)


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.lists(st.text(st.sampled_from("./\\2eE%5^|'#?& \u00e9k"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_target_that_was_put_together_is_the_one_that_the_standard_gives(template: str, keys: list[str]) -> None:
    for separator in "|.":
        joined = quote(separator, safe="").join(quote(key, safe="") for key in keys)
        settings = RequestSettings(url=template, separator=separator)
        expected = parse(template.replace("{key}", joined))
        if len(expected.path) - len(joined) >= len(parse(template.replace("{key}", "0key0")).path) - len("0key0"):
            assert Template(settings).target(keys) == expected
        else:
            with pytest.raises(InvalidUrl, match="stand for another page"):
                Template(settings).target(keys)


@pytest.mark.parametrize(
    "template", ["https://x.example/{key}", "https://x.example/a/{key}/b", "https://x.example/%2{key}"]
)
def test_a_key_that_would_be_dots_between_slashes_is_refused(template: str) -> None:
    """`/a/..` is another page."""
    with pytest.raises(InvalidUrl, match="stand for another page"):
        Template(RequestSettings(url=template)).target(["e" if "%" in template else ".."])
    assert Template(RequestSettings(url="https://x.example/?q={key}")).target([".."]).path == "/?q=.."


def test_without_a_template_the_key_is_the_url_as_browsers_read_it() -> None:
    assert url(None, "https://X.example/a b?c=|#d") == "https://x.example/a%20b?c=|"


FIELDS = KeyContext(fields={"country": "d e/f", "sku": "1/../2", "n": "12", "odd": "a\r\nX-Evil: 1"})


def built(context: KeyContext = FIELDS, keys: tuple[str, ...] = ("k",), **request: Any) -> tuple[str, Payload]:
    settings = RequestSettings(**{"url": "https://x.example/q?id={key}", **request})
    target, payload = Template(settings, {"TOKEN": 's"{key}'}).build(keys, context)
    return target.href, payload


@pytest.mark.parametrize(
    ("request_", "keys", "content_type", "body"),
    [
        ({"json": {"ids": "{keys}", "one": "{key}"}}, ("a", 'b"'), "application/json",
         b'{"ids":["a","b\\""],"one":"a|b\\""}'),
        ({"json": {"n": "{n:number}", "m": ["x-{country}", 1, True]}}, ("a",), "application/json",
         b'{"n":12,"m":["x-d e/f",1,true]}'),
        ({"json": {"ids": "{keys:number}", "t": "{key}!", "p": "{country:path}"}}, ("7", "1e400"), "application/json",
         b'{"ids":[7,1e400],"t":"7|1e400!","p":"d e/f"}'),
        ({"json": {"n": "{key:number}", "t": "{key:number}!"}}, ("12345678901234567.890",), "application/json",
         b'{"n":12345678901234567.890,"t":"12345678901234567.890!"}'),
        ({"json": {"query": "{a{{login}} b(id: {key})}"}}, ("7",), "application/json",
         b'{"query":"{a{login} b(id: 7)}"}'),
        ({"json": {"t": "${TOKEN}", "u": "${OTHER}"}}, ("7",), "application/json", b'{"t":"s\\"{key}","u":"${OTHER}"}'),
        ({"form": {"a": "{key}&", "b": ["{country}", "2"], "c": 3}}, ("\u00e4",), "application/x-www-form-urlencoded",
         b"a=%C3%A4%26&b=d+e%2Ff&b=2&c=3"),
        ({"body": "<id>{key}</id>${TOKEN}"}, ("${TOKEN}",), "text/plain; charset=utf-8", b'<id>${TOKEN}</id>s"{key}'),
        ({"body": "{key}", "headers": {"content-type": "text/xml"}}, ("1",), None, b"1"),
    ],
)  # fmt: skip
def test_a_body_is_made_of_keys_fields_and_secrets_which_are_no_templates_themselves(
    request_: dict[str, Any], keys: tuple[str, ...], content_type: str | None, body: bytes
) -> None:
    _, payload = built(FIELDS, keys, **request_)
    assert (payload.method, payload.content_type, payload.body) == ("POST", content_type, body)
    assert 's"' not in repr(payload)


@pytest.mark.parametrize(
    ("url_", "path"),
    [
        ("https://x.example/{country}/{key}", "/d%20e%2Ff/k"),
        ("https://x.example/{country:path}/{key}?n={n}", "/d%20e/f/k?n=12"),
        ("https://x.example/{sku}", "/1%2F..%2F2"),
        ("https://x.example/q?s={sku:path}", "/q?s=1/../2"),
        ("https://x.example/{key:path}", "/k"),
    ],
)
def test_named_fields_stand_in_the_url(url_: str, path: str) -> None:
    assert built(url=url_) == (f"https://x.example{path}", GET)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"url": "https://x.example/{sku:path}"}, "stand for another page"),
        ({"url": "https://x.example/{missing}"}, "has no field 'missing'"),
        ({"headers": {"X-A": "{missing}"}}, "has no field 'missing'"),
        ({"headers": {"X-A": "{odd}"}}, "the header X-A"),
        ({"json": {"a": "{missing}"}}, "has no field 'missing'"),
        ({"json": {"a": "{country:number}"}}, "no number"),
        ({"json": {"a": "{keys:number}"}}, "no number"),
        ({"json": {"a": "{bad}"}}, "not valid UTF-8"),
        ({"url": "https://x.example/{bad}"}, "not valid UTF-8"),
    ],
)
def test_a_key_whose_fields_do_not_fit_is_refused(request_: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidUrl, match=reason) as caught:
        built(KeyContext(fields={**FIELDS.fields, "bad": "\ud800"}), **request_)
    assert "\n" not in str(caught.value)


def test_a_header_has_the_fields_of_its_key() -> None:
    _, payload = built(headers={"X-Market": "{country}-{key}", "X-Same": "a"})
    assert payload == Payload(headers=(("X-Market", "d e/f-k"),))


LISTED = KeyContext(list_key="L", page_no=2, fields=FIELDS.fields)


@pytest.mark.parametrize(
    ("request_", "params", "href", "body"),
    [
        ({}, {"page": 2, "id": "b c"}, "?id=b%20c&page=2", None),
        ({"url": "https://x.example/q?a%5B%5D=1&id={key}&a[]=2"}, {"a[]": "3&"}, "?a%5B%5D=3%26&id=L", None),
        ({"url": "https://x.example/q?cursor=*&id={key}"}, {"cursor": None, "on": True}, "?id=L&on=true", None),
        ({"json": {"variables": {"a": 1}}}, {"variables.after": "c", "first": 5}, "?id=L",
         b'{"variables":{"a":1,"after":"c"},"first":5}'),
        ({"json": {"a.b": 1}}, {"a.b": 2, "id": "M", "x.y": None}, "?id=M", b'{"a.b":2,"x":{"y":null}}'),
        ({"form": {"page": "1", "id2": "{key}"}}, {"page": 2}, "?id=L", b"page=2&id2=L"),
    ],
)  # fmt: skip
def test_a_page_of_a_list_is_the_request_of_its_list_with_other_parameters(
    request_: dict[str, Any], params: dict[str, Any], href: str, body: bytes | None
) -> None:
    context = LISTED._replace(params=params)
    found, payload = built(context, ("L page 2",), **request_)
    assert (found, payload.body) == (f"https://x.example/q{href}", body)


def test_parameters_that_have_no_place_in_the_body_refuse_the_page() -> None:
    with pytest.raises(InvalidUrl, match=r"'a\.b' is no place"):
        built(LISTED._replace(params={"a.b": 1}), json={"a": [1]})


@pytest.mark.parametrize(("next_", "ours"), [("https://x.example/q?p=2", True), ("https://other.example/", False)])
def test_the_next_link_of_a_list_is_got_and_has_credentials_only_at_the_origin_of_the_job(
    next_: str, ours: bool
) -> None:
    assert built(LISTED, (next_,), json={"a": "{key}"}) == (next_, Payload(with_credentials=ours))
    with pytest.raises(InvalidUrl):
        built(LISTED, ("ftp://x.example/",))


def test_a_page_of_a_list_of_urls_has_its_parameters_in_that_url() -> None:
    target, payload = Template(RequestSettings()).build(
        ["x"], KeyContext(list_key="https://x.example/?a=1", params={"a": 2})
    )
    assert (target.href, payload) == ("https://x.example/?a=2", GET)


def test_the_sample_of_a_template_has_a_value_for_each_field() -> None:
    sample = Template(RequestSettings(url="https://x.example/{country}/{sku:path}")).sample
    assert sample is not None
    assert sample.href == "https://x.example/key/key"
