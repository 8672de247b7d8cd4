"""Every Redis key: its name, type, lifetime and writer.

All names but that of the list of runs begin with `shardcrawl:{RUN}:`, so that a run is in one slot of a cluster.

    name               type     lifetime                  written by
    shardcrawl:runs    set      as long as Redis          opening (run made): runs that are not complete
    …:state            hash     the run and an hour       opening, coordinator, workers: state, epoch, cursor, counts
    …:done:N           intset   until the run is complete workers (complete), opening (rebuild)
    …:known:N          intset   until the run is complete workers: keys that pages named, where the run follows
    …:frontier         zset     until the run is complete workers, coordinator: pointer to keys that pages named,
                                                          and that wait in Postgres -> their depth
    …:stream:N         stream   until the run is complete planner, janitor (new blocks), workers (ack, delete, split)
    …:ready            zset     until the run is complete coordinator, workers: shard -> blocks that are not claimed
    …:workers          zset     until the run is complete workers: id -> end of lease, ms of Redis TIME
    …:claims           hash     until the run is complete workers: "shard worker" -> number and entry of its last claim
    …:waits            hash     until the run is complete workers: id -> service and upstreams that it waits for
    …:figures:WORKER   string   its lease                 workers: how busy its stages are, and what holds it up
    …:timings          hash     the run and an hour       workers: "stage bucket" -> items, "stage us" -> time, see
                                                          stages/timing
    …:unreachable      set      an hour                   workers: upstreams that the log calls unreachable
    …:deferred:due     zset     until the run is complete workers, janitor: digest -> when it is due, ms of Redis TIME
    …:deferred:keys    hash     until the run is complete workers, janitor: digest -> key and its attempts
    …:receipts         hash     until the run is complete workers: id -> sequence number of its last `complete`
    …:quarantine       list     the run and an hour       workers: the last entries that were not blocks of ours
    …:leader           string   its lease                 coordinator: id of the one that leads
    …:slots:UPSTREAM   hash     its longest window        limiter: the last slot, µs of Redis TIME; windows' counts
    …:health:UPSTREAM  string   at most a day             limiter: requests sent and failed in each of ten seconds, and
                                                          responses in a row that were refused; eleven seconds without
    …:upstreams        hash     a week                    limiter: upstream -> pause, breaker, found rate
    …:requests         hash     a week                    limiter: upstream -> requests sent, throttled, failed
    …:limits           hash     a week                    the command `limit`: overrides
    …:matched          set      the run and an hour       workers: entries of [limits] that a request met
    …:null_columns     hash     the run and an hour       workers: table.column -> when it turned null, s since 1970
    …:notified         hash     an hour                   `run`, `coordinate`: events of which [notify] was done
    …:changes          zset     a week                    limiter, `limit`: upstream -> number of its last change
    …:changed          stream   a week                    the same: an entry that wakes who waits for a change
    …:active           zset     a minute                  limiter: upstream -> when it was sent to last, s of Redis TIME
    …:history          string   a week                    coordinator: keys done at times, see queue/history
    …:robots:ORIGIN    hash     two days                  workers: what its robots.txt says, or which worker fetches it

A run that is cancelled, or that `prune` deletes, leaves none of them. Version 0.1.0 also wrote …:spec, the job. Nothing
reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RUNS = "shardcrawl:runs"
FIRST_CURSOR = "0:0"
# Who works on a run, on any machine, learns within seconds that it is complete; its command then shows how it ended.
SEEN_AFTER_END_SECONDS = 3600
CHANGED_KEPT_SECONDS = 604_800


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The names of one run's keys."""

    run: str

    def _name(self, tail: str) -> str:
        return f"{self.prefix}{tail}"

    @property
    def prefix(self) -> str:
        """What all names begin with."""
        return f"shardcrawl:{{{self.run}}}:"

    @property
    def state(self) -> str:
        return self._name("state")

    @property
    def ready(self) -> str:
        return self._name("ready")

    @property
    def workers(self) -> str:
        return self._name("workers")

    @property
    def claims(self) -> str:
        return self._name("claims")

    @property
    def receipts(self) -> str:
        return self._name("receipts")

    @property
    def deferred_due(self) -> str:
        return self._name("deferred:due")

    @property
    def deferred_keys(self) -> str:
        return self._name("deferred:keys")

    @property
    def frontier(self) -> str:
        return self._name("frontier")

    @property
    def waits(self) -> str:
        return self._name("waits")

    @property
    def timings(self) -> str:
        return self._name("timings")

    @property
    def unreachable(self) -> str:
        return self._name("unreachable")

    @property
    def leader(self) -> str:
        return self._name("leader")

    @property
    def upstreams(self) -> str:
        return self._name("upstreams")

    @property
    def requests(self) -> str:
        return self._name("requests")

    @property
    def limits(self) -> str:
        return self._name("limits")

    @property
    def matched_limits(self) -> str:
        return self._name("matched")

    @property
    def null_columns(self) -> str:
        return self._name("null_columns")

    @property
    def notified(self) -> str:
        return self._name("notified")

    @property
    def changes(self) -> str:
        return self._name("changes")

    @property
    def changed(self) -> str:
        return self._name("changed")

    @property
    def active(self) -> str:
        return self._name("active")

    @property
    def history(self) -> str:
        return self._name("history")

    @property
    def quarantine(self) -> str:
        return self._name("quarantine")

    @property
    def limiting(self) -> tuple[str, ...]:
        """The limiter's keys for all upstreams together."""
        return self.upstreams, self.limits, self.changes, self.changed, self.requests, self.active

    @property
    def lasting_prefixes(self) -> tuple[str, ...]:
        """What the names of those keys begin with that stay when the run is made anew, and expire by themselves."""
        return *self.limiting, self.slots(""), self.health(""), self.robots(""), self.history

    def stream(self, shard: int) -> str:
        return self._name(f"stream:{shard}")

    def figures(self, worker: str) -> str:
        return self._name(f"figures:{worker}")

    def done(self, bucket: int) -> str:
        return self._name(f"done:{bucket}")

    def known(self, bucket: int) -> str:
        return self._name(f"known:{bucket}")

    def done_buckets(self, buckets: Iterable[int]) -> list[str]:
        """The names of several buckets of the done set."""
        return _numbered(self._name("done:"), buckets)

    def known_buckets(self, buckets: Iterable[int]) -> list[str]:
        """The names of several buckets of the known set."""
        return _numbered(self._name("known:"), buckets)

    def slots(self, upstream: str) -> str:
        return self._name(f"slots:{upstream}")

    def health(self, upstream: str) -> str:
        return self._name(f"health:{upstream}")

    def robots(self, origin: str) -> str:
        return self._name(f"robots:{origin}")

    def queue(self, shards: int) -> Iterable[str]:
        """Keys that only an unfinished run needs."""
        yield from (
            self.ready,
            self.workers,
            self.claims,
            self.waits,
            self.unreachable,
            self.receipts,
            self.deferred_due,
            self.deferred_keys,
            self.frontier,
        )
        for shard in range(shards):
            yield self.stream(shard)

    def all(self, shards: int, buckets: int) -> Iterable[str]:
        """Every key of the run but those that expire by themselves."""
        yield self._name("spec")  # of version 0.1.0
        yield from (self.state, self.leader, self.quarantine, self.matched_limits, self.null_columns, self.timings)
        yield self.notified
        yield from self.queue(shards)
        yield from self.done_buckets(range(buckets))

    @property
    def last_seen(self) -> tuple[str, ...]:
        """Keys that are still there when the run is complete, for SEEN_AFTER_END_SECONDS."""
        return self.state, self.quarantine, self.matched_limits, self.null_columns, self.timings

    def all_known(self, buckets: int) -> Iterable[str]:
        """The sets of the keys that pages have named."""
        return self.known_buckets(range(buckets))


def _numbered(begin: str, numbers: Iterable[int]) -> list[str]:
    return [f"{begin}{number}" for number in numbers]
