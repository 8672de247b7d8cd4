"""A request's reply -> the pages of its keys, parsed by the job's parser or kept whole."""

from __future__ import annotations

from collections.abc import Coroutine
from hashlib import blake2b
from typing import Any

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
        items = request.items
        single = len(items) == 1
        pages = [
            Page(
                item,
                request.asked if single else self._template.url([item.key]),
                reply.outcome,
                reply.reason,
                attempts=reply.attempts,
                fetched_at=reply.at,
            )
            for item in items
        ]
        answer = reply.answer
        if answer is None:
            return pages
        etag, modified = answer.headers.get("etag"), answer.headers.get("last-modified")
        digest = blake2b(answer.body, digest_size=16).digest() if answer.body else None
        for page in pages:
            page.status = answer.status
            page.body_digest = digest
            page.etag = etag[:SHOWN_ETAG] if etag else None
            page.last_modified = modified[:SHOWN_ETAG] if modified else None
        if reply.outcome is Outcome.STORED:
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
