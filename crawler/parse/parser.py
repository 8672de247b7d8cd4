"""The job's parser at work: in the event loop while it is quick, in a process of its own once it is slow."""

from __future__ import annotations

import logging
from time import perf_counter

from crawler.job.job import Job
from crawler.model import HttpResponse, Page
from crawler.parse.hook import Hook
from crawler.parse.slow_parser import SlowParserDetector
from crawler.pool.pool import CannotStart, Pool

logger = logging.getLogger(__name__)


class Parser:
    """A slow parse in the loop would hold up every request in flight; a quick one is done before a process is asked."""

    def __init__(self, hook: Hook, job: Job) -> None:
        self._hook = hook
        self._job = job
        self._detector: SlowParserDetector | None = SlowParserDetector()
        self._offload: Pool | None = None

    async def parse(self, pages: list[Page], url: str, http_response: HttpResponse) -> None:
        """Fill the pages with what the parser makes of the response; suspends only while its process is at work."""
        if self._offload is not None:
            await self._parse_in_child(self._offload, pages, url, http_response)
        elif self._detector is None:
            self._hook.apply(pages, url, http_response)
        else:
            began = perf_counter()
            self._hook.apply(pages, url, http_response)
            if self._detector.slow(perf_counter() - began):
                logger.info(
                    "the parser takes %.1f ms a response: from now on it runs in a process of its own",
                    1000 * self._detector.usual,
                )
                self._offload = Pool(self._job)

    async def close(self) -> None:
        """End the parser's process, if there is one."""
        if self._offload is not None:
            await self._offload.close()

    async def _parse_in_child(self, offload: Pool, pages: list[Page], url: str, http_response: HttpResponse) -> None:
        try:
            await offload.parsed(pages, url, http_response)
        except CannotStart as error:
            if self._offload is not None:
                logger.warning("the parser goes on in the worker, for it has no process of its own: %s", error)
                self._offload = self._detector = None
            self._hook.apply(pages, url, http_response)
