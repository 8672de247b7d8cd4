"""What a refresh carries over without a request, what it asks for only if it has changed, and what comes whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from xxhash import xxh3_128_digest

from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import KeyContext, Outcome
from coordinator.queue.sharding import digest
from coordinator.url import parse
from crawler.fetch.attempt import FetchResult, Lane, Meter, RetryInPlace
from crawler.fetch.engines.response.headers import RawHeaders
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.models import StoreSettings
from crawler.model import BasePage, HttpResponse, Item, Page, Payload, Request
from crawler.parse import hook
from crawler.parse.content import digest_of_records
from crawler.parse.hook import Hook
from crawler.parse.parser import Parser
from crawler.pipeline.batch import Batch
from crawler.pipeline.intake import Intake
from crawler.pipeline.page_builder import MAX_VALIDATOR_CHARACTERS, NOTHING_TO_CARRY, PageBuilder
from crawler.pipeline.refresh import Refresh
from crawler.pipeline.scheduler import Scheduler
from tests.coordinator.parts import ONE, Run, numbered, record_of
from tests.crawler.examples import MOMENT, a_job, a_page, a_request
from tests.servers.scripted import ScriptedEngine, ScriptedLimiter, response
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

URL = "https://upstream.example/a"
MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
SOURCE = {"path": "keys.csv", "key": ["sku", "country"], "carry": ["caption"]}
BASE = BasePage(URL, '"a"', MODIFIED, MOMENT, b"content", is_kept=True)
CONDITIONS = (("If-None-Match", '"a"'), ("If-Modified-Since", MODIFIED))


def a_refresh(job: Job, *, age: float = 0.0) -> Refresh:
    reader: Any = None
    return Refresh(job, reader, clock=lambda: MOMENT + age)


def an_item(**context: Any) -> Item:
    return a_page("a").item._replace(context=KeyContext(**context))


def asking(base: BasePage | None = BASE, **fields: Any) -> Request:
    request = a_request("a")
    for name, value in fields.items():
        setattr(request, name, value)
    request.base = {} if base is None else {request.items[0].digest: base}
    return request


# -- what is sent


def test_a_request_for_one_key_has_the_validators_of_the_url_that_it_goes_to() -> None:
    assert asking().conditions == CONDITIONS
    assert asking(BASE._replace(etag=None)).conditions == CONDITIONS[1:]
    assert asking(BASE._replace(last_modified=None)).conditions == CONDITIONS[:1]
    assert asking(None).conditions == ()
    assert asking(BASE._replace(url="https://elsewhere.example/a")).conditions == ()
    assert asking(target=parse("https://elsewhere.example/a")).conditions == ()
    assert asking(payload=Payload("POST")).conditions == ()
    assert asking(items=[an_item(), an_item()]).conditions == ()
    assert a_request("a").conditions == ()


class Recording(ScriptedEngine):
    """An engine that keeps the headers of each request."""

    sent: list[tuple[tuple[str, str], ...]]

    async def fetch(self, method: str, target: Any, headers: Any, *rest: Any, **named: Any) -> HttpResponse:
        self.sent = [*getattr(self, "sent", ()), headers]
        return await super().fetch(method, target, (), *rest, **named)


async def test_validators_are_sent_only_to_the_url_that_responded_in_the_base() -> None:
    engine = Recording(response(302, location="/final"), response(304))
    limiter: Any = ScriptedLimiter()
    fetcher = Fetcher(engine, limiter, UpstreamMatcher({}), a_job(), Meter())
    request = asking(BASE._replace(url="https://upstream.example/final"))
    assert isinstance(await fetcher.fetch(request, Lane()), RetryInPlace)
    result = await fetcher.fetch(request, Lane())
    assert engine.sent == [(), CONDITIONS]
    assert isinstance(result, FetchResult)
    (page,) = await a_builder(a_job()).build(request, result)
    assert (page.outcome, page.is_carried, page.final_url) == (
        Outcome.UNCHANGED,
        True,
        "https://upstream.example/final",
    )


@pytest.mark.parametrize("status", [400, 403, 412, 431])
async def test_what_is_refused_because_of_its_conditions_is_requested_once_more_without_them(status: int) -> None:
    limiter: Any = ScriptedLimiter()
    for last, outcome in ((response(200, b"{}"), Outcome.STORED), (response(status), Outcome.REFUSED)):
        engine = Recording(response(status), last)
        fetcher = Fetcher(engine, limiter, UpstreamMatcher({}), a_job(), Meter())
        request = asking()
        assert isinstance(await fetcher.fetch(request, Lane()), RetryInPlace)
        assert limiter.reports.pop() == (request.upstream, {"undecided": 1}), "as a probe it makes way for the next one"
        result = await fetcher.fetch(request, Lane())
        assert engine.sent == [CONDITIONS, ()]
        assert isinstance(result, FetchResult)
        assert (result.outcome, result.attempts) == (outcome, 1)


@pytest.mark.parametrize("status", [400, 403])
async def test_what_is_refused_because_of_a_limit_is_requested_with_its_conditions_again(status: int) -> None:
    limiter: Any = ScriptedLimiter()
    throttled = response(status, b"Rate limit exceeded", retry_after="1")
    engine = Recording(throttled, response(304))
    fetcher = Fetcher(engine, limiter, UpstreamMatcher({}), a_job(), Meter())
    request = asking()
    assert isinstance(await fetcher.fetch(request, Lane()), RetryInPlace)
    assert limiter.resumes_at(request.upstream)
    assert isinstance(await fetcher.fetch(request, Lane()), FetchResult)
    assert engine.sent == [CONDITIONS, CONDITIONS]


@pytest.mark.parametrize(
    ("modified", "is_sent"),
    [
        (MODIFIED, True),
        ("Thursday, 01-Jan-26 00:00:00 GMT", True),
        ("Thu Jan  1 00:00:00 2026", True),
        ("2026-01-01T00:00:00Z", True),
        ("Sun, 01 Jan 2040 00:00:00 GMT", False),
        ("Tue, 06 Aug 1991 00:00:00 GMT", True),
        ("Fri, 01 Feb 1980 00:00:00 GMT", False),
        ("Thu, 01 Jan 1970 00:00:01 GMT", False),
        ("never", False),
        ("0", False),
        ("-1", False),
    ],
)
def test_a_last_modified_that_is_of_no_version_is_not_sent(modified: str, is_sent: bool) -> None:
    base = BASE._replace(last_modified=modified)
    sent = a_refresh(a_job()).requested(an_item(), base)
    assert sent == (base if is_sent else base._replace(last_modified=None))


# -- what is decided


@pytest.mark.parametrize(("age", "fresh"), [(0, True), (86_400, True), (86_401, False), (-60, True), (-4000, False)])
def test_what_is_younger_than_max_age_is_carried_over(age: float, fresh: bool) -> None:
    refresh = a_refresh(a_job(run={"name": "x", "max_age": "1d"}), age=age)
    page = refresh.fresh(an_item(), BASE)
    assert (page is not None) == fresh
    assert page is None or (page.outcome, page.is_carried) == (Outcome.UNCHANGED, True)
    for base in (None, BASE._replace(fetched_at=None), BASE._replace(content=b"")):
        assert refresh.fresh(an_item(), base) is None
    assert a_refresh(a_job()).fresh(an_item(), BASE) is None


FOLLOWING = {
    "kinds": {
        "plain": {},
        "listed": {"paginate": {"next": "next?"}},
        "followed": {},
        "parsed": {"request": {"url": "https://upstream.example/{key}"}, "parse": {"python": "a:b"}},
    },
    "follow": [{"from": "a", "kind": kind} for kind in ("plain", "listed", "followed", "parsed")]
    + [{"from": "a", "of": "followed"}],
}


@pytest.mark.parametrize(("kind", "whole"), [("", 1), ("plain", 0), ("listed", 1), ("followed", 1), ("parsed", 1)])
def test_what_may_name_keys_comes_whole(kind: str, whole: int) -> None:
    refresh = a_refresh(a_job(run={"name": "x", "max_age": "1h"}, **FOLLOWING))
    item = an_item(kind=kind)
    assert bool(refresh.requested(item, BASE).conditions) != bool(whole)
    assert (refresh.fresh(item, BASE) is None) == bool(whole)


def test_what_carries_columns_comes_whole_because_they_may_have_changed() -> None:
    job = a_job(run={"name": "x", "max_age": "1h"}, source=SOURCE, request={"url": "https://x.example/{sku}"})
    refresh = a_refresh(job)
    assert refresh.requested(an_item(fields={"sku": "1", "country": "de"}), BASE) == BASE
    carrying = an_item(fields={"sku": "1", "country": "de", "caption": "one"})
    assert refresh.requested(carrying, BASE).conditions == ()
    assert refresh.requested(carrying, BASE).content == BASE.content
    assert refresh.fresh(carrying, BASE) is None


@pytest.mark.parametrize(
    ("lastmod", "carried"),
    [
        ("2026-01-01T00:00:00Z", True),
        ("2026-01-01T01:00:00.1+01:00", True),
        ("2026-01-01T00:00:01Z", False),
        ("2025-12-30", True),
        ("2025-12-31", False),
        ("2026-01-01T00:00:00", False),
        ("2025-12", False),
        ("yesterday", False),
        ("9999-12-31", False),
        ("", False),
    ],
)
def test_what_a_sitemap_says_was_changed_before_it_was_fetched_is_carried_over(lastmod: str, carried: bool) -> None:
    """It was fetched on 2026-01-01T00:00:00.123457Z. A day without a time may last until the noon after it."""
    refresh = a_refresh(a_job(source={"sitemap": "https://upstream.example/sitemap.xml"}))
    item = an_item(fields={"lastmod": lastmod} if lastmod else {})
    assert (refresh.fresh(item, BASE) is not None) == carried
    assert refresh.fresh(item, BASE._replace(fetched_at=None)) is None
    assert refresh.requested(item, BASE) == BASE
    assert a_refresh(a_job()).fresh(item, BASE) is None, "no other source has a column of that meaning"


def test_an_incremental_job_requests_everything() -> None:
    run = {"name": "x", "max_age": "1h", "since": "2026-01-01T00:00:00Z"}
    refresh = a_refresh(a_job(run=run, request={"url": "https://x.example/{key}?since={since}"}))
    assert refresh.fresh(an_item(), BASE) is None
    assert refresh.requested(an_item(), BASE).conditions == ()


@pytest.mark.parametrize("name", ["if-none-match", "If-Modified-Since"])
def test_own_conditions_win(name: str) -> None:
    assert a_refresh(a_job(request={"headers": {name: "x"}})).requested(an_item(), BASE).conditions == ()


# -- what becomes of responses


def a_builder(job: Job, parse_response: Any = None) -> PageBuilder:
    loaded = hook.load(job) if parse_response is None else Hook(parse_response, [], __name__)
    parsers = {} if loaded is None else {"": Parser(loaded, job)}
    return PageBuilder(job, {"": Template(job.request)}, parsers, lambda *_: None, lambda *_: None)


async def built(base: BasePage | None, http: HttpResponse, job: Job | None = None, parse_response: Any = None) -> Page:
    outcome = Outcome.UNCHANGED if http.status == 304 else Outcome.STORED
    builder = a_builder(job or a_job(), parse_response)
    (page,) = await builder.build(asking(base), FetchResult(outcome, None, 1, MOMENT, http))
    return page


async def test_a_response_with_the_content_that_the_base_has_is_unchanged_and_stored() -> None:
    body = b'{"a":1}'
    same = BASE._replace(content=xxh3_128_digest(body))
    page = await built(same, response(200, body, content_type="application/json"))
    assert (page.outcome, page.is_carried, page.body) == (Outcome.UNCHANGED, False, body)
    for base in (BASE, BASE._replace(content=b""), None):
        page = await built(base, response(200, body, content_type="application/json"))
        assert (page.outcome, page.is_carried) == (Outcome.STORED, False)


async def test_records_are_compared_where_there_are_any() -> None:
    job = a_job(tables=[{"name": "facts", "columns": {"n": "bigint"}}])
    same = BASE._replace(content=digest_of_records([(0, (1,))]))
    page = await built(same, response(200, b'{"n": 1, "request": 77}', content_type="application/json"), job)
    assert (page.outcome, page.is_carried, page.records) == (Outcome.UNCHANGED, False, [(0, (1,))])
    page = await built(same, response(200, b'{"n": 2}', content_type="application/json"), job)
    assert (page.outcome, page.content_digest) == (Outcome.STORED, digest_of_records([(0, (2,))]))


async def test_records_for_a_transform_are_compared_before_it_and_the_base_keeps_what_it_made_of_them() -> None:
    job = a_job(tables=[{"name": "facts", "columns": {"n": "bigint"}}], transform={"python": "a:b"})
    same = BASE._replace(content=digest_of_records([(0, {"n": "1"})]))  # type: ignore[list-item]
    page = await built(same, response(200, b'{"n": "1", "request": 77}', content_type="application/json"), job)
    assert (page.outcome, page.is_carried, page.records) == (Outcome.UNCHANGED, True, [])
    page = await built(same, response(200, b'{"n": "2"}', content_type="application/json"), job)
    assert (page.outcome, page.is_carried, page.records) == (Outcome.STORED, False, [(0, {"n": "2"})])


async def test_a_304_to_a_request_without_validators_takes_no_rows_away() -> None:
    """It may be one to a header of the job's own, which is not about the base."""
    page = await built(None, response(304))
    assert (page.outcome, page.is_carried) == (Outcome.UNCHANGED, False)
    for is_kept in (True, False):
        page = await built(BASE._replace(etag=None, last_modified=None, is_kept=is_kept), response(304))
        assert (page.outcome, page.reason, page.is_carried) == (Outcome.FAILED, NOTHING_TO_CARRY, is_kept)
    incremental = a_job(run={"name": "x", "since": "2026-01-01"}, request={"url": f"{URL}?key={{key}}&since={{since}}"})
    page = await built(BASE._replace(etag=None, last_modified=None), response(304), incremental)
    assert (page.outcome, page.is_carried) == (Outcome.UNCHANGED, False)


