"""What `shardcrawl fetch` shows and saves; tests/live/test_fetch.py has what it sends."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import ShardcrawlError
from crawler.fetch.exchanges import shown_credentials
from crawler.rehearsal import Rehearsal, _kept_of, save
from crawler.testing import _file_name
from crawler.text.body import kept
from tests.crawler.examples import a_job, a_page

HOSTS = {"hosts": ["api.example.org"]}
FOUND = Rehearsal("a", "stored", None, (), "https://api.example.org/a", 200, (("content-type", "text/x"),), b"body")


@pytest.mark.parametrize(
    ("request_settings", "headers"),
    [
        ({"auth": "bearer:${TOKEN}"}, [("Authorization", "Bearer ${TOKEN}")]),
        ({"auth": "basic:me:${TOKEN}"}, [("Authorization", "Basic me:${TOKEN}")]),
        ({"cookies": {"a": "1", "sid": "${TOKEN}"}}, [("Cookie", "a=1; sid=${TOKEN}")]),
        ({"headers": {"X-Key": "k-${TOKEN}", "X-Plain": "1"}}, [("X-Key", "k-${TOKEN}"), ("X-Plain", "1")]),
        ({"proxy": "${PROXY}", "headers": {"X-Plain": "1"}}, [("X-Plain", "1")]),
    ],
)
def test_headers_are_shown_with_the_names_of_their_secrets(
    request_settings: dict[str, Any], headers: list[tuple[str, str]]
) -> None:
    job = a_job(request={**HOSTS, **request_settings})
    shown = shown_credentials(job, {"TOKEN": "secret", "PROXY": "http://me:secret@proxy.example:1"})
    assert [*shown.secret_headers, *shown.headers] == headers


@pytest.mark.parametrize(
    ("content_type", "body", "columns"),
    [
        ("application/json", b'{"a": 1}', [("body", "JSON", "utf-8", 8, '{"a": 1}')]),
        ("application/json", b'"text"', [("body", "JSON", "utf-8", 6, '"text"')]),
        (None, b"[1]", [("body", "JSON", "utf-8", 3, "[1]")]),
        ("text/html", b"caf\xe9 " + 300 * b"x", [("body", ..., "windows-1252", ..., "caf\xe9 " + 195 * "x")]),
        ("image/png", b"\x89PNG", [("content", "image/png", None, 4, "\\x89PNG")]),
        ("text/html; charset=hz-gb-2312", b"x", [("body", ..., ..., ..., "\ufffd"), ("content", ..., ..., 1, "x")]),
    ],
)
def test_what_would_be_kept_of_a_body_is_shown_by_its_beginning(
    content_type: str | None, body: bytes, columns: list[tuple[Any, ...]]
) -> None:
    page = a_page("a", body=None)
    page.body, page.content, page.content_type, page.encoding = kept(content_type, body)
    shown = [(one.column, one.kind, one.encoding, one.size, one.beginning) for one in _kept_of(page)]
    assert len(shown) == len(columns)
    for one, wanted in zip(shown, columns, strict=True):
        assert all(value in (..., found) for found, value in zip(one, wanted, strict=True)), one


def test_each_key_has_a_file_of_its_own() -> None:
    keys = ["a", "a.json", "a/b", "a b", "a-b", "", ".", "..", "-", "é", "è", 300 * "x", 301 * "x", "a-", "\0"]
    names = [_file_name(key) for key in keys]
    assert names[0] == "a"
    assert len(set(names)) == len(keys)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name), name
        assert not name.endswith(".json")


def test_a_session_is_not_saved(tmp_path: Path) -> None:
    found = replace(FOUND, headers=(("Set-Cookie", "sid=1"), ("x-one", "1")))
    path = save(found, tmp_path / "new" / "folder")
    assert path is not None
    assert path.read_bytes() == b"body"
    assert json.loads(Path(f"{path}.json").read_text())["headers"] == [["x-one", "1"]]


def test_without_a_response_nothing_is_saved(tmp_path: Path) -> None:
    assert save(replace(FOUND, body=None), tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()
    with pytest.raises(ShardcrawlError, match=r"--save .*file: .*; name a folder that can be written"):
        save(FOUND, tmp_path / "file")
