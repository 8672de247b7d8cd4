"""Pure: which upstream a target belongs to, and the limit that the job states for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings, Window
from coordinator.url import Origin, Target

# A corpus can have millions of hosts; when the cache has this number of entries, it is emptied.
MAX_MATCHED_ORIGINS = 100_000

_PORT = re.compile(r":([0-9]+)$")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of `[limits]`: its name, its host, port and path; host and path may contain `*`, None is any."""

    name: str
    host: re.Pattern[str]
    port: int | None
    path: re.Pattern[str] | None
    rank: tuple[int, bool, int, str]

    @classmethod
    def parse(cls, name: str) -> _Rule:
        authority, slash, path = name.partition("/")
        port = _PORT.search(authority)
        host = authority[: port.start()] if port else authority
        kind = 2 if "*" in host else 0 if slash else 1
        literals = len(name) - name.count("*")
        return cls(
            name,
            _glob(host),
            int(port[1]) if port else None,
            _glob(path) if slash else None,
            (kind, port is None, -literals, name),
        )


class UpstreamMatcher:
    """The limits of a job, by upstream. The name of an upstream is its host, or the entry that the job has for it.

    `example.org` is one budget for all ports of that host, `example.org:8443` one for that port. `*.example.org` is one
    for all hosts that match, `api.example.org/v2/*` one for a part of a host. `*` is the limit of each other host, or
    port of a host, which has a budget of its own. The most specific entry wins: a path below a host without `*`, then
    that host, then the pattern with the most literal characters; of each of these first the one that names the port.
    The names must be as `Origin` and `Target` write them. `matched` are the entries that a target has met so far.
    """

    def __init__(self, limits: Mapping[str, LimitSettings]) -> None:
        self._limits = dict(limits)
        self._limit_of_others = self._limits.pop(ANY_UPSTREAM, None)
        self._rules_by_origin: dict[str, tuple[str, tuple[_Rule, ...]]] = {}
        self._limits_with_interval: dict[str, LimitSettings] = {}
        self.matched: set[str] = set()

    def upstream_of(self, target: Target) -> str:
        """The name of a target's upstream."""
        rules = self._rules_by_origin.get(target.origin.text)
        if rules is None:
            rules = self._rules_of(target.origin)
        upstream, path_rules = rules
        for rule in path_rules:
            if rule.path is not None and rule.path.fullmatch(target.path, 1):
                self.matched.add(rule.name)
                return rule.name
        return upstream

    def limit(self, upstream: str) -> LimitSettings:
        """The limit of an upstream by its name: its own entry, else that of `*`, else the polite default."""
        if self._limits_with_interval and (limit := self._limits_with_interval.get(upstream)) is not None:
            return limit
        return self._limits.get(upstream) or self._limit_of_others or POLITE

    def require_interval(self, upstream: str, seconds: float) -> bool:
        """Require at least `seconds` between two requests (Crawl-delay), in addition to the limit of the job.

        Returns whether that changes the limit; it does not when an interval at least as long is required already.
        """
        limit = self.limit(upstream)
        if any(window.count == 1 and window.seconds >= seconds for window in limit.windows):
            return False
        self._limits_with_interval[upstream] = replace(limit, windows=(*limit.windows, Window(1, seconds)))
        return True

    def has_own_limit(self, upstream: str) -> bool:
        """Whether the job has an entry for this upstream."""
        return upstream in self._limits

    def without_limit(self, target: Target | None) -> str | None:
        """The upstream of `target` when the job states no limit for it, so that it gets the polite default; else None.

        Without a target the keys can have any host: then "*" stands for them.
        """
        if self._limit_of_others is not None:
            return None
        upstream = ANY_UPSTREAM if target is None else self.upstream_of(target)
        return None if self.has_own_limit(upstream) else upstream

    @cached_property
    def _rules(self) -> Sequence[_Rule]:
        """The entries, those that win first. Who only asks for limits needs none: a thousand are compiled in 50 ms."""
        return sorted((_Rule.parse(name) for name in self._limits), key=lambda rule: rule.rank)

    def _rules_of(self, origin: Origin) -> tuple[str, tuple[_Rule, ...]]:
        """The upstream of an origin, and the rules for those of its paths that are upstreams of their own. Cached."""
        upstream, path_rules = origin.upstream, []
        for rule in self._rules:
            if rule.host.fullmatch(origin.upstream_host) and rule.port in (None, origin.port):
                if rule.path is None:
                    upstream = rule.name
                    self.matched.add(rule.name)
                    break
                path_rules.append(rule)
        if len(self._rules_by_origin) >= MAX_MATCHED_ORIGINS:
            self._rules_by_origin.clear()
        rules = self._rules_by_origin[origin.text] = upstream, tuple(path_rules)
        return rules


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
