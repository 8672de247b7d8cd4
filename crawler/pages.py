"""A request's reply -> the pages of its keys, parsed by the job's parser or kept whole."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from xxhash import xxh3_128_digest

from coordinator.model import Outcome
from crawler.fetch.fetcher import Reply
from crawler.fetch.template import Template
from crawler.page import Page, Request
from crawler.parse.body import json_text
from crawler.parse.parser import Parser

SHOWN_ETAG = 1000


class Pages:
    """Makes pages; without a parser the body of a stored key goes into its page."""

    def __init__(self, template: Template, parser: Parser | None) -> None:
        self._template = template
        self._parser = parser

    def made(self, request: Request, reply: Reply) -> list[Page] | Coroutine[Any, Any, list[Page]]:
        """One page for each key of the request, to be awaited when its parser is slow.

        Each key's `url` asks for that key alone.
        """
        answer = reply.answer
        status = etag = modified = digest = None
        if answer is not None:
            status = answer.status
            etag, modified = _shown(answer.headers.get("etag")), _shown(answer.headers.get("last-modified"))
            digest = xxh3_128_digest(answer.body) if answer.body else None
        outcome, reason, attempts, at, _ = reply
        single = len(request.items) == 1
        pages = []
        for item in request.items:
            url = request.asked if single else self._template.url([item.key])
            pages.append(Page(item, url, outcome, reason, status, attempts, at, etag, modified, digest))
        if answer is not None and outcome is Outcome.STORED:
            if self._parser is not None:
                return self._parser.parsed(pages, request.url, answer)
            self._keep(pages, answer.headers.get("content-type"), answer.body)
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
