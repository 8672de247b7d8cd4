"""What happens while a command works on runs, as values: `crawler.cli` turns them into texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from coordinator.status import RunSnapshot


@dataclass(frozen=True, slots=True)
class RunBegins:
    """A new run was made; `total` is about how many keys it has, None when that is unknown."""

    run: str
    total: int | None


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
    | RunProgress
    | ProgressUnknown
)
OnEvent: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """Who follows a command: `on_event` gets every event, and the progress every `progress_seconds` seconds.

    Children log from `log_level` on; with `debug` they show tracebacks.
    """

    on_event: OnEvent
    progress_seconds: float
    log_level: str = "INFO"
    debug: bool = False