async def test_a_parser_may_say_that_a_key_is_unchanged() -> None:
    def unchanged(received: Any) -> Mapping[str, Sequence[Any]]:
        received.unchanged(received.key)
        return {}

    page = await built(BASE, response(200, b"{}"), parse_response=unchanged)
    assert (page.outcome, page.is_carried) == (Outcome.UNCHANGED, True)
    page = await built(BASE._replace(content=b""), response(200, b"{}"), parse_response=unchanged)
    assert (page.outcome, page.reason, page.is_carried) == (Outcome.FAILED, NOTHING_TO_CARRY, True)
    page = await built(None, response(200, b"{}"), parse_response=unchanged)
    assert (page.outcome, page.is_carried, page.content_digest, page.body_digest) == (
        Outcome.UNCHANGED,
        False,
        b"",
        None,
    )


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_failed_key_keeps_its_content_if_the_job_wants_that(is_kept: bool) -> None:
    base = BASE._replace(is_kept=is_kept)
    result = FetchResult(Outcome.FAILED, "timeout", 5, MOMENT, None)
    (page,) = await a_builder(a_job()).build(asking(base), result)
    assert page.is_carried == is_kept
    job = a_job(tables=[{"name": "facts", "columns": {"n": "bigint"}}])
    page = await built(base, response(200, b"no JSON"), job)
    assert (page.outcome, page.is_carried) == (Outcome.FAILED, is_kept)
    (page,) = await a_builder(a_job()).build(
        asking(base), FetchResult(Outcome.GONE, "status 404", 1, MOMENT, response(404))
    )
    assert not page.is_carried


