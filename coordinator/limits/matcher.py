"""Pure: which budget a URL belongs to, and what the job allows there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings, Window

# A crawl over millions of hosts must not remember them all.
MAX_CACHED_AUTHORITIES = 100_000


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of `[limits]`: its name, its host, and its path where it has one; both may have `*` in them."""

    name: str
    host: re.Pattern[str]
    path: re.Pattern[str] | None
    rank: tuple[int, int, str]

    @classmethod
    def of(cls, name: str) -> _Rule:
        host, slash, path = name.partition("/")
        kind = 2 if "*" in host else 0 if slash else 1
        literals = len(name) - name.count("*")
        return cls(name, _glob(host), _glob(path) if slash else None, (kind, -literals, name))


class UpstreamMatcher:
    """The job's limits by upstream. An upstream is named by its host, or by the pattern that the job wrote for it.

    `*.example.org` is one budget for all hosts that match, `api.example.org/v2/*` one for a part of a host, `*` what
    every other host gets for itself. The most specific entry wins: a path below a host that is spelled out, then that
    host, then the pattern with the most literal characters.
    """

    def __init__(self, limits: Mapping[str, LimitSettings]) -> None:
        self._limits = dict(limits)
        self._others = self._limits.pop(ANY_UPSTREAM, None)
        self._rules = sorted((_Rule.of(name) for name in self._limits), key=lambda rule: rule.rank)
        self._ways: dict[str, tuple[str, tuple[_Rule, ...]]] = {}
        self._spaced: dict[str, LimitSettings] = {}

    def upstream_of(self, url: str) -> str:
        """The name of an absolute URL's upstream; empty for a key that is no URL."""
        parts = url.split("/", 3)
        if len(parts) < 3:
            return ""
        way = self._ways.get(parts[2])
        if way is None:
            way = self._way(parts[2])
        name, below = way
        if below:
            tail = (parts[3] if len(parts) > 3 else "").partition("#")[0]
            for rule in below:
                if rule.path is not None and rule.path.fullmatch(tail):
                    return rule.name
        return name

    def limit(self, upstream: str) -> LimitSettings:
        """The budget of an upstream by its name: its own entry, else that of `*`, else the polite default."""
        if self._spaced and (spaced := self._spaced.get(upstream)) is not None:
            return spaced
        return self._limits.get(upstream) or self._others or POLITE

    def require_interval(self, upstream: str, seconds: float) -> None:
        """Let so many seconds pass between two requests, besides what the job says; a longer space stays."""
        limit = self.limit(upstream)
        if not any(window.count == 1 and window.seconds >= seconds for window in limit.windows):
            self._spaced[upstream] = replace(limit, windows=(*limit.windows, Window(1, seconds)))

    def has_own_limit(self, upstream: str) -> bool:
        """Whether the upstream has an entry of its own."""
        return upstream in self._limits

    def without_limit(self, url: str | None) -> str | None:
        """What the job names no limit for and so gets the polite default: the host of `url`, or "*" without a url."""
        if self._others is not None:
            return None
        upstream = ANY_UPSTREAM if url is None else self.upstream_of(url)
        return None if self.has_own_limit(upstream) else upstream

    def _way(self, authority: str) -> tuple[str, tuple[_Rule, ...]]:
        """The upstream of all of a host but the paths that have rules of their own, and these rules."""
        host = host_of(authority)
        name, below = host, []
        for rule in self._rules:
            if rule.host.fullmatch(host):
                if rule.path is None:
                    name = rule.name
                    break
                below.append(rule)
        if len(self._ways) >= MAX_CACHED_AUTHORITIES:
            self._ways.clear()
        self._ways[authority] = name, tuple(below)
        return self._ways[authority]


def host_of(authority: str) -> str:
    """The host, with its port when it names one, of what stands between // and the next / of a URL."""
    return authority.partition("?")[0].partition("#")[0].rpartition("@")[2].lower()


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
