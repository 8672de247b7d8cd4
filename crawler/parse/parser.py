"""Runs the job's parser: in the event loop while it is quick, in a child process once it is slow."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TypeAlias

from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.parse.hook import Hook
from crawler.parse.remote import ParseResult, ParserSetup, ParseTask, assign_results, parse_handler, parse_task
from crawler.parse.slow_parser import SlowParserDetector
from crawler.pool.pool import Pool, TaskFailed
from crawler.pool.process import ChildUnusable

logger = logging.getLogger(__name__)

ParserPool: TypeAlias = "Pool[ParserSetup, ParseTask, list[ParseResult]]"


class Parser:
    """Fills pages from responses. A slow parser moves to a child process: it would hold up every request in flight."""

    def __init__(self, hook: Hook, job: Job) -> None:
        self._hook = hook
        self._job = job
        self._detector: SlowParserDetector | None = SlowParserDetector()
        self._pool: ParserPool | None = None

    async def parse(self, pages: list[Page], url: str, response: HttpResponse) -> None:
        """Give the pages of one response their records and outcomes; suspends only while the child is at work.

        `url` is Response.url for the user's function. An error of the parser fails pages, and is not raised.
        """
        if self._pool is None:
            self._parse_here(pages, url, response)
            return
        try:
            assign_results(pages, await self._pool.run(parse_task(pages, url, response)))
        except TaskFailed as error:
            for page in pages:
                page.fail(f"parse: {error}")
        except ChildUnusable as error:
            if self._pool is not None:
                logger.warning(
                    "the parser stays in the worker, because it cannot run in a process of its own: %s", error
                )
                self._pool = self._detector = None
            self._hook.apply(pages, url, response)

    async def close(self) -> None:
        """End the parser's process, if there is one."""
        if self._pool is not None:
            await self._pool.close()

    def _parse_here(self, pages: list[Page], url: str, response: HttpResponse) -> None:
        if self._detector is None:
            self._hook.apply(pages, url, response)
            return
        began = perf_counter()
        self._hook.apply(pages, url, response)
        if self._detector.add_call(perf_counter() - began):
            logger.info(
                "the parser takes %.1f ms a response: from now on it runs in a process of its own",
                1000 * self._detector.usual_seconds,
            )
            self._move_to_child()

    def _move_to_child(self) -> None:
        self._pool = Pool(parse_handler, ParserSetup(self._job, self._hook.module_name), name="parser")
