"""Frozen settings of a run; `jobfile` makes them from a job document, and nothing else reads the outside world."""

from __future__ import annotations

from dataclasses import dataclass, field

ANY_UPSTREAM = "*"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`[run]`: the name under which a run resumes, and how large it is on each machine."""

    name: str
    workers: int | None = None
    concurrency: int = 64
    shards: int | None = None
    high_water: int = 300_000
    max_failed: float = 0.01


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """`[source]`: where the keys come from; exactly one of the two is set."""

    path: str | None = None
    python: str | None = None


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """`[request]`: how keys become HTTP requests; without `url` every key is its own absolute URL. Seconds, bytes."""

    url: str | None = None
    keys_per_request: int = 1
    separator: str = "|"
    headers: tuple[tuple[str, str], ...] = ()
    user_agent: str = "shardcrawl (+https://pypi.org/project/shardcrawl/)"
    timeout: float = 30.0
    http2: bool = False
    engine: str = "pyreqwest"
    allow_private: tuple[str, ...] = ()
    max_body: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits.HOST]`: the whole fleet's budget at one upstream. `rate` is requests a second; None means no bound."""

    rate: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """`[retry]`: tries of one request, and the bounds of the pause between them in seconds."""

    attempts: int = 5
    backoff: float = 0.5
    max_delay: float = 60.0


@dataclass(frozen=True, slots=True)
class ParseSettings:
    """`[parse]`: the user's hook as `module:function`; None stores the whole body."""

    python: str | None = None


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`[store]`: the most rows and body bytes that wait for one commit, and the longest that they wait in seconds."""

    batch_rows: int = 1000
    batch_bytes: int = 16 * 1024 * 1024
    batch_age: float = 1.0


@dataclass(frozen=True, slots=True)
class TableSettings:
    """`[[tables]]`: one table of records, its columns in order as (name, Postgres type)."""

    name: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A whole job. `folder` is where its relative paths and its Python modules are looked up."""

    run: RunSettings
    source: SourceSettings
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: dict[str, LimitSettings] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tables: tuple[TableSettings, ...] = ()
    folder: str = "."

    def limit(self, upstream: str) -> LimitSettings:
        """The budget of one upstream: its own entry, else that of `*`, else none."""
        return self.limits.get(upstream) or self.limits.get(ANY_UPSTREAM) or LimitSettings()
