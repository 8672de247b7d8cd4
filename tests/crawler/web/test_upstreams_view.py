"""Which of many upstreams a page shows, and in what order."""

from __future__ import annotations

from coordinator.limits.activity import UpstreamActivity
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.unreachable import UnreachableUpstream
from coordinator.limits.upstream_health import UpstreamHealth
from crawler.web.upstreams_view import MOST_UPSTREAM_ROWS, upstream_rows


def test_those_with_trouble_come_first_and_about_equal_ones_keep_their_places() -> None:
    health = [UpstreamHealth("broken", breaker="open"), UpstreamHealth("calm", found_rate=3.0)]
    dead = [UnreachableUpstream("dead", 4, "no such host", 1.0)]
    for noise in (0.0, 0.9):
        sent = {f"host-{number:03}": UpstreamActivity(5.0 + noise * (number % 3), 0.0) for number in range(100)}
        sent |= {"busy": UpstreamActivity(50.0, 0.0), "idle": UpstreamActivity(0.0, 0.0)}
        rows = upstream_rows(UpstreamMatcher({}), health, dead, sent, {})
        names = [row["name"] for row in rows["shown"]]
        assert names[:4] == ["broken", "dead", "busy", "host-000"]
        assert names[3:] == sorted(names[3:])
        assert (len(names), rows["all"], rows["stopped"], rows["silent"]) == (MOST_UPSTREAM_ROWS, 105, 1, 1)
