"""What is kept of a body: rows of Content-Type and bytes, and what a page then has."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from crawler.text.body import Kept, kept, text_of

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01"
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
GIF = b"GIF89a\x01\x00\x01\x00"
ZIP = b"PK\x03\x04\x14\x00\x00\x00\x08\x00"
GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
TAR = b"file.txt" + bytes(92) + b"0000644"
BINARY = bytes(range(256))


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "APPLICATION/JSON; charset=utf-8", "text/json", "application/ld+json", "application/json;"],
)
@pytest.mark.parametrize(
    "body",
    [b'{"b": 1,\n "a": 1.10, "a": 1e2}', b'  "\\u00e9\xc3\xa9"  ', b"12345678901234567890.10", b"{not json", b"1"],
)
def test_what_says_that_it_is_json_is_kept_byte_for_byte(content_type: str, body: bytes) -> None:
    found = kept(content_type, body)
    assert found.body is body
    assert found == Kept(body, None, content_type, "utf-8")


@pytest.mark.parametrize("body", [b" ", b" \r\n\t"])
def test_json_without_a_value_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="body is not JSON: it is empty"):
        kept("application/json", body)


DOCUMENT = '{"a": "é", "b": "日本"}'
LATIN = '{"a": "é"}'


@pytest.mark.parametrize(
    ("content_type", "body", "value", "encoding"),
    [
        ("application/json", b"\xef\xbb\xbf" + DOCUMENT.encode(), DOCUMENT, "utf-8"),
        ("application/json; charset=latin1", b"\xef\xbb\xbf" + DOCUMENT.encode(), DOCUMENT, "utf-8"),
        ("application/json; charset=utf-16", b'{"a": 1}', '{"a": 1}', "utf-8"),
        ("application/json; charset=iso-2022-kr", b'{"a": 1}', '{"a": 1}', "utf-8"),
        ("application/json", DOCUMENT.encode("utf-16"), DOCUMENT, "utf-16le"),
        ("application/json", b"\xfe\xff" + DOCUMENT.encode("utf-16-be"), DOCUMENT, "utf-16be"),
        ("application/json", DOCUMENT.encode("utf-16-le"), DOCUMENT, "utf-16le"),
        ("application/json", DOCUMENT.encode("utf-16-be"), DOCUMENT, "utf-16be"),
        ("application/json; charset=utf-8", DOCUMENT.encode("utf-16-be"), DOCUMENT, "utf-16be"),
        ("application/json; charset=utf-16", DOCUMENT.encode("utf-16-be"), DOCUMENT, "utf-16be"),
        ("application/json; charset=utf-16", DOCUMENT.encode("utf-16-le"), DOCUMENT, "utf-16le"),
        ("application/json", '"日"'.encode("utf-16-le"), '"日"', "utf-16le"),
        ("application/json", "7".encode("utf-16-be"), "7", "utf-16be"),
        ("application/json", DOCUMENT.encode("utf-32"), DOCUMENT, "utf-32"),
        ("application/json", DOCUMENT.encode("utf-32-be"), DOCUMENT, "utf-32be"),
        ("application/json; charset=ISO-8859-1", LATIN.encode("latin-1"), LATIN, "windows-1252"),
        ("application/json; charset=ISO-8859-1", LATIN.encode(), LATIN, "utf-8"),
        ("application/json; charset=iso-2022-jp", '["あ"]'.encode("iso-2022-jp"), '["あ"]', "iso-2022-jp"),
        ("application/json; charset=windows-1251", '["Да"]'.encode("cp1251"), '["Да"]', "windows-1251"),
        ("application/json; charset=utf8mb4", DOCUMENT.encode(), DOCUMENT, "utf-8"),
        ("application/json; charset=none", DOCUMENT.encode(), DOCUMENT, "utf-8"),
        (None, b'{"a": 1.10}', '{"a": 1.10}', "utf-8"),
        (None, b"\n [1,  2]", "\n [1,  2]", "utf-8"),
        (None, DOCUMENT.encode("utf-16"), DOCUMENT, "utf-16le"),
        ("application/octet-stream", b'{"a": 1.10}', '{"a": 1.10}', "utf-8"),
        ("nonsense", b"[1]", "[1]", "utf-8"),
    ],
)
def test_json_is_stored_in_utf8(content_type: str | None, body: bytes, value: str, encoding: str) -> None:
    found = kept(content_type, body)
    assert (found.body, found.content, found.encoding) == (value.encode(), None, encoding)


@pytest.mark.parametrize(
    ("content_type", "body", "text", "encoding"),
    [
        # what is text, by its type
        ("text/plain", b'{"a": 1}', '{"a": 1}', "utf-8"),
        ("text/html", "Zoë".encode(), "Zoë", "utf-8"),
        ("text/csv", b"a,b\n", "a,b\n", "utf-8"),
        ("text/calendar", b"BEGIN:VCALENDAR", "BEGIN:VCALENDAR", "utf-8"),
        ("application/xml", b"<a/>", "<a/>", "utf-8"),
        ("application/rss+xml", b"<rss/>", "<rss/>", "utf-8"),
        ("image/svg+xml", b"<svg/>", "<svg/>", "utf-8"),
        ("application/javascript", b"f({})", "f({})", "utf-8"),
        ("application/x-www-form-urlencoded", b"a=1&b=2", "a=1&b=2", "utf-8"),
        ("application/x-ndjson", b'{"a":1}\n{"a":2}\n', '{"a":1}\n{"a":2}\n', "utf-8"),
        ("application/yaml", b"a: 1", "a: 1", "utf-8"),
        # nothing is said, or that it is something: the first bytes say what it is
        (None, b"{{mustache}}", "{{mustache}}", "utf-8"),
        (None, b"[not json", "[not json", "utf-8"),
        (None, b"12", "12", "utf-8"),
        (None, b"  \n ", "  \n ", "utf-8"),
        (None, b" <a", " <a", "utf-8"),
        (None, b"Zo\xeb", "Zoë", "windows-1252"),
        (None, b"\xff\xfea\0\0\0b\0", "a\ufffdb", "utf-16le, 1 replaced"),
        (None, b"<!DOCTYPE html><meta charset=greek>\xe1", "<!DOCTYPE html><meta charset=greek>α", "iso-8859-7"),
        ("nonsense", b"plain", "plain", "utf-8"),
        ("application/octet-stream", "Zoë".encode(), "Zoë", "utf-8"),
        ("application/octet-stream", "\ufeffZoë".encode("utf-16-le"), "Zoë", "utf-16le"),
        # NUL cannot be stored; in a text it becomes U+FFFD
        ("text/html", b"<p>a\0b\0", "<p>a\ufffdb\ufffd", "utf-8, 2 replaced"),
        ("text/plain", b"a" * 1445 + b"\0", "a" * 1445 + "\ufffd", "utf-8, 1 replaced"),
        ("text/plain; charset=utf-16le", b"a\0b\0", "ab", "utf-16le"),
        ("text/plain", b'a"\\\x1b\n', 'a"\\\x1b\n', "utf-8"),
        ("text/html", b"<script>\x01\x02</script>", "<script>\x01\x02</script>", "utf-8"),
    ],
)
def test_text_becomes_one_json_string(content_type: str | None, body: bytes, text: str, encoding: str) -> None:
    found = kept(content_type, body)
    assert (found.content, found.content_type, found.encoding) == (None, None, encoding)
    assert json.loads(found.body or b"") == text
    assert text_of(content_type, body).text == text
    assert text_of(content_type, body).summary == encoding


@pytest.mark.parametrize(
    ("said", "body", "content_type"),
    [
        ("image/png", PNG, "image/png"),
        ("IMAGE/JPEG; q=1", JPEG, "image/jpeg"),
        ("application/pdf;charset=UTF-8", PDF, "application/pdf"),
        ("application/zip", ZIP, "application/zip"),
        ("video/mp4", MP4, "video/mp4"),
        ("font/woff2", b"wOF2" + bytes(9), "font/woff2"),
        ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ZIP, None),
        ("application/x-protobuf", b"plain", "application/x-protobuf"),
        ("image/png", b"not a picture", "image/png"),
        ("image/gif", b'{"error": "json"}', "image/gif"),
        # nothing is said
        (None, PNG, "image/png"),
        (None, JPEG, "image/jpeg"),
        (None, GIF, "image/gif"),
        (None, ZIP, "application/zip"),
        (None, GZIP, "application/x-gzip"),
        (None, PDF, "application/pdf"),
        (None, b"%PDF-1.4", "application/pdf"),
        (None, MP4, "video/mp4"),
        (None, TAR, "application/octet-stream"),
        (None, BINARY, "application/octet-stream"),
        (None, b"text, and then \n" * 200 + b"\0", "application/octet-stream"),
        ("", PNG, "image/png"),
        ("png", PNG, "image/png"),
        ("application/octet-stream", PNG, "image/png"),
        ("binary/octet-stream", BINARY, "application/octet-stream"),
        ("application/octet-stream", b"\xc4\xd6\xdc\xe4", "application/octet-stream"),
        # a lie
        ("text/plain", PNG, "image/png"),
        ("text/plain; charset=utf-8", GZIP, "application/x-gzip"),
        ("text/plain", BINARY, "application/octet-stream"),
        ("text/plain", b"a\0b", "application/octet-stream"),
        ("text/html; charset=UTF-8", PNG, "image/png"),
        ("text/html", ZIP, "application/zip"),
        ("application/xml", MP4, "video/mp4"),
    ],
)
def test_anything_else_is_content(said: str | None, body: bytes, content_type: str | None) -> None:
    found = kept(said, body)
    assert found.content is body
    assert found == Kept(None, body, content_type or said, None)


@pytest.mark.parametrize("content_type", ["text/html", "application/json", "image/png", None])
def test_a_body_whose_content_coding_was_not_undone_is_content(content_type: str | None) -> None:
    body = b'{"looks": "like json"}'
    assert kept(content_type, body, "compress") == Kept(
        None, body, content_type or "application/octet-stream", "compress"
    )


def test_what_browsers_decode_to_nothing_keeps_its_bytes() -> None:
    body = b"\x1b$)C\x0eGQ1[\x0f"
    found = kept("text/html; charset=iso-2022-kr", body)
    assert found == Kept(orjson.dumps("\ufffd"), body, "text/html", "replacement, 1 replaced")


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "text/html", "application/octet-stream", "text/xml", "a/b"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xfe\xff\xd8",
        b"\xef\xbb\xbf",
        b"<",
        b"<?xml",
        b"<meta charset",
        b"\r\n",
        b"\x1b$B",
    ],
)
def test_no_few_bytes_are_an_error(content_type: str | None, body: bytes) -> None:
    found: Any = kept(content_type, body)
    assert (found.content is None) != (found.body is None)
    if found.body is not None:
        orjson.loads(found.body)
