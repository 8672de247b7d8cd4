"""What happens while a command works on runs, as values: `crawler.cli` turns them into texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Outcome, RunCounts
from coordinator.queue.notices import NullColumn
from coordinator.status import RunSnapshot
from crawler.export.published import PublishedFiles
from crawler.job.fields import part_of
from crawler.job.job import Job
from crawler.local.child_spec import OnDrain
from crawler.store.reasons import ReasonCount
from crawler.store.rows.stored_run import StoredRun


@dataclass(frozen=True, slots=True)
class RunBegins:
    """A new run was made, as a refresh of `base` if there is one; `total` is about how many keys it has, None when that
    is unknown.
    """

    run: str
    total: int | None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class RunGoesOn:
    """A run that exists was opened; `done` of its keys have their outcome."""

    run: str
    done: int


@dataclass(frozen=True, slots=True)
class PoliteDefaultUsed:
    """The job has no limit for this upstream, so the polite default holds. ANY_UPSTREAM stands for each host."""

    upstream: str


@dataclass(frozen=True, slots=True)
class ServerWarning:
    """A server can be used, but its settings should be changed."""

    message: str


@dataclass(frozen=True, slots=True)
class RunLost:
    """Redis lost the run, which is now rebuilt from Postgres."""

    message: str


@dataclass(frozen=True, slots=True)
class ChildLine:
    """A child process logged this line."""

    text: str


@dataclass(frozen=True, slots=True)
class DrainBegins:
    """A signal asked the command to end: it finishes what is in flight."""


@dataclass(frozen=True, slots=True)
class NothingElseLeft:
    """The command ends: all that is left of the run is for upstreams that refuse whatever is requested."""

    upstreams: tuple[UpstreamHealth, ...]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where the run stands now."""

    snapshot: RunSnapshot


@dataclass(frozen=True, slots=True)
class ProgressUnknown:
    """A service does not respond, so it is unknown where the run stands."""

    run: str
    message: str


Event: TypeAlias = (
    RunBegins
    | RunGoesOn
    | PoliteDefaultUsed
    | ServerWarning
    | RunLost
    | ChildLine
    | DrainBegins
    | NothingElseLeft
    | RunProgress
    | ProgressUnknown
)
OnEvent: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """Who follows a command: `on_event` gets every event, and the progress every `progress_seconds` seconds.

    Children log from `log_level` on; with `debug` they show tracebacks. `on_drain` is given the function that begins
    the drain, each time that children are started; without it SIGINT and SIGTERM begin it, in a main thread.
    `on_children` is then given the function that names those whose event loop seems to stand still.
    """

    on_event: OnEvent
    progress_seconds: float
    log_level: str = "INFO"
    debug: bool = False
    on_drain: OnDrain | None = None
    on_children: Callable[[Callable[[], Sequence[str]]], None] | None = None


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run stands when its command ends; `stored` is its row in Postgres once it is complete.

    `seconds` is how long the command worked on it, `was_complete` whether there was nothing to do. `reasons` are the
    usual ones of keys that were refused or failed. `unmatched` are the entries of `[limits]` that no request of a
    complete run met, `null_columns` those that turned null, `found` what there is to say of found keys. Of a run that
    is not complete, `unauthorized` are the upstreams that refuse whatever is requested, and `gave_up` says that the
    command ended because of them. `files` are those of a published run, if its job wants any.
    """

    job: Job
    counts: RunCounts
    stored: StoredRun | None
    seconds: float
    was_complete: bool = False
    unmatched: tuple[str, ...] = ()
    null_columns: tuple[NullColumn, ...] = ()
    found: Sequence[str] = ()
    reasons: tuple[ReasonCount, ...] = ()
    unauthorized: tuple[UpstreamHealth, ...] = ()
    gave_up: bool = False
    files: PublishedFiles | None = None

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """Keys by outcome: the final counts of a complete run, else those in Redis."""
        return self.stored.counts if self.stored else self.counts.outcomes

    @property
    def notices(self) -> Sequence[str]:
        """What the workers have noticed, and whether readers see a complete run, in words for people."""
        unmatched = [
            f'[limits."{name}"] met no request of the run: is it the host of your URLs?' for name in self.unmatched
        ]
        columns = (f"column {one.summary}: has the response changed?" for one in self.null_columns)
        shortfall = self.stored.shortfall if self.stored else None
        held_back = [f"it is not published, so readers do not see it: {shortfall}"] if shortfall else []
        # Who published a run that was complete before, and who sees it now, is not known here.
        is_published = shortfall == "" and not self.was_complete
        published = [f"it is published: readers of corpus {self.job.corpus} see it now"] if is_published else []
        files = [self.files.words] if self.files else []
        return [*unmatched, *self.found, *columns, *held_back, *published, *files]

    @property
    def denied(self) -> int:
        """Keys to which the upstream denied access: refused with a status of DENIED_STATUSES."""
        return sum(reason.keys for reason in self.reasons if reason.denied)

    @property
    def too_many_failed(self) -> bool:
        """Whether more keys failed, or were denied, than the job allows."""
        lost = self.outcomes.get(Outcome.FAILED, 0) + self.denied
        return lost > part_of(self.job.run.max_failed, sum(self.outcomes.values()))
