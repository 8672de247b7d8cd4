"""The crawlers that are measured: how each is started, and how many keys keep it busy for five to ten seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ops.bench.arena import Arena, Stored, Upstream
from ops.bench.report import Report
from ops.bench.watch import ContenderFailed, run

RUN = "bench"
DEADLINE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Course:
    """What a contender is started with: the upstream, the keys, the servers, the settings."""

    upstream: Upstream
    keys: int
    urls: Path
    redis: str
    database: str
    workers: int = 2
    http2: bool = False


@dataclass(frozen=True, slots=True)
class Contender:
    """One crawler: its command line for a course, and how many keys it gets with 4 KB bodies. `ours`: shardcrawl."""

    name: str
    keys: int
    command: Callable[[Course], list[str]]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one crawl.

    `seconds` are from its first page to its last commit, `command_seconds` those of the whole command; `cpu` and
    `servers_cpu` are the CPU seconds of its own processes, and of Redis, Postgres and nginx; `memory` is in MB.
    """

    keys: int
    seconds: float
    command_seconds: float
    cpu: float
    servers_cpu: float
    memory: float


def shardcrawl(course: Course) -> list[str]:
    """shardcrawl for a fast upstream: more requests in flight, larger batches."""
    command = by_default(course)
    with course.urls.with_name("job.toml").open("a") as job:
        job.write("[store]\nbatch_rows = 4000\n")
    return [*command, "--concurrency", "128"]


def by_default(course: Course) -> list[str]:
    """shardcrawl with default settings: a job file, and the command."""
    request = ['allow_private = ["127.0.0.0/8"]', "robots = false"]
    if course.upstream.ca is not None:
        request.append(f'ca = "{course.upstream.ca}"')
    if course.http2:
        request.append("http2 = true")
    job = course.urls.with_name("job.toml")
    job.write_text(
        "\n".join(
            [
                f'[run]\nname = "{RUN}"',
                f'[source]\npath = "{course.urls}"',
                "[request]",
                *request,
                '[limits."*"]\nrate = "none"\n',
            ]
        )
    )
    return ["crawler", "run", str(job), "--workers", str(course.workers), "--rate", "none"]


def prototype(course: Course) -> list[str]:
    """The bare prototype, which is the limit."""
    arguments = ["ops.bench.prototype", str(course.urls), course.database, "--redis", course.redis]
    if course.upstream.ca is not None:
        arguments += ["--ca", str(course.upstream.ca)]
    return [*arguments, *(["--http2"] if course.http2 else []), "--workers", str(course.workers)]


def rival(name: str, *more: str) -> Callable[[Course], list[str]]:
    """The command line of a rival: a module of ops.bench.rivals."""

    def command(course: Course) -> list[str]:
        ca = ["--ca", str(course.upstream.ca)] if course.upstream.ca is not None else []
        return [f"ops.bench.rivals.{name}", str(course.urls), course.database, *ca, *more]

    return command


def scrapy_redis(course: Course) -> list[str]:
    """scrapy-redis, which needs Redis too."""
    return [*rival("scrapy_redis_spider")(course), "--redis", course.redis]


SHARDCRAWL = Contender("shardcrawl", 120_000, shardcrawl, ours=True)
BY_DEFAULT = Contender("shardcrawl, default settings", 120_000, by_default, ours=True)
PROTOTYPE = Contender("bare prototype", 100_000, prototype)
AIOHTTP = Contender("aiohttp script", 60_000, rival("aiohttp_script"))
CRAWLEE = Contender("Crawlee", 10_000, rival("crawlee_crawler"))
SCRAPY_REDIS = Contender("scrapy-redis", 6_000, scrapy_redis)
SCRAPY = Contender("Scrapy", 5_000, rival("scrapy_spider"))
HTTPX = Contender("httpx script", 2_000, rival("httpx_script"))
# Its best on loopback, where four connections are enough. On a real network four would wait most of the time.
HTTPX_4 = Contender("httpx script, 4 in flight", 8_000, rival("httpx_script", "--concurrency", "4"))
ALL = (SHARDCRAWL, BY_DEFAULT, PROTOTYPE, AIOHTTP, CRAWLEE, HTTPX_4, SCRAPY_REDIS, SCRAPY, HTTPX)


async def crawl(arena: Arena, upstream: Upstream, contender: Contender, keys: int, **how: int) -> Result:
    """One crawl on empty servers, of items, or of so many `documents`, each of them many times.

    Raises ContenderFailed unless each key is stored once, and an item with its own body.
    """
    await arena.clear()
    urls, documents = arena.folder / "urls.txt", how.get("documents", 0)
    with urls.open("w") as file:
        for number in range(keys):
            path = f"documents/{number % documents}?key={number}" if documents else f"item/{number}"
            file.write(f"{upstream.url}/{path}\n")
    course = Course(
        upstream, keys, urls, arena.redis, arena.database, how.get("workers", 2), bool(how.get("http2", False))
    )
    last = asyncio.create_task(arena.committed(RUN, keys)) if contender.ours else None
    before = arena.servers_cpu(upstream)
    try:
        spent = await asyncio.to_thread(
            run, contender.command(course), arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS
        )
        servers = arena.servers_cpu(upstream) - before
        stored = await arena.stored()
        _check(contender, keys, replace(stored, own=stored.keys) if documents else stored)
        if last is not None:
            report = Report(keys, stored.first, await last)
            run(["crawler", "audit", RUN], arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS)
        else:
            report = Report.read(spent.out)
    finally:
        if last is not None:
            last.cancel()
    return Result(keys, report.last - report.first, spent.seconds, spent.cpu, servers, spent.memory)


def _check(contender: Contender, keys: int, stored: Stored) -> None:
    if (stored.keys, stored.own) != (keys, keys):
        raise ContenderFailed(
            f"{contender.name} stored {stored.keys} of {keys} keys, {stored.own} of them with their own body"
        )