@pytest.mark.parametrize("etag", ["x" * (MAX_VALIDATOR_CHARACTERS + 1), '"é"', '"a\nb"', "*", "", '""', 'W/""', "W/*"])
async def test_a_validator_that_cannot_be_sent_back_whole_or_is_of_every_version_is_none(etag: str) -> None:
    assert (await built(None, response(200, b"{}", etag=etag))).etag is None
    longest = "x" * MAX_VALIDATOR_CHARACTERS
    assert (await built(None, response(200, b"{}", etag=longest))).etag == longest


async def test_of_several_validators_nobody_knows_which_one_is_meant() -> None:
    lines = [(b"etag", b'"a"'), (b"ETag", b'"b"'), (b"last-modified", MODIFIED.encode())]
    page = await built(None, HttpResponse(200, RawHeaders(lines), b"{}"))
    assert (page.etag, page.last_modified) == (None, MODIFIED)
    assert (await built(None, response(200, b"{}", etag='W/"a", "b"'))).etag is None, "a proxy may join the lines"


async def test_validators_of_several_keys_are_of_none() -> None:
    job = a_job(request={"url": "https://upstream.example/{keys}", "keys_per_request": 2})
    request = asking(items=[an_item(), an_item()])
    http = response(200, orjson.dumps({}), etag="x", last_modified=MODIFIED)
    pages = await a_builder(job).build(request, FetchResult(Outcome.STORED, None, 1, MOMENT, http))
    assert [(page.etag, page.last_modified) for page in pages] == [(None, None)] * 2


