"""What a refresh asks for: only what may have changed since the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from coordinator.model import Outcome
from coordinator.redis.retrying import retry_unavailable
from crawler.fetch.ratelimit_headers import http_date
from crawler.job.job import Job
from crawler.job.request_checks import seconds_of
from crawler.model import BasePage, Item, Page
from crawler.parse.follow.sitemap import LASTMOD, modified_by
from crawler.store.rows.base import BaseReader

# What was fetched longer after now was fetched by a clock that was wrong, and would be young for years.
MOST_SKEW_SECONDS = 3600.0
# 1991: no page of the web is older. Where builds are to be always the same, all files are of 1970 or 1980.
FIRST_PAGE_AT = 662_688_000.0
_CONDITIONS = {"if-none-match", "if-modified-since"}


class Refresh:
    """Decides which keys are carried over without a request, and which are asked for only if they have changed.

    Of the first are those that are young enough, and those that a sitemap says were changed before they were fetched.
    Neither is, where pages may name keys, where requests name the moment of the run before, or where a key carries
    columns beside itself: what is made of these may have changed. `clock` counts seconds since 1970.
    """

    def __init__(self, job: Job, base: BaseReader, *, clock: Callable[[], float] = time.time) -> None:
        self._base = base
        self._clock = clock
        self._max_age = None if job.run.max_age is None else seconds_of(job.run.max_age)
        self._key_columns = frozenset(job.source.key_columns) | ({LASTMOD} if job.source.sitemap else set())
        self._carried_kinds = frozenset(
            one.kind for one in job.every_kind if job.run.since is None and not _names_keys(one)
        )
        self._conditional_kinds = frozenset(
            one.kind for one in job.every_kind if not _CONDITIONS & {name.lower() for name in one.request.headers}
        )

    async def pages(self, digests: Sequence[bytes]) -> Mapping[bytes, BasePage]:
        """What the base has of these keys, by digest; waits until Postgres can be reached."""
        return await retry_unavailable(lambda: self._base.pages(digests), "worker")

    def fresh(self, item: Item, base: BasePage | None) -> Page | None:
        """The page of a key that is carried over without a request; None when it is to be requested."""
        if base is None or base.fetched_at is None or not (base.content and self._depends_on_key(item)):
            return None
        age = self._clock() - base.fetched_at
        if age < -MOST_SKEW_SECONDS:
            return None
        is_young = self._max_age is not None and age <= self._max_age
        if is_young or modified_by(item.context.fields.get(LASTMOD, "")) < base.fetched_at:
            return Page(item, base.url, Outcome.UNCHANGED, base=base, unmodified=True)
        return None

    def requested(self, item: Item, base: BasePage) -> BasePage:
        """What the base has of a key that is requested, without validators where it must come whole."""
        if item.context.kind in self._conditional_kinds and base.content and self._depends_on_key(item):
            return base if _is_version(base) else base._replace(last_modified=None)
        return base._replace(etag=None, last_modified=None)

    def _depends_on_key(self, item: Item) -> bool:
        """Whether the key alone decides what is requested and stored of it."""
        context = item.context
        return context.kind in self._carried_kinds and context.fields.keys() <= self._key_columns


def _is_version(base: BasePage) -> bool:
    """Whether its Last-Modified, if any, says of which version it is: no date of the future, or from before the web.

    RFC 9110, sections 13.1.3 and 8.8.2.1: what is changed before a moment of the future would never be asked for, nor
    would be what always has the same one.
    """
    if base.last_modified is None:
        return True
    modified = http_date(base.last_modified)
    return modified is not None and FIRST_PAGE_AT <= modified <= (base.fetched_at or 0.0)


def _names_keys(job: Job) -> bool:
    """Whether pages of this job's kind may name keys: a page that has not changed is not looked through for them."""
    by_rules = job.paginate or any(rule.of == job.kind for rule in job.follow)
    return job.follows and bool(by_rules or job.is_sitemap or job.parse.python)
