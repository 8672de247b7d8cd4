"""What `check` says of a job as a version of its corpus."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.source import Chunk, Cursor
from crawler.cli.display.checked import checked_job
from tests.crawler.examples import a_job

PRIVATE = "127.0.0.1 is not public; --allow-private 127.0.0.1 "
NO_KEYS = Chunk([], [], Cursor(), exhausted=False)


def checked(**sections: Any) -> list[tuple[Any, Any]]:
    return [(what, value) for what, value, _ in checked_job(a_job(**sections), NO_KEYS, None, {})]


def test_a_refresh_is_shown_with_its_bounds() -> None:
    rows = checked(
        run={"corpus": "afd", "refresh": True, "max_age": "30d"},
        publish={"max_failed": 0.02, "min_keys": 0.95, "max_incomplete": 0},
    )
    assert {
        ("run", "called after the corpus and the day"),
        ("corpus", "afd"),
        ("refresh", "only what has changed is asked for"),
        ("max age", "30d"),
        ("on failure", "keep the rows"),
        ("published", "when it is complete, max_failed 2 %, min_keys 95 %, max_incomplete 0"),
    } <= set(rows)
    assert "warning" not in dict(rows)


def test_an_address_that_requests_are_refused_for_is_warned_of() -> None:
    request = {"url": "http://127.0.0.1:8077/item/{key}"}
    assert PRIVATE in dict(checked(request=request))["warning"]
    assert "warning" not in dict(checked(request=request | {"allow_private": ["127.0.0.0/8"]}))


def test_whom_files_and_words_go_to_is_shown() -> None:
    rows = checked(publish={"export": "hf:out"}, notify={"command": "true", "webhook": "https://example.org/"})
    assert {("export", "hf:out"), ("notify", "by command and webhook")} <= set(rows)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"name": "a", "refresh": True}, "there is one run a: once it is complete nothing is refreshed"),
        ({"corpus": "a", "max_age": "1d"}, "max_age is for a refresh: add refresh = true"),
        ({"corpus": "a", "since": "yesterday"}, "since is 'yesterday', and the runs after the first have"),
    ],
)
def test_what_has_no_effect_is_warned_of(run: dict[str, Any], words: str) -> None:
    assert words in dict(checked(run=run)).get("warning", "")
    assert "warning" not in dict(checked(run={"name": "a", "since": "2026-01-01T00:00:00Z"}))
