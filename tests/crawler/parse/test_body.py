from __future__ import annotations

import encodings
import json
import pkgutil
import warnings
from contextlib import suppress

import pytest

from crawler.parse.body import decoded, json_text

JSON = "application/json"


@pytest.mark.parametrize("content_type", [JSON, "APPLICATION/JSON; charset=utf-8", "text/json", "application/ld+json"])
@pytest.mark.parametrize(
    "body",
    [b'{"b": 1,\n "a": 1.10, "a": 1e2}', b'  "\\u00e9\xc3\xa9"  ', b"12345678901234567890.10", b"{not json", b"\xff"],
)
def test_what_says_that_it_is_json_is_kept_byte_for_byte(content_type: str, body: bytes) -> None:
    assert json_text(content_type, body) is body


@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
def test_json_without_a_value_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="body is not JSON: it is empty"):
        json_text(JSON, body)


@pytest.mark.parametrize("body", [b'{"a": 1.10}', b"\n [1,  2]"])
def test_json_is_recognised_without_a_content_type(body: bytes) -> None:
    assert json_text(None, body) is body


@pytest.mark.parametrize("body", [b"{{mustache}}", b"[not json", b"12", b"true", b""])
def test_anything_else_without_a_content_type_is_text(body: bytes) -> None:
    assert json.loads(json_text(None, body)) == body.decode()


def test_json_that_says_it_is_text_is_text() -> None:
    assert json.loads(json_text("text/plain", b'{"a": 1}')) == '{"a": 1}'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", "Zoë".encode()),
        ("text/html; charset=utf-8", "Zoë".encode()),
        ('text/html; Charset="ISO-8859-1"', "Zoë".encode("latin-1")),
        ("text/html; a=b; charset=windows-1252", "Zoë".encode("cp1252")),
        ("text/html; charset=utf-16", "Zoë".encode("utf-16")),
        ("text/html; charset=", "Zoë".encode()),
    ],
)
def test_text_becomes_one_json_string_by_its_charset(content_type: str, body: bytes) -> None:
    assert json.loads(json_text(content_type, body)) == "Zoë"
    assert decoded(content_type, body) == "Zoë"


def test_control_characters_and_quotes_survive() -> None:
    assert json.loads(json_text("text/plain", b'a"\\\x01\n')) == 'a"\\\x01\n'


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n\xff", "image/png"),
        (None, b"\xff\xfe\xff", "no content type"),
        ("text/plain", b"a\0b", "NUL"),
        ("text/plain; charset=martian", b"a", "martian"),
        ("text/plain; charset=base64", b"YQ==", "base64"),
        ("text/plain; charset=a\0b", b"a", "null character"),
        ("text/plain; charset=ascii", b"\xc3\xa9", "ascii"),
    ],
)
def test_what_is_no_text_is_an_error(content_type: str | None, body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="^body is not text") as caught:
        json_text(content_type, body)
    assert words in str(caught.value)


# These would hang the worker, or make text that neither JSON nor Postgres can hold.
@pytest.mark.parametrize(
    ("charset", "body"),
    [
        ("punycode", b"a-" + b"kva" * 10),
        ("idna", b"xn--a"),
        ("unicode_escape", rb"\ud800"),
        ("raw-unicode-escape", rb"\ud800"),
        ("UTF7", b"+2AA-"),
        ("undefined", b"a"),
    ],
)
def test_codecs_that_are_no_charsets_of_bodies_are_refused(charset: str, body: bytes) -> None:
    with pytest.raises(ValueError, match="^body is not text"):
        json_text(f"text/plain; charset={charset}", body)


ODD_BODIES = (b"plain", rb"\ud800\N{x}", b"+2AA-", b"\xed\xa0\x80\xff\xfe\x00\xd8", b"~{~~\x1b$B")


@pytest.mark.parametrize("charset", sorted(module.name for module in pkgutil.iter_modules(encodings.__path__)))
def test_no_charset_of_python_brings_more_than_a_value_error(charset: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unicode_escape warns of odd escapes
        for body in ODD_BODIES:
            with suppress(ValueError):
                json.loads(json_text(f"text/plain; charset={charset}", body))
