"""Keys, fetched and parsed as a run of their job would do it, with nothing stored: for `fetch` and `check --try`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from coordinator.errors import UsageError, first_line
from coordinator.model import EntryId, KeyContext, Outcome, ShardId
from coordinator.queue.sharding import digest
from coordinator.redis.keys import RunKeys
from coordinator.roles.membership import new_worker_id
from coordinator.tasks import run_until_first_ends
from coordinator.url import InvalidUrl
from crawler.assembly import Fetching, open_fetching
from crawler.fetch.attempt import Defer, FetchResult, Lane
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.exchanges import Exchange, RecordingEngine, shown_credentials
from crawler.fetch.network.credentials import Pairs, resolve_credentials
from crawler.fetch.retry_budget import MAX_IN_PLACE_SECONDS
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.model import Item, OpenBlock, Page, Request
from crawler.parse import hook
from crawler.parse.response import Response
from crawler.parse.values import exact_json
from crawler.pipeline.page_builder import PageBuilder
from crawler.testing import AGAIN_WORDS, Parsed, SavedResponse, parse, write_response
from crawler.transform.here import load_transforms

logger = logging.getLogger(__name__)
BEGINNING_CHARACTERS = 200
# They are for the session of one client, and a saved response is for a repository.
UNSAVED_HEADERS = frozenset({"set-cookie", "set-cookie2"})


@dataclass(frozen=True, slots=True)
class KeptBody:
    """What a column of `pages` would have of the body: `size` bytes of a kind, which begin with a text."""

    column: str
    kind: str
    encoding: str | None
    size: int
    beginning: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What became of the key. `outcome` is None when a run would go on with it later; `reason` says why.

    `url` is the last one. `headers` and `body` are those of the response that decided, if one did. `parsed` is there in
    a job with a parser, `kept` without one.
    """

    key: str
    outcome: str | None
    reason: str | None
    exchanges: Sequence[Exchange]
    url: str
    status: int | None = None
    headers: Pairs = ()
    body: bytes | None = None
    parsed: Parsed | None = None
    kept: Sequence[KeptBody] = ()
    context: KeyContext = field(default_factory=KeyContext)

    @property
    def is_stored(self) -> bool:
        """Whether a run would store the key."""
        return self.outcome == Outcome.STORED

    def as_json(self) -> Mapping[str, Any]:
        """All but the body as plain values, and values of columns."""
        names = ("key", "outcome", "reason", "url", "status", "headers")
        return {
            **{name: getattr(self, name) for name in names},
            "requests": [asdict(exchange) for exchange in self.exchanges],
            "kept": [asdict(one) for one in self.kept],
            "tables": self.parsed and self.parsed.tables,
            "traceback": self.parsed and self.parsed.traceback,
        }


async def rehearse(
    job: Job,
    keys: Sequence[str],
    client: Redis,
    environ: Mapping[str, str],
    fields: Mapping[str, Mapping[str, str]] | None = None,
    kind: str = "",
) -> list[Rehearsal]:
    """Send the request for these keys as a worker of the job's run would, within its budgets, and parse what comes.

    `fields` are those that the source carries with keys, `kind` is that of the keys. Returns what became of each key;
    they share their exchanges. Attempts that a run would defer are not waited for. Raises UsageError, before anything
    is sent, and RedisUnavailable, RedisRefused.
    """
    own = job.of_kind(kind)
    hook.load(job, kind=kind)
    load_transforms(job)
    credentials, shown = resolve_credentials(own.request, environ), shown_credentials(own, environ)
    exchanges: list[Exchange] = []

    def recorded(engine: Engine) -> Engine:
        return RecordingEngine(engine, credentials, shown, job.request.user_agent, exchanges)

    template = Template(own.request, credentials.body_secrets)
    try:
        contexts = [KeyContext(kind, fields=(fields or {}).get(key, {})) for key in keys]
        target, payload = template.build(keys, contexts[0])
    except InvalidUrl as error:
        raise UsageError(f"key {keys[0]!r} {error}; give a key that the job can request") from error
    async with AsyncExitStack() as stack:
        fetching = open_fetching(
            stack, RunKeys(job.run.name or job.corpus), new_worker_id(), job, client, environ, recorded
        )
        block = OpenBlock(ShardId(0), EntryId(""), 1, len(keys))
        items = [Item(key, digest(key, context), block, context) for key, context in zip(keys, contexts, strict=True)]
        request = Request(target, items, fetching.matcher.upstream_of(target), payload=payload)
        results: list[FetchResult | str] = []

        async def send() -> None:
            results.append(await _send(request, fetching))

        await fetching.limiter.refresh()
        await run_until_first_ends(send(), fetching.limiter.watch())
        await fetching.limiter.refresh()
    found = Rehearsal("", None, None, exchanges, request.target.href, context=contexts[0])
    result = results[0]
    if isinstance(result, str):
        return [replace(found, key=key, reason=result) for key in keys]
    found = replace(found, outcome=result.outcome.value, reason=result.reason)
    if (response := result.response) is not None:
        headers = tuple((name, credentials.hidden(text)) for name, text in response.headers.items())
        found = replace(found, status=response.status, headers=headers, body=response.body)
    if response is None or not found.is_stored:
        return [replace(found, key=key) for key in keys]
    if own.has_parser or job.follows:
        source = contexts[0].fields if len(keys) == 1 else {}
        received = Response(keys, found.url, response.status, response.headers, response.body, source=source)
        parsed = parse(job, received, kind=kind)
        return [_with_records(replace(found, key=key), parsed) for key in keys]
    pages = await PageBuilder(job, {kind: template}, {}, lambda *_: None, lambda *_: None).build(request, result)
    return [_with_body(replace(found, key=page.item.key), page) for page in pages]


