"""The URL of a request for one key or several, and templates that are malformed."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler.fetch.template import Template
from crawler.job.models import RequestSettings

API = "https://en.wikipedia.org/w/api.php?titles={keys}&format=json"


def url(template: str | None, *keys: str, separator: str = "|") -> str:
    return Template(RequestSettings(url=template, separator=separator)).url(keys)


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


@pytest.mark.parametrize(
    "key", ["file:///etc/passwd", "https://user:secret@x.example/", "https://x.example/a\r\nb", ""]
)
def test_a_key_that_is_no_url_can_be_requested_only_with_a_template(key: str) -> None:
    reason = Template(RequestSettings()).fault(key)
    assert reason
    assert "secret" not in reason
    assert Template(RequestSettings()).fault("https://x.example/a?b#c") is None
    assert Template(RequestSettings(url=API)).fault(key) is None


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


def test_without_a_template_the_key_is_the_url_as_it_stands() -> None:
    assert url(None, "https://X.example/a b?c=|#d") == "https://X.example/a b?c=|#d"
