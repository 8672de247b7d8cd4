"""The exception tree of both packages.

    ShardcrawlError               one line for the user; exit code 1
    ├── UsageError                the command or the job file is wrong; exit code 2
    │   └── NotYet                a documented feature that this version does not have
    ├── SourceError               the corpus cannot be read
    ├── Unavailable               a service does not respond now; it may, after a wait
    │   ├── RedisUnavailable
    │   └── PostgresUnavailable
    ├── RedisRefused              Redis responds, but cannot be used (version, policy, password)
    ├── PostgresRefused           Postgres responds, but cannot be used (version, rights, password)
    ├── DataInUse                 another run holds this --data folder
    ├── StillRunning              a refresh was started while the former one goes on; exit code 5
    ├── RunCancelled              somebody cancelled the run; exit code 6
    ├── EpochLost                 Redis and Postgres disagree about which run this is
    │   └── RedisDamaged          Redis has something in a run's place that is not ours
    ├── LeaseLost                 this worker's lease has ended; it must not change the queue
    ├── WorkersFull               the run has as many workers as it may have
    └── FetchError                an attempt brought no response (raised in crawler.fetch)

Every message says what, where and what to do, in one line and without a secret.
"""

from __future__ import annotations

import re


class ShardcrawlError(Exception):
    """The root: an error whose message is meant for the user."""

    exit_code = 1


class UsageError(ShardcrawlError):
    """The command line or the job file is wrong."""

    exit_code = 2


class NotYet(UsageError):
    """The job asks for a documented feature that this version does not have."""


class SourceError(ShardcrawlError):
    """The corpus cannot be read."""


class Unavailable(ShardcrawlError):
    """A service does not respond now; it may, after a wait."""


class RedisUnavailable(Unavailable):
    """Redis does not respond."""


class PostgresUnavailable(Unavailable):
    """Postgres does not respond."""


class RedisRefused(ShardcrawlError):
    """Redis responds, but this run cannot use it."""


class PostgresRefused(ShardcrawlError):
    """Postgres responds, but this run cannot use it."""


class DataInUse(ShardcrawlError):
    """Another run holds this data folder."""


class RunCancelled(ShardcrawlError):
    """Somebody cancelled the run: nobody works on it any more."""

    exit_code = 6


class StillRunning(ShardcrawlError):
    """A refresh was started while the former one of its corpus goes on."""

    exit_code = 5


class EpochLost(ShardcrawlError):
    """Redis and Postgres disagree about the run: one of them was wiped, rolled back or replaced."""


class RedisDamaged(EpochLost):
    """Redis has something in a run's place that is not ours: the run is made there anew from Postgres."""


class LeaseLost(ShardcrawlError):
    """This worker's lease has ended: it must not change the queue."""


class WorkersFull(ShardcrawlError):
    """The run has as many workers as it may have: this one does not join."""


class FetchError(ShardcrawlError):
    """An attempt brought no response.

    `kind` is one word for the cause ("dns", "timeout", …), `detail` says more; `sent` is whether the upstream may have
    seen the request. `again`: there was a response, and the engine will read the next one of this origin in another
    way, so the request should be sent again at once.
    """

    def __init__(self, kind: str, detail: str, *, sent: bool = True, again: bool = False) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
        self.sent = sent
        self.again = again


def first_line(error: BaseException) -> str:
    """An exception's first line of text, or its class when it has none."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error of the user's own class, whose text may have one
        text = ""
    return next(iter(text.splitlines()), "").rstrip(". ") or type(error).__name__


def redacted(url: str) -> str:
    """An address without its user and password. Works for malformed addresses too."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    address = re.split("[?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(address) :]:  # the password contains ? or #, or the query has one
        return f"{scheme}{mark}***"
    return f"{scheme}{mark}{address.rpartition('@')[2]}"
