"""Pure: what the pages show of a run's upstreams: what they are sent, how much of their budget, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import frexp
from typing import Any

from coordinator.limits.activity import UpstreamActivity, UpstreamRequests
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import limit_now
from coordinator.limits.unreachable import UnreachableUpstream
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.settings import LimitSettings
from crawler.job.sections.limits import limits_in
from crawler.store.rows.stored_run import StoredRun

# A run can have thousands; those with trouble come first, then those that are sent the most.
MOST_UPSTREAM_ROWS = 50
NOTHING_SENT = UpstreamActivity(0.0, 0.0)
NO_REQUESTS = UpstreamRequests(0, 0, 0)
# From this share of throttled requests on an upstream is in trouble, also between its pauses.
MUCH_THROTTLED = 0.05


def matcher_of(run: StoredRun) -> UpstreamMatcher:
    """The limits of a run's job. Raises UsageError for those that only a later version knows."""
    return UpstreamMatcher(limits_in(run.document.get("limits") or {}))


def upstream_rows(
    matcher: UpstreamMatcher,
    unusual: Sequence[UpstreamHealth],
    dead: Sequence[UnreachableUpstream],
    activity: Mapping[str, UpstreamActivity],
    requests: Mapping[str, UpstreamRequests],
) -> Mapping[str, Any]:
    """The upstreams to show, those with trouble first; how many there are, are stopped, and do not respond."""
    health = {one.upstream: one for one in unusual}
    unreachable = {one.upstream: one for one in dead}
    overrides = {one.upstream: one.override for one in unusual if one.override is not None}
    rows = []
    for name in {*health, *unreachable, *activity}:
        limit, sent = limit_now(name, overrides, matcher), activity.get(name, NOTHING_SENT)
        in_all = requests.get(name, NO_REQUESTS)
        rows.append(_row(name, limit, sent, in_all, health.get(name), unreachable.get(name)))
    rows.sort(key=_order)
    return {
        "shown": rows[:MOST_UPSTREAM_ROWS],
        "all": len(rows),
        "stopped": sum(row["stops"] for row in rows),
        "silent": sum(row["keys_waiting"] > 0 for row in rows),
    }


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Rates of about the same size are alike: a row that is looked at must not move with every count."""
    throttles = row["throttled"] > MUCH_THROTTLED * row["sent"]
    rate = -frexp(row["rate"])[1] if row["rate"] else 99
    return not row["stops"], not row["keys_waiting"], not throttles, rate, row["name"]


def _row(
    name: str,
    limit: LimitSettings,
    sent: UpstreamActivity,
    in_all: UpstreamRequests,
    health: UpstreamHealth | None,
    unreachable: UnreachableUpstream | None,
) -> dict[str, Any]:
    bound = (health.found_rate if health else None) if limit.auto else limit.rate
    return {
        "name": name,
        "rate": round(sent.rate, 2),
        "failing": round(sent.failing, 3),
        "sent": in_all.sent,
        "throttled": in_all.throttled,
        "limit": limit.rate_text,
        "concurrency": limit.concurrency,
        "used": round(min(1.0, sent.rate / bound), 3) if bound else None,
        "stops": health is not None and health.stops_requests,
        "trouble": health.summary if health else "",
        "keys_waiting": unreachable.keys if unreachable else 0,
        "fault": unreachable.summary if unreachable else "",
    }
