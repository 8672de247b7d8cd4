"""From a response to pages: what they keep of its body when the job has no parser."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coordinator.model import NO_ATTEMPTS, Attempts, Outcome
from coordinator.url import parse
from crawler.fetch.attempt import FetchResult
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.model import PAGE_BYTES, HttpResponse, Item, Page, Payload, Request
from crawler.parse import hook
from crawler.parse.parser import Parser
from crawler.pipeline.page_builder import PageBuilder
from tests.crawler.examples import MOMENT, a_job, a_request
from tests.servers.scripted import headers

pytestmark = pytest.mark.anyio


async def built(
    body: bytes, content_type: str | None, *, coding: str | None = None, outcome: Outcome = Outcome.STORED
) -> Page:
    sent = {} if content_type is None else {"content_type": content_type}
    result = FetchResult(outcome, None, 1, MOMENT, HttpResponse(200, headers(etag="e", **sent), body, coding))
    (page,) = await PageBuilder(a_job(), {"": Template(a_job().request)}, {}, lambda *_: None, lambda *_: None).build(
        a_request("a"), result
    )
    return page


def fields(page: Page) -> tuple[Any, ...]:
    return page.body, page.content, page.encoding


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/json;charset=x"]
)
@pytest.mark.parametrize("body", [b'{"a":1.10}', b'["\xc3\xa9"]', b"7", b"null", b'"\xff"', b"not JSON", b" {}"])
async def test_json_in_utf8_is_kept_as_it_came_and_not_looked_through(content_type: str, body: bytes) -> None:
    page = await built(body, content_type)
    assert page.body is body
    assert fields(page) == (body, None, "utf-8")
    assert page.outcome is Outcome.STORED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ['{"a":"é"}', "7", '"日"', "[]"])
async def test_other_json_is_kept_in_utf8(encoding: str, text: str) -> None:
    page = await built(text.encode(encoding), "application/json")
    assert page.body == text.encode()
    assert page.encoding == encoding.removesuffix("-sig").replace("-le", "le").replace("-be", "be").replace(
        "utf-16", "utf-16le" if encoding == "utf-16" else "utf-16"
    )


async def test_text_is_kept_as_a_json_string() -> None:
    assert fields(await built(b"caf\xe9", "text/html")) == ('"café"'.encode(), None, "windows-1252")


async def test_anything_else_is_kept_as_content() -> None:
    body = b"\x89PNG\r\n\x1a\n" + bytes(2000)
    page = await built(body, "image/png")
    assert page.content is body
    assert (*fields(page), page.content_type) == (None, body, None, "image/png")
    assert page.memory_bytes == PAGE_BYTES + len(body)
    assert page.body_digest is not None


@pytest.mark.parametrize("content_type", ["application/json", "text/html", None])
async def test_a_coding_that_was_not_undone_makes_content(content_type: str | None) -> None:
    page = await built(b'{"a":1}', content_type, coding="x-unknown")
    assert fields(page) == (None, b'{"a":1}', "x-unknown")


async def test_a_body_that_says_it_is_json_and_is_blank_fails_its_key() -> None:
    page = await built(b" \n", "application/json")
    assert (page.outcome, page.reason) == (Outcome.FAILED, "body is not JSON: it is empty")


@pytest.mark.parametrize("content_type", ["application/json", "text/html", "image/png", None])
async def test_a_response_without_a_body_keeps_none(content_type: str | None) -> None:
    page = await built(b"", content_type)
    assert (page.outcome, *fields(page)) == (Outcome.STORED, None, None, None)


async def test_what_is_not_stored_keeps_no_body() -> None:
    assert fields(await built(b"<p>", "text/html", outcome=Outcome.GONE)) == (None, None, None)


async def test_a_page_that_fails_after_that_keeps_nothing_of_its_body() -> None:
    for body, content_type in ((b"\x89PNG\r\n\x1a\n\0", "image/png"), (orjson.dumps(1), "application/json")):
        page = await built(body, content_type)
        page.fail("why")
        assert (*fields(page), page.content_type) == (None, None, None, None)
        assert page.memory_bytes == PAGE_BYTES


def a_selecting_job(**parse: Any) -> Job:
    return a_job(
        request={"url": "https://upstream.example/{keys}", "keys_per_request": 5},
        parse={"rows": "items", "key": "id", **parse},
        tables=[{"name": "facts", "columns": {"n": "bigint"}}],
    )


async def deferred_of(
    job: Job, attempts: Attempts, body: Any, *keys: str, waited: str | None = None
) -> tuple[list[Page], list[tuple[str, Attempts, float]]]:
    """The pages of a response, and the keys that were deferred."""
    deferred: list[tuple[str, Attempts, float]] = []

    def defer(item: Item, counted: Attempts, delay: float) -> None:
        deferred.append((item.key, counted, delay))

    loaded = hook.load(job)
    assert loaded is not None
    first = a_request(keys[0])
    items = [first.items[0]._replace(key=key, digest=key.encode()) for key in keys]
    attempts_of = {} if waited is None else {waited.encode(): attempts}
    request = Request(first.first_target, items, first.upstream, attempts, attempts_of=attempts_of)
    result = FetchResult(
        Outcome.STORED, None, attempts.total + 1, MOMENT, HttpResponse(200, headers(), orjson.dumps(body))
    )
    builder = PageBuilder(job, {"": Template(job.request)}, {"": Parser(loaded, job)}, lambda *_: None, defer)
    return await builder.build(request, result), deferred


ITEMS = {"items": [{"id": "a", "n": 1}, {"id": "b", "state": "pending"}, {"id": "c", "state": "busy"}]}


async def test_of_several_keys_those_are_deferred_that_are_not_ready() -> None:
    job = a_selecting_job(wait="state = pending", retry="state = busy")
    pages, deferred = await deferred_of(job, NO_ATTEMPTS, ITEMS, "a", "b", "c")
    assert [(page.item.key, page.outcome, page.records) for page in pages] == [("a", Outcome.STORED, [(0, (1,))])]
    assert [(key, counted.failed, counted.throttled) for key, counted, _ in deferred] == [("b", 0, 1), ("c", 1, 0)]
    assert all(delay > 0 for key, _, delay in deferred if key == "b")
    assert "state = busy" in deferred[1][1].history[-1]


async def test_a_condition_of_the_response_defers_all_of_its_keys() -> None:
    job = a_selecting_job(retry="$.error.code = busy")
    pages, deferred = await deferred_of(job, NO_ATTEMPTS, {"error": {"code": "busy"}}, "a", "b")
    assert pages == []
    assert [key for key, _, _ in deferred] == ["a", "b"]


WAITED = Attempts(0, 1, ("10:00:00 not ready since 2020-01-01T10:00:00Z: state = pending",))


async def test_a_key_that_is_out_of_attempts_or_time_fails_with_its_history() -> None:
    job = a_selecting_job(retry="state = busy", wait="state = pending", wait_most="1ms")
    pages, deferred = await deferred_of(job, WAITED, ITEMS, "b")
    assert (deferred, [page.outcome for page in pages]) == ([], [Outcome.FAILED])
    assert str(pages[0].reason).startswith("not ready after 0.001 s ([parse] wait_most): 10:00:00 not ready since 2020")
    pages, deferred = await deferred_of(job, Attempts(4, 0, ("10:00:00 status 502 \u00d74",)), ITEMS, "c", "a")
    assert deferred == []
    assert [page.outcome.value for page in pages] == ["failed", "stored"]
    assert str(pages[0].reason).startswith("state = busy after 5 attempts: 10:00:00 status 502 \u00d74; ")


async def test_of_several_keys_each_has_waited_for_its_own_time() -> None:
    job = a_selecting_job(wait="state = pending")
    body = {"items": [{"id": "a", "state": "pending"}, {"id": "b", "state": "pending"}]}
    pages, deferred = await deferred_of(job, WAITED, body, "a", "b", waited="b")
    assert [(page.item.key, page.outcome) for page in pages] == [("b", Outcome.FAILED)]
    ((key, attempts, _),) = deferred
    assert (key, attempts.total) == ("a", 1)


@pytest.mark.parametrize("is_repeatable", [True, False])
async def test_keys_of_a_response_that_a_parser_fails_on_go_alone_only_where_that_does_no_harm(
    is_repeatable: bool,
) -> None:
    class Failing:
        keeps_body = False

        async def parse(self, *_: Any) -> str:
            return "parser: no"

    parser: Any = Failing()
    alone: list[Request] = []
    template = Template(a_job(request={"url": "https://upstream.example/{keys}"}).request)
    request = Request(parse("https://upstream.example/a"), [a_request(key).items[0] for key in "ab"], "x")
    request.payload = Payload("POST", is_repeatable=is_repeatable)
    result = FetchResult(Outcome.STORED, None, 1, MOMENT, HttpResponse(200, headers(), b"{}"))
    pages = await PageBuilder(
        a_job(), {"": template}, {"": parser}, lambda one, _: alone.append(one), lambda *_: None
    ).build(request, result)
    assert alone == ([request] if is_repeatable else [])
    failed = [(Outcome.FAILED, "parser: no")] * 2
    assert [(page.outcome, page.reason) for page in pages] == ([] if is_repeatable else failed)


async def test_secrets_that_a_response_quotes_are_not_in_reasons_and_found_keys() -> None:
    """Neither in what a page says, nor in the error of a response for several keys, which goes into their history."""
    request = {"url": "https://api.example/?q={keys}&k=${KEY}", "keys_per_request": 2}
    tables = [{"name": "t", "columns": {"q": "text"}}]
    job = a_job(request=request, parse={"rows": "r[]", "key": "q"}, tables=tables, paginate={"next": "next"})
    credentials = resolve_credentials(job.request, {"KEY": "s3cr3t-k"})
    found = hook.load(job)
    assert found is not None
    errors: list[str] = []
    templates, parsers = {"": Template(job.request)}, {"": Parser(found, job)}
    build = PageBuilder(
        job, templates, parsers, lambda _, error: errors.append(error), lambda *_: None, credentials
    ).build

    def result(body: Any) -> FetchResult:
        return FetchResult(Outcome.STORED, None, 1, MOMENT, HttpResponse(200, headers(), orjson.dumps(body)))

    (page,) = await build(a_request("a"), result({"r": [{"q": "a"}], "next": "/?k=s3cr3t-k&page=2"}))
    assert [one.key for one in page.found] == ["https://upstream.example/?k=${KEY}&page=2"]
    (page,) = await build(a_request("a"), result({"r": "s3cr3t-k"}))
    several = a_request("a")
    several.items = [*several.items, *a_request("b").items]
    assert await build(several, result({"r": "s3cr3t-k"})) == []
    assert page.reason == errors[0] == "parse: r[]: [] is for the elements of a list, and this is '${KEY}'"
