"""The URL of a request for one key or several, and templates that are malformed."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.url import InvalidUrl, parse
from crawler.fetch.template import Template
from crawler.job.models import RequestSettings

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
