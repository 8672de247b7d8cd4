"""What `check` looks at: everything that a run needs, without sending a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.errors import redacted
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.connection import check_server, connect_redis
from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings
from coordinator.source import STANDARD_INPUT, Cursor
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.robots.rules import product_token
from crawler.job.job import Job, read_job
from crawler.job.models import RequestSettings
from crawler.local.run import Place, services
from crawler.opening import open_corpus
from crawler.parse import hook
from crawler.store.postgres import connect_postgres

NAMELESS = "set [request] user_agent to who you are and how to reach you"


async def check(
    place: Place, document: Mapping[str, Any], folder: str, given: Mapping[str, str], environ: Mapping[str, str]
) -> list[Sequence[Any]]:
    """Look at everything that a run needs; returns (what, value, where it came from). Raises the first fault."""
    job = read_job(document, folder)
    hook.load(job)
    resolve_credentials(job.request, environ)
    total = await asyncio.to_thread(_look_at_source, job)
    lines: list[Sequence[Any]] = [
        ("run", job.run.name, _origin(given, "name", document, "run", "name")),
        ("source", job.source.path or job.source.python, "job file"),
        ("keys", f"about {total:,}" if total is not None else "unknown until read", "source"),
        ("request", job.request.url or "each key is a URL", _origin(given, "", document, "request", "url")),
        (
            "engine",
            f"{job.request.engine}{', HTTP/2' if job.request.http2 else ''}",
            _origin(given, "", document, "request", "engine"),
        ),
        ("user agent", job.request.user_agent, _origin(given, "", document, "request", "user_agent")),
        _robots(job),
        ("workers", job.run.workers or "one a core", _origin(given, "workers", document, "run", "workers")),
        (
            "concurrency",
            f"{job.run.concurrency} a worker",
            _origin(given, "concurrency", document, "run", "concurrency"),
        ),
        ("grace", f"{job.run.grace:g} s", _origin(given, "grace", document, "run", "grace")),
        ("batch rows", job.store.batch_rows, _origin(given, "batch_rows", document, "store", "batch_rows")),
        ("attempts", job.retry.attempts, _origin(given, "", document, "retry", "attempts")),
        ("parser", job.parse.python or "none: whole body", _origin(given, "", document, "parse", "python")),
        (
            "tables",
            ", ".join(table.name for table in job.tables) or "pages only",
            "job file" if job.tables else "default",
        ),
    ]
    lines += [
        (f"limit of {upstream}", limit_words(limit), _origin(given, "rate", document, "limits", upstream))
        for upstream, limit in job.limits.items()
    ]
    if unlimited := UpstreamMatcher(job.limits).without_limit(job.request.url):
        whose = "each host" if unlimited == ANY_UPSTREAM else unlimited
        lines.append((f"limit of {whose}", limit_words(POLITE), "default: polite"))
    async with services(place, share=True) as addresses:
        client = connect_redis(addresses.redis)
        try:
            warnings = await check_server(client, addresses.redis)
        finally:
            await client.aclose()
        await (await connect_postgres(addresses.database)).close()
        lines.append(
            (
                "redis",
                redacted(place.redis) if place.redis else f"embedded in {place.data}",
                given.get("redis", "default"),
            )
        )
        lines.append(
            (
                "postgres",
                redacted(place.database) if place.database else f"embedded in {place.data}",
                given.get("database", "default"),
            )
        )
        lines += [("warning", warning, "redis") for warning in warnings]
        if job.request.user_agent == RequestSettings().user_agent:
            lines.append(("warning", NAMELESS, "default"))
    return lines


def _robots(job: Job) -> tuple[str, str, str]:
    """Whether robots.txt is obeyed, and why."""
    request = job.request
    words = f"obeyed, as {product_token(request.user_agent) or '*'}" if request.obeys_robots else "not asked for"
    reason = "keys are URLs" if request.url is None else "an API by its template"
    return "robots.txt", words, f"default: {reason}" if request.robots is None else "job file"


def limit_words(limit: LimitSettings) -> str:
    """A limit in one line."""
    return limit.rate_text + ("" if limit.concurrency is None else f", {limit.concurrency} at once")


def _look_at_source(job: Job) -> int | None:
    if job.source.path == STANDARD_INPUT:
        return None
    source = open_corpus(job, Cursor())
    try:
        source.read(1000, 1.0)
        return source.estimate()
    finally:
        source.close()


def _origin(given: Mapping[str, str], option: str, document: Mapping[str, Any], section: str, key: str) -> str:
    if option in given:
        return {"commandline": f"--{option.replace('_', '-')}", "environment": "environment"}[given[option]]
    return "job file" if key in (document.get(section) or {}) else "default"
