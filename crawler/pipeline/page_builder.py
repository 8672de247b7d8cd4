"""A request's result -> the pages of its keys, with the parser's records, or with the body when there is no parser."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_128_digest

from coordinator.model import Outcome
from crawler.fetch.fetcher import FetchResult
from crawler.fetch.template import Template
from crawler.model import Page, Request
from crawler.parse.body import json_text
from crawler.parse.parser import Parser

MAX_VALIDATOR_CHARACTERS = 1000


class PageBuilder:
    """Builds pages. Without a parser the body of a stored key goes into its page."""

    def __init__(self, template: Template, parser: Parser | None) -> None:
        self._template = template
        self._parser = parser

    async def build(self, request: Request, result: FetchResult) -> list[Page]:
        """One page for each key of the request. Each page has the URL that asks for its key alone.

        Suspends only while the parser is at work in its child process.
        """
        response = result.response
        status = etag = modified = digest = None
        if response is not None:
            status = response.status
            etag, modified = _cut(response.headers.get("etag")), _cut(response.headers.get("last-modified"))
            digest = xxh3_128_digest(response.body) if response.body else None
        outcome, reason, attempts, at, _ = result
        single = len(request.items) == 1
        pages = []
        for item in request.items:
            url = request.first_url if single else self._template.url([item.key])
            pages.append(Page(item, url, outcome, reason, status, attempts, at, etag, modified, digest))
        if response is not None and outcome is Outcome.STORED:
            if self._parser is not None:
                await self._parser.parse(pages, request.url, response)
            elif response.body:
                _keep_body(pages, response.headers.get("content-type"), response.body)
        return pages


def _keep_body(pages: Sequence[Page], content_type: str | None, body: bytes) -> None:
    try:
        text = json_text(content_type, body)
    except ValueError as error:
        for page in pages:
            page.fail(str(error))
        return
    for page in pages:
        page.body = text


def _cut(validator: str | None) -> str | None:
    return validator[:MAX_VALIDATOR_CHARACTERS] if validator else None
