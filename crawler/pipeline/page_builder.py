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
from crawler.model import Again, Headers, HttpResponse, Item, Page, Request
from crawler.parse.follow.hiding import without_secrets
from crawler.parse.parser import Parser
from crawler.text.body import is_plain_json, kept
from crawler.text.charset import UTF8

MAX_VALIDATOR_CHARACTERS = 1000
# Sent back, the first would mean whatever there is, and that never changes. Nor does a tag with nothing in it.
OF_EVERY_VERSION = ("*", '""')
NOTHING_TO_CARRY = "said to be unchanged, but not since the base of this refresh, which may have other rows"


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
        self._incremental = job.run.since is not None
        self._transforms = bool(job.transform)
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
        response, outcome = result.response, result.outcome
        pages = self._new_pages(request, result)
        if response is not None and outcome is Outcome.STORED:
            parser = self._parsers.get(request.items[0].context.kind)
            if parser is not None:
                pages = await self._parse(pages, request, response, parser)
                for page in pages:
                    if page.outcome is Outcome.UNCHANGED:  # the body only says so: it is no content
                        page.body_digest = None
            if response.body and (parser is None or parser.keeps_body):
                _keep_body([page for page in pages if page.outcome is Outcome.STORED], response)
        if request.base is not None:
            _compare(pages, incremental=self._incremental)
            if self._transforms:
                _carry_unchanged(pages)
        return pages

    @property
    def parsing(self) -> tuple[int, int]:
        """How many responses are in parsers that run in processes of their own, and how many processes these are."""
        pools = [parser.pool for parser in self._parsers.values() if parser.pool is not None]
        return sum(len(pool) for pool in pools), len(pools)

    def _new_pages(self, request: Request, result: FetchResult) -> list[Page]:
        response = result.response
        single = len(request.items) == 1
        unmodified = result.outcome is Outcome.UNCHANGED and bool(request.conditions)
        status = etag = modified = digest = None
        if response is not None:
            status = response.status
            if single and not unmodified:  # those of a response for several keys are of none
                etag, modified = _usable(response.headers, "etag"), _usable(response.headers, "last-modified")
            digest = xxh3_128_digest(response.body) if response.body else None
        outcome, reason, attempts, at, _ = result
        pages = []
        template = self._templates[request.items[0].context.kind]
        for item in request.items:
            target = request.first_target if single else template.target([item.key], item.context)
            pages.append(Page(item, target.href, outcome, reason, status, attempts, at, etag, modified, digest))
        if request.hops and single and request.target.href != pages[0].url:
            pages[0].final_url = request.target.href
        if request.base is not None:
            for page in pages:
                page.base = request.base.get(page.item.digest)
                page.unmodified = unmodified
        return pages

    async def _parse(self, pages: list[Page], request: Request, response: HttpResponse, parser: Parser) -> list[Page]:
        """Parse, and return the pages but those of keys that are requested again, together or alone."""
        error = await parser.parse(pages, request.target.href, response)
        if self._hidden is not None:
            error = error and self._hidden(error)
            _hide_secrets(pages, self._hidden)
        if error is not None and request.payload.is_repeatable:
            self._put_alone(request, error)
            return []
        if error is not None:
            for page in pages:
                page.fail(error)
        if any(page.again for page in pages):
            return [page for page in pages if page.again is None or self._ends(page, page.again, request, response)]
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


def _compare(pages: Sequence[Page], *, incremental: bool) -> None:
    """Say which pages have the content that the base has, by its digest or by their parser.

    What is unchanged, and cannot be carried over, fails, or its rows would be gone. Not in an `incremental` run, which
    keeps them by itself.
    """
    for page in pages:
        if page.base is None or page.unmodified:
            continue
        if page.outcome is Outcome.UNCHANGED:
            page.unmodified = bool(page.base.content) and page.status != 304
            if not (page.unmodified or incremental):
                page.fail(NOTHING_TO_CARRY)
        elif page.outcome is Outcome.STORED and (page.content_digest or page.body_digest) == page.base.content:
            page.outcome = Outcome.UNCHANGED


def _carry_unchanged(pages: Sequence[Page]) -> None:
    """Let pages with the records of the base keep the rows that a transform has made of these."""
    for page in pages:
        if page.records and page.outcome is Outcome.UNCHANGED:
            page.unmodified, page.records = True, []


def _usable(headers: Headers, name: str) -> str | None:
    """The validator, None when a part of it would be cut, when it cannot be sent back, or is that of no version."""
    validator = headers.get(name)
    if not validator or len(validator) > MAX_VALIDATOR_CHARACTERS:
        return None
    if validator.removeprefix("W/") in OF_EVERY_VERSION:
        return None
    if headers.joined(name) != validator or validator.count('"') > 2:
        return None  # several lines, or one that a proxy made of them, and nobody knows which one is meant
    return validator if validator.isascii() and validator.isprintable() else None
