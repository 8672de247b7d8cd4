"""`{since}` in the texts of a job, and what it stands for in a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Epoch
from crawler.job.job import read_job
from crawler.job.request.since import with_since
from crawler.runs.since import fixed_since
from crawler.store.rows.stored_run import StoredRun
from tests.crawler.job.examples import a_document, a_job

SINCE = "2026-11-26T08:00:00Z"
URL = "https://x.example/{key}?since={since}"


def test_since_stands_in_every_text_of_a_request_and_the_document_keeps_its_place() -> None:
    document = a_document(
        run={"name": "test", "since": SINCE},
        request={
            "url": URL,
            "headers": {"If-Modified-Since": "{since}"},
            "json": {"filter": ["updated:>{since}", {"text": "{{since}}", "secret": "${since}", "many": 1}]},
        },
        kinds={"more": {"request": {"url": "https://x.example/more/{key}?from={since}"}}},
        follow=[{"from": "links[]", "kind": "more"}],
    )
    job = read_job(document)
    assert job.request.url == "https://x.example/{key}?since=2026-11-26T08%3A00%3A00Z"
    assert job.request.headers == {"If-Modified-Since": SINCE}
    assert job.request.json == {"filter": [f"updated:>{SINCE}", {"text": "{{since}}", "secret": "${since}", "many": 1}]}
    assert job.kinds["more"].request.url == "https://x.example/more/{key}?from=2026-11-26T08%3A00%3A00Z"

    assert job.document is document
    assert job.kinds["more"].document is document


def test_a_sitemap_takes_the_day_of_since() -> None:
    source = {"sitemap": "https://x.example/sitemap.xml", "since": "{since}"}
    assert a_job(run={"name": "test", "since": SINCE}, source=source).source.since == "2026-11-26"
    with pytest.raises(UsageError, match=r"\[source\] since is '\{since\}'; write a day like .* with \[run\] since"):
        a_job(source=source)


def test_since_is_said_for_the_first_run() -> None:
    with pytest.raises(UsageError, match=r"\[request\] url names \{since\}; say in \[run\] since"):
        a_job(request={"url": URL})


@pytest.mark.parametrize("since", ["{key}", "${TOKEN}", "last week"])
def test_since_has_no_places_of_its_own(since: str) -> None:
    with pytest.raises(UsageError, match=r"\[run\] since is .* write a moment like 2026-01-01T00:00:00Z"):
        a_job(run={"name": "test", "since": since})


@pytest.mark.parametrize("sections", [{"run": []}, {"request": 1}, {"kinds": {"a": 1}}, {"kinds": 1}, {"source": "x"}])
def test_what_is_malformed_is_left_for_the_checks(sections: dict[str, Any]) -> None:
    document = {"run": {"since": SINCE}} | sections
    assert with_since(document) == document


def a_run(since: str | None = None) -> StoredRun:
    document = {"run": {} if since is None else {"since": since}}
    began = datetime(2026, 11, 26, 10, 0, 0, 999_999, timezone(timedelta(hours=2)))
    return StoredRun(1, "test", document, Epoch("e"), False, {}, began, None)


def test_a_run_asks_since_the_corpus_current_run_began_and_keeps_that() -> None:
    assert fixed_since("2026-01-01", None, None) == "2026-01-01"
    assert fixed_since("2026-01-01", None, a_run("2025-01-01")) == SINCE
    assert fixed_since("2026-01-01", a_run("2025-05-05"), a_run()) == "2025-05-05"
    assert fixed_since("2026-01-01", a_run(), a_run()) == "2026-01-01"
    newer = replace(a_run(), created_at=datetime(2026, 12, 1, tzinfo=UTC))
    assert fixed_since("2026-01-01", None, newer) == "2026-12-01T00:00:00Z"
