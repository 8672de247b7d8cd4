"""Pure: what the summary of a run says of found keys, above all where nothing was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crawler.job.job import Job
from crawler.job.sections.source import SITEMAP
from crawler.store.rows.found import FoundCounts


def found_notices(job: Job, found: Mapping[str, FoundCounts], broken_lists: int) -> Sequence[str]:
    """The notices of a complete run: `found` has what was found of each kind, "" for that of the source."""
    notices = []
    if broken_lists:
        again = f"`shardcrawl retry {job.run.name} --lists`"
        notices.append(f"{broken_lists:,} lists are incomplete: {again} lets them be requested again")
    none = FoundCounts(0, 0, 0, 0)
    for one in job.every_kind:
        counts = found.get(one.kind, none)
        if one.paginate is not None and counts.pages and not counts.list_pages:
            where = f"[kinds.{one.kind}.paginate]" if one.kind else "[paginate]"
            notices.append(f"{where}: no page named a next one; is that right?")
    for number, rule in enumerate(job.follow, 1):
        kind = rule.of if rule.kind is None else rule.kind
        if found.get(rule.of, none).pages and not found.get(kind, none).followed:
            what = f"a key of kind {kind}" if kind else "a key"
            notices.append(f"[[follow]] {number}: no page named {what}; is that right?")
    if unread := found.get(SITEMAP, none).unread:
        notices.append(f"{unread:,} sitemaps could not be read: their `pages.reason` says why (kind {SITEMAP})")
    return notices
