"""A request's result -> the pages of its keys, with the parser's records, or with the body when there is no parser."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from xxhash import xxh3_128_digest

from coordinator.model import NO_ATTEMPTS, Attempts, Outcome
from crawler.fetch.attempt import FetchResult
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.retry import End, after_parser
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.request_checks import seconds_of
from crawler.model import Again, HttpResponse, Item, Page, Request
from crawler.parse.follow.hiding import without_secrets
from crawler.parse.parser import Parser
from crawler.text.body import is_plain_json, kept
from crawler.text.charset import UTF8

MAX_VALIDATOR_CHARACTERS = 1000


class PageBuilder:
    """Builds pages, by the template and the parser of their kind. Without a parser the body of a stored key is kept.

    `put_alone` requests each key of a request alone, for the error with which the parser failed on its response.
    `defer` takes a key for which the parser wants another response. Secrets in URLs of `credentials` are not stored.
    """

    def __init__(
        self,
        job: Job,
        templates: Mapping[str, Template],
        parsers: Mapping[str, Parser],
        put_alone: Callable[[Request, str], None],
        defer: Callable[[Item, Attempts, float], None],
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self._hidden = credentials.hidden if credentials.url_secrets else None
        self._retry_settings = job.retry
        self._wait_most = {one.kind: seconds_of(one.parse.wait_most) for one in job.every_kind}
        self._put_alone = put_alone
        self._defer = defer
        self._templates = templates
        self._parsers = parsers

    async def build(self, request: Request, result: FetchResult) -> list[Page]:
        """One page for each key of the request but those that are requested again, together or alone.

        Each page has the URL that asks for its key alone.
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
        template = self._templates[request.items[0].context.kind]
        for item in request.items:
            target = request.first_target if single else template.target([item.key], item.context)
            pages.append(Page(item, target.href, outcome, reason, status, attempts, at, etag, modified, digest))
        if response is not None and outcome is Outcome.STORED:
            parser = self._parsers.get(request.items[0].context.kind)
            if parser is not None:
                error = await parser.parse(pages, request.target.href, response)
                if self._hidden is not None:
                    error = error and self._hidden(error)
                    _hide_secrets(pages, self._hidden)
                if error is not None and not request.payload.is_repeatable:
                    for page in pages:
                        page.fail(error)
                elif error is not None:
                    self._put_alone(request, error)
                    return []
                if any(page.again for page in pages):
                    return [
                        page for page in pages if page.again is None or self._ends(page, page.again, request, response)
                    ]
            if response.body and (parser is None or parser.keeps_body):
                _keep_body([page for page in pages if page.outcome is Outcome.STORED], response)
        return pages

    def _ends(self, page: Page, again: Again, request: Request, response: HttpResponse) -> bool:
        """Defer the key of a page for which the parser wants another response; or fail the page, and return True."""
        attempts = request.attempts
        if again.waits and len(request.items) > 1:  # each has waited for another time
            attempts = (request.attempts_of or {}).get(page.item.digest, NO_ATTEMPTS)
        step = after_parser(
            again,
            response.headers,
            attempts,
            self._retry_settings,
            self._wait_most[page.item.context.kind],
            now=time.time(),
            jitter=random.random(),
        )
        if isinstance(step, End):
            page.fail(step.reason or "")
            return True
        self._defer(page.item, step.attempts, step.delay)
        return False


def _hide_secrets(pages: Sequence[Page], hidden: Callable[[str], str]) -> None:
    """Put ${NAME} in the place of secrets in what pages say and name."""
    for page in pages:
        page.reason = page.reason and hidden(page.reason)
        page.found = [without_secrets(one, hidden) for one in page.found]
        if page.again is not None:
            page.again = replace(page.again, reason=hidden(page.again.reason))


def _keep_body(pages: Sequence[Page], response: HttpResponse) -> None:
    content_type, body = response.headers.joined("content-type"), response.body
    if response.coding is None and is_plain_json(content_type, body):
        for page in pages:
            page.body, page.content_type, page.encoding = body, content_type, UTF8
        return
    try:
        fields = kept(content_type, body, response.coding)
    except ValueError as error:
        for page in pages:
            page.fail(str(error))
        return
    for page in pages:
        page.body, page.content, page.content_type, page.encoding = fields


def _cut(validator: str | None) -> str | None:
    return validator[:MAX_VALIDATOR_CHARACTERS] if validator else None
