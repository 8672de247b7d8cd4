"""Pages of a job that follows, as the finder and the parser get them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordinator.model import NO_CONTEXT, KeyContext
from coordinator.queue.sharding import digest
from crawler.job.job import Job
from crawler.model import HttpResponse, Item, Page
from crawler.parse import hook
from tests.crawler.examples import a_job, a_page
from tests.crawler.parse.test_hook import Sent

URL = "https://shop.example/a/list?x=1"


def a_list_page(key: str = URL, context: KeyContext = NO_CONTEXT) -> Page:
    page = a_page(key, body=None)
    page.item = Item(key, digest(key, context), page.item.block, context)
    return page


def parsed(
    job: Job,
    body: bytes | str | Mapping[str, Any] | Sequence[Any],
    *pages: Page,
    url: str = URL,
    headers: Mapping[str, str] | None = None,
    status: int = 200,
) -> list[Page]:
    """The pages after the job's parser, with what they have found; by default one page, of the key URL."""
    kind = pages[0].item.context.kind if pages else ""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    given = list(pages) or [a_list_page()]
    parser = hook.load(job, kind=kind)
    assert parser is not None
    parser.apply(given, url, HttpResponse(status, Sent(headers or {}), content))
    return given


def found_keys(page: Page) -> list[str]:
    assert page.reason is None, page.reason
    return [one.key for one in page.found]


def html_job(**more: Any) -> Job:
    """A job whose pages are HTML, with a rule for all links; `rule` adds to it."""
    rule = {"from": "a @href", **more.pop("rule", {})}
    return a_job(**{"parse": {"format": "html"}, "follow": [rule], **more})


def next_of(page: Page) -> Page:
    """The page that this one names as the next one of its list."""
    (found,) = page.found
    return replace(a_list_page(), item=Item(found.key, found.digest, page.item.block, found.context))
