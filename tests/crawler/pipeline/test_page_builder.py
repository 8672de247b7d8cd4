"""From a response to pages: what they keep of its body when the job has no parser."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coordinator.model import Outcome
from coordinator.url import parse
from crawler.fetch.attempt import FetchResult
from crawler.fetch.template import Template
from crawler.model import PAGE_BYTES, HttpResponse, Page, Payload, Request
from crawler.pipeline.page_builder import PageBuilder
from tests.crawler.examples import MOMENT, a_job, a_request
from tests.servers.scripted import headers

pytestmark = pytest.mark.anyio


async def built(
    body: bytes, content_type: str | None, *, coding: str | None = None, outcome: Outcome = Outcome.STORED
) -> Page:
    sent = {} if content_type is None else {"content_type": content_type}
    result = FetchResult(outcome, None, 1, MOMENT, HttpResponse(200, headers(etag="e", **sent), body, coding))
    (page,) = await PageBuilder(Template(a_job().request), None, lambda *_: None).build(a_request("a"), result)
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


@pytest.mark.parametrize("is_repeatable", [True, False])
async def test_keys_of_a_response_that_a_parser_fails_on_go_alone_only_where_that_does_no_harm(
    is_repeatable: bool,
) -> None:
    class Failing:
        async def parse(self, *_: Any) -> str:
            return "parser: no"

    parser: Any = Failing()
    alone: list[Request] = []
    template = Template(a_job(request={"url": "https://upstream.example/{keys}"}).request)
    request = Request(parse("https://upstream.example/a"), [a_request(key).items[0] for key in "ab"], "x")
    request.payload = Payload("POST", is_repeatable=is_repeatable)
    result = FetchResult(Outcome.STORED, None, 1, MOMENT, HttpResponse(200, headers(), b"{}"))
    pages = await PageBuilder(template, parser, lambda one, _: alone.append(one)).build(request, result)
    assert alone == ([request] if is_repeatable else [])
    failed = [(Outcome.FAILED, "parser: no")] * 2
    assert [(page.outcome, page.reason) for page in pages] == ([] if is_repeatable else failed)
