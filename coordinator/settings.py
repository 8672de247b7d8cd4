"""Frozen settings of a run; `jobfile` makes them from a job document, and nothing else reads the outside world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ANY_UPSTREAM = "*"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`[run]`: the name under which a run resumes, and how large it is on each machine.

    `grace` is the seconds that a drain may take: Kubernetes kills after 30.
    """

    name: str
    workers: int | None = None
    concurrency: int = 64
    shards: int | None = None
    high_water: int = 300_000
    max_failed: float = 0.01
    grace: float = 25.0


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """`[source]`: where the keys come from; exactly one of the two is set."""

    path: str | None = None
    python: str | None = None


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """`[request]`: how keys become HTTP requests; without `url` every key is its own absolute URL. Seconds, bytes.

    `redirects` is how many are followed in a row; 0 follows none. `http2` is used where a server offers it in TLS;
    "prior-knowledge" speaks nothing else to any server, also in the clear.
    `allow_private` lists networks that are not public and still allowed, like 127.0.0.0/8.
    `proxy` is an http, https or socks5 URL; it looks up names, so that only hosts written as addresses are judged here.
    `ca` is a PEM file, added to the system's roots; `client_cert` one with a certificate and its key; both are looked
    up from the job's folder. `auth` is basic:USER:PASSWORD or bearer:TOKEN.
    Headers, `cookies`, `auth` and `proxy` may hold ${NAME}, which stands for a secret in the environment.
    `robots` says whether each host's robots.txt is obeyed; None leaves it to `obeys_robots`.
    """

    url: str | None = None
    keys_per_request: int = 1
    separator: str = "|"
    headers: tuple[tuple[str, str], ...] = ()
    cookies: tuple[tuple[str, str], ...] = ()
    auth: str | None = None
    user_agent: str = "shardcrawl (+https://pypi.org/project/shardcrawl/)"
    timeout: float = 30.0
    redirects: int = 5
    http2: bool | Literal["prior-knowledge"] = False
    engine: str = "pyreqwest"
    allow_private: tuple[str, ...] = ()
    proxy: str | None = None
    ca: str | None = None
    client_cert: str | None = None
    max_body: int = 16 * 1024 * 1024
    robots: bool | None = None

    @property
    def obeys_robots(self) -> bool:
        """Whether robots.txt is obeyed: by default where keys are URLs of whatever hosts, not at an API of one's own
        choice, whose terms the user knows.
        """
        return self.url is None if self.robots is None else self.robots


@dataclass(frozen=True, slots=True)
class Window:
    """At most `count` requests in any `seconds`."""

    count: float
    seconds: float

    def __str__(self) -> str:
        unit = _UNITS.get(self.seconds) or f"{self.seconds:g} s"
        return f"{self.count:,.10g}/{unit}"


_UNITS = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "d"}


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits.UPSTREAM]`: the whole fleet's budget at one upstream.

    All `windows` hold at once, shortest first; none means no bound. With `auto` the rate is found by trying, and the
    windows are what it may never exceed. `concurrency` is requests in flight.
    """

    windows: tuple[Window, ...] = ()
    auto: bool = False
    concurrency: int | None = None

    @property
    def rated(self) -> bool:
        """Whether requests need slots."""
        return self.auto or bool(self.windows)

    @property
    def words(self) -> str:
        """The rate as people read it."""
        bounds = " and ".join(str(window) for window in self.windows)
        if self.auto:
            return f"auto, at most {bounds}" if bounds else "auto"
        return bounds or "none"

    @property
    def rate(self) -> float | None:
        """The lowest of the windows, in requests a second."""
        return min((window.count / window.seconds for window in self.windows), default=None)


# What a host gets that the user named no limit for.
POLITE = LimitSettings((Window(10.0, 1.0),), concurrency=8)


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