def save(found: Rehearsal, folder: Path) -> Path | None:
    """Write the body, and beside it what `crawler.testing.parse_file` reads; returns the body's path.

    None when there was no response. Raises ShardcrawlError.
    """
    if found.body is None or found.status is None:
        return None
    headers = tuple(pair for pair in found.headers if pair[0].lower() not in UNSAVED_HEADERS)
    saved = SavedResponse(found.key, found.url, found.status, headers, dict(found.context.fields), found.context.kind)
    return write_response(folder, saved, found.body)


async def _send(request: Request, fetching: Fetching) -> FetchResult | str:
    """Attempt the request until it is decided; or until it would wait elsewhere, then why."""
    limiter, scheduler = fetching.limiter, fetching.scheduler
    delay = 0.0
    while True:
        upstream = request.upstream
        if (pause := limiter.resumes_at(upstream) - limiter.clock()) > MAX_IN_PLACE_SECONDS:
            return _wait_words(request, f"{upstream} is paused", pause)
        scheduler.put(request, delay)
        notice = asyncio.get_running_loop().call_later(
            MAX_IN_PLACE_SECONDS + delay, logger.warning, "waits for the budget of %s", upstream
        )
        try:
            await scheduler.next()
        finally:
            notice.cancel()
        lane = Lane()
        result = await fetching.fetcher.fetch(request, lane)
        scheduler.finished(upstream, lane.fault is None or lane.fault.sent)
        if lane.release is not None:
            lane.release()
        if isinstance(result, FetchResult):
            return result
        if isinstance(result, Defer):
            return _wait_words(request, "the key is deferred", result.delay)
        delay = result.delay


def _with_records(found: Rehearsal, parsed: Parsed) -> Rehearsal:
    """The key with what the parser made of its part of the response."""
    (outcome, reason), tables = parsed.outcomes[found.key], parsed.records_of(found.key)
    own = Parsed(tables, {found.key: (outcome, reason)}, {found.key: tables}, parsed.traceback, parsed.found)
    if outcome in AGAIN_WORDS:
        words = f"{outcome}: {reason}, and a run would request the key again"
        return replace(found, outcome=None, reason=words, parsed=own)
    return replace(found, outcome=outcome, reason=reason, parsed=own)


def _wait_words(request: Request, state: str, seconds: float) -> str:
    history = "; ".join(request.attempts.history)
    return f"{history + ': ' if history else ''}{state}, and a run would send the next request in {seconds:,.0f} s"


def _with_body(found: Rehearsal, page: Page) -> Rehearsal:
    """The key with what `pages` would have of the body."""
    _check_json(page)
    return replace(found, outcome=page.outcome.value, reason=page.reason, kept=_kept_of(page))


def _check_json(page: Page) -> None:
    """Fail a page whose JSON Postgres would not take."""
    try:
        if page.body is not None:
            exact_json.dumps(exact_json.loads(page.body))
    except (ValueError, TypeError, RecursionError) as error:
        page.fail(f"body is no JSON that Postgres takes: {first_line(error)}")


def _kept_of(page: Page) -> list[KeptBody]:
    found = []
    if (body := page.body) is not None:
        # Only text is without a type, or beside content; see crawler.text.body.kept.
        is_text = body.startswith(b'"') and (page.content_type is None or page.content is not None)
        text = exact_json.loads(body) if is_text else body.decode("utf-8", "replace")
        kind = "text, as a JSON string" if is_text else "JSON"
        found.append(KeptBody("body", kind, page.encoding, len(body), text[:BEGINNING_CHARACTERS]))
    if (content := page.content) is not None:
        beginning = content[:BEGINNING_CHARACTERS].decode("ascii", "backslashreplace")
        found.append(KeptBody("content", page.content_type or "", page.encoding, len(content), beginning))
    return found
