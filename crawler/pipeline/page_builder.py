"""A request's reply -> the pages of its keys, parsed by the job's parser or kept whole."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from xxhash import xxh3_128_digest

from coordinator.model import Outcome
from crawler.fetch.fetcher import FetchResult
from crawler.fetch.template import Template
from crawler.model import HttpResponse, Page, Request
from crawler.parse.body import json_text
from crawler.parse.parser import Parser

SHOWN_ETAG = 1000


class PageBuilder:
    """Makes pages; without a parser the body of a stored key goes into its page."""

    def __init__(self, template: Template, parser: Parser | None) -> None:
        self._template = template
        self._parser = parser

    def made(self, request: Request, result: FetchResult) -> list[Page] | Coroutine[Any, Any, list[Page]]:
        """One page for each key of the request, to be awaited when its parser is slow.

        Each key's `url` asks for that key alone.
        """
        response = result.response
        status = etag = modified = digest = None
        if response is not None:
            status = response.status
            etag, modified = _shown(response.headers.get("etag")), _shown(response.headers.get("last-modified"))
            digest = xxh3_128_digest(response.body) if response.body else None
        outcome, reason, attempts, at, _ = result
        single = len(request.items) == 1
        pages = []
        for item in request.items:
            url = request.first_url if single else self._template.url([item.key])
            pages.append(Page(item, url, outcome, reason, status, attempts, at, etag, modified, digest))
        if response is not None and outcome is Outcome.STORED:
            if self._parser is not None:
                if self._parser.parse_now(pages, request.url, response):
                    return pages
                return self._parsed(self._parser, pages, request.url, response)
            self._keep(pages, response.headers.get("content-type"), response.body)
        return pages

    async def _parsed(self, parser: Parser, pages: list[Page], url: str, response: HttpResponse) -> list[Page]:
        await parser.parse(pages, url, response)
        return pages

    def _keep(self, pages: list[Page], content_type: str | None, body: bytes) -> None:
        if not body:
            return
        try:
            text = json_text(content_type, body)
        except ValueError as error:
            for page in pages:
                page.fail(str(error))
            return
        for page in pages:
            page.body = text


def _shown(validator: str | None) -> str | None:
    return validator[:SHOWN_ETAG] if validator else None
