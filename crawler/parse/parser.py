"""Runs the job's parser: in the event loop while it is quick, in a child process once it is slow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import perf_counter
from typing import TypeAlias

from coordinator.queue.notices import NullColumn
from coordinator.stages.timing import Timing
from coordinator.user_code import OutOfTime, TimeLimit
from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.parse.hook import Hook, Remarks
from crawler.parse.null_columns import NullColumnWatch
from crawler.parse.remote import ParsedResponse, ParserSetup, ParseTask, assign_results, parse_handler, parse_task
from crawler.parse.slow_parser import MAX_CALL_SECONDS_IN_LOOP, SlowParserDetector, call_seconds, thread_moment
from crawler.pool.pool import KILL_SLACK_SECONDS, Pool, TaskFailed
from crawler.pool.process import ChildUnusable

logger = logging.getLogger(__name__)

ParserPool: TypeAlias = "Pool[ParserSetup, ParseTask, ParsedResponse]"
# A parser that failed on so many keys that were requested alone, and on every other response meanwhile, fails on
# everything: to request still more keys alone would cost the upstream's budget and help none.
MAX_FAILED_ALONE = 100
TURNED_NULL = "column %s: has the response changed?"


class Parser:
    """Fills pages from responses. A slow parser moves to a child process: it would hold up every request in flight."""

    def __init__(
        self,
        hook: Hook,
        job: Job,
        files: Mapping[str, str] | None = None,
        kind: str = "",
        timing: Timing | None = None,
    ) -> None:
        """`files` are the digests of the parser's files, see parser_files; `kind` is that of the keys. `timing` counts
        how long the parser takes.
        """
        self._timing = timing or Timing()
        self._kind = kind
        own = job.of_kind(kind)
        # A page that is only searched for keys keeps its body.
        self.keeps_body = not own.has_parser
        self._hook = hook
        self._job = job
        self._files = files
        self._detector: SlowParserDetector | None = SlowParserDetector()
        self._limit = TimeLimit(MAX_CALL_SECONDS_IN_LOOP)
        self.pool: ParserPool | None = None
        is_watched = own.parse.python is None and not job.transform  # columns are not known before a transform
        self._null_columns = NullColumnWatch(job.tables) if is_watched else None
        self._failed_alone = self._failed_together = self._unknown_names = 0

    async def parse(self, pages: list[Page], url: str, response: HttpResponse) -> str | None:
        """Give the pages of one response their records and outcomes; suspends only while the child is at work.

        `url` is Response.url for the user's function. An error of the parser fails pages, and is not raised. When any
        one of several keys may be the reason for it, this returns the error: then each should be requested alone.
        """
        if self.pool is None and self._detector is not None and pages[0].item.block.deliveries > 1:
            self._move_to_child("gets keys that a worker died with")
        pool = self.pool
        remarks = None
        if pool is None:
            try:
                remarks = self._parse_here(pages, url, response)
            except OutOfTime as error:
                pool = self._move_to_child(f"gave {error}")
        if pool is not None:
            remarks = await self._parse_in_child(pool, pages, url, response)
        if self._null_columns is not None:
            for name in self._null_columns.add(pages):
                logger.warning(TURNED_NULL, NullColumn(name, self.turned_null[name]).summary)
        if remarks is None:
            self._failed_alone = 0
            return None
        return self._consider(remarks, keys=len(pages))

    @property
    def turned_null(self) -> Mapping[str, float]:
        """The columns of selectors that turned null, as table.column, and since when; it grows."""
        return self._null_columns.turned if self._null_columns else {}

    def _consider(self, remarks: Remarks, *, keys: int) -> str | None:
        """Log what has to be said; returns the error when each of the keys should be requested alone."""
        error, unknown = remarks
        if unknown:
            before, self._unknown_names = self._unknown_names, self._unknown_names + len(unknown)
            if not before or len(str(before)) < len(str(self._unknown_names)):  # the 1st, about the 10th, the 100th, …
                logger.warning(
                    "the parser named %r, which is no key of its request; %d such names so far, and nothing became of "
                    "them. Where the upstream has another name for a key, see [parse] alias and response.key_for",
                    unknown[0],
                    self._unknown_names,
                )
        if error is None or keys == 1:
            self._failed_alone = 0 if error is None else self._failed_alone + 1
            return None
        self._failed_together += 1
        if self._failed_together == 1:
            logger.warning(
                "the parser failed on a response for %d keys, which are now requested alone: %s", keys, error
            )
        return error if self._failed_alone < MAX_FAILED_ALONE else None

    async def _parse_in_child(
        self, pool: ParserPool, pages: list[Page], url: str, response: HttpResponse
    ) -> Remarks | None:
        try:
            parsed = await pool.run(parse_task(pages, url, response))
        except TaskFailed as error:
            for page in pages:
                page.fail(f"parse: {error}")
            return Remarks(pages[0].reason, ())
        except ChildUnusable as error:
            if self.pool is not None:
                logger.warning(
                    "the parser stays in the worker, because it cannot run in a process of its own: %s", error
                )
                self.pool = self._detector = None
            return self._parse_here(pages, url, response)
        self._timing.add(parsed.seconds)
        assign_results(pages, parsed.keys)
        return parsed.remarks

    async def close(self) -> None:
        """End the parser's process, if there is one."""
        if self.pool is not None:
            await self.pool.close()

    def _parse_here(self, pages: list[Page], url: str, response: HttpResponse) -> Remarks | None:
        """Parse in the loop. Raises OutOfTime when the call may be begun anew in a child."""
        detector = self._detector
        close = thread_moment() if detector is not None and detector.is_close else None
        began = perf_counter()
        try:
            with self._limit:
                remarks = self._hook.apply(pages, url, response)
        except OutOfTime as error:
            if detector is not None:
                raise
            return self._hook.fail(pages, error)
        wall = perf_counter() - began
        self._timing.add(wall)
        if detector is not None and detector.add_call(
            *((wall, wall) if close is None else call_seconds(close, thread_moment()))
        ):
            self._move_to_child(f"takes {1000 * detector.usual_seconds:.1f} ms a response")
        return remarks

    def _move_to_child(self, reason: str) -> ParserPool:
        logger.info("the parser %s: from now on it runs in a process of its own", reason)
        setup = ParserSetup(self._job, self._hook.module_name, self._files, self._kind)
        own = self._job.of_kind(self._kind)
        self.pool = Pool(parse_handler, setup, name="parser", seconds=own.parse.timeout + KILL_SLACK_SECONDS)
        return self.pool