# -- the intake


class Reader:
    """A base that has these keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.requested: list[bytes] = []
        self._pages = {digest(key): BASE for key in keys}

    async def pages(self, digests: Sequence[bytes]) -> Mapping[bytes, BasePage]:
        self.requested += digests
        return {one: self._pages[one] for one in digests if one in self._pages}


async def test_carried_pages_wait_for_room_in_the_batch(redis: Redis) -> None:
    """The batch is flushed meanwhile, so it has room again; keys that the base has not are requested."""
    run = await Run.create(redis, record_of(shards=1))
    await run.streams.join(ONE)
    keys = numbered(100)
    await run.publish(keys)
    reader: Any = Reader(keys[:90])
    limiter: Any = ScriptedLimiter()
    batch = Batch(StoreSettings(batch_rows=20, batch_age=60))
    scheduler = Scheduler(limiter, enough=10)
    job = a_job(run={"name": "x", "max_age": "1h"}, request={"url": "https://upstream.example/{key}"})
    intake = Intake(
        streams=run.streams,
        done=run.done,
        worker=ONE,
        batch=batch,
        templates={"": Template(job.request)},
        matcher=UpstreamMatcher({}),
        scheduler=scheduler,
        keys_per_request={"": 1},
        refresh=Refresh(job, reader, clock=lambda: MOMENT),
    )
    feeding = asyncio.create_task(intake.feed())
    carried: list[Page] = []
    try:
        async with asyncio.timeout(10):
            while len(carried) < 90:
                left = 90 - len(carried)
                await eventually(lambda left=left: batch.full or len(batch) == left, "the intake waits for room")
                assert len(batch) <= 20
                batch.make_due()
                load = await batch.due()
                assert load is not None
                carried += load.pages
                batch.flushed()
        await eventually(lambda: scheduler.at_hand == 10, "the other keys are requested")
    finally:
        feeding.cancel()
    assert {page.item.key for page in carried} == set(keys[:90])
    assert all(page.is_carried for page in carried)
    assert len(reader.requested) == 100
