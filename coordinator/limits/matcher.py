"""Pure: which upstream a URL belongs to, and the limit that the job states for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings, Window

# A corpus can have millions of hosts; when the cache has this number of entries, it is emptied.
MAX_CACHED_AUTHORITIES = 100_000


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of `[limits]`: its name, its host, and its path if it has one; both may contain `*`."""

    name: str
    host: re.Pattern[str]
    path: re.Pattern[str] | None
    rank: tuple[int, int, str]

    @classmethod
    def parse(cls, name: str) -> _Rule:
        host, slash, path = name.partition("/")
        kind = 2 if "*" in host else 0 if slash else 1
        literals = len(name) - name.count("*")
        return cls(name, _glob(host), _glob(path) if slash else None, (kind, -literals, name))


class UpstreamMatcher:
    """The limits of a job, by upstream. The name of an upstream is its host, or the pattern that the job has for it.

    `*.example.org` is one budget for all hosts that match, `api.example.org/v2/*` one for a part of a host. `*` is the
    limit of each other host, which has a budget of its own. The most specific entry wins: a path below a host without
    `*`, then that host, then the pattern with the most literal characters.
    """

    def __init__(self, limits: Mapping[str, LimitSettings]) -> None:
        self._limits = dict(limits)
        self._limit_of_others = self._limits.pop(ANY_UPSTREAM, None)
        self._rules = sorted((_Rule.parse(name) for name in self._limits), key=lambda rule: rule.rank)
        self._rules_by_authority: dict[str, tuple[str, tuple[_Rule, ...]]] = {}
        self._limits_with_interval: dict[str, LimitSettings] = {}

    def upstream_of(self, url: str) -> str:
        """The name of an absolute URL's upstream; empty for a text that is no URL."""
        parts = url.split("/", 3)
        if len(parts) < 3:
            return ""
        rules = self._rules_by_authority.get(parts[2])
        if rules is None:
            rules = self._rules_of(parts[2])
        upstream, path_rules = rules
        if path_rules:
            path = (parts[3] if len(parts) > 3 else "").partition("#")[0]
            for rule in path_rules:
                if rule.path is not None and rule.path.fullmatch(path):
                    return rule.name
        return upstream

    def limit(self, upstream: str) -> LimitSettings:
        """The limit of an upstream by its name: its own entry, else that of `*`, else the polite default."""
        if self._limits_with_interval and (limit := self._limits_with_interval.get(upstream)) is not None:
            return limit
        return self._limits.get(upstream) or self._limit_of_others or POLITE

    def require_interval(self, upstream: str, seconds: float) -> None:
        """Require at least `seconds` between two requests (Crawl-delay), in addition to the limit of the job.

        Changes nothing when an interval at least as long is required already.
        """
        limit = self.limit(upstream)
        if not any(window.count == 1 and window.seconds >= seconds for window in limit.windows):
            self._limits_with_interval[upstream] = replace(limit, windows=(*limit.windows, Window(1, seconds)))

    def has_own_limit(self, upstream: str) -> bool:
        """Whether the job has an entry for this upstream."""
        return upstream in self._limits

    def without_limit(self, url: str | None) -> str | None:
        """The upstream of `url` when the job states no limit for it, so that it gets the polite default; else None.

        Without a URL the keys can have any host: then "*" stands for them.
        """
        if self._limit_of_others is not None:
            return None
        upstream = ANY_UPSTREAM if url is None else self.upstream_of(url)
        return None if self.has_own_limit(upstream) else upstream

    def _rules_of(self, authority: str) -> tuple[str, tuple[_Rule, ...]]:
        """The upstream of a host, and the rules for those of its paths that are upstreams of their own. Cached."""
        host = host_of(authority)
        upstream, path_rules = host, []
        for rule in self._rules:
            if rule.host.fullmatch(host):
                if rule.path is None:
                    upstream = rule.name
                    break
                path_rules.append(rule)
        if len(self._rules_by_authority) >= MAX_CACHED_AUTHORITIES:
            self._rules_by_authority.clear()
        rules = self._rules_by_authority[authority] = upstream, tuple(path_rules)
        return rules


def host_of(authority: str) -> str:
    """The host, with its port if it names one. `authority` is what a URL has between // and the next /."""
    return authority.partition("?")[0].partition("#")[0].rpartition("@")[2].lower()


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
