"""What the page can change: a row for each action, carried out by what its command calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Annotated, Any, TypeAlias

import asyncpg
import msgspec

from coordinator.errors import ShardcrawlError, Unavailable, UsageError, first_line
from coordinator.model import Outcome
from crawler.runs.cancel import cancel_run
from crawler.runs.publish import publish_run, roll_back
from crawler.runs.steering import change_limit, put_back, steer_run, wanted_limit
from crawler.store.reasons import PagesToRetry
from crawler.web.guard import MOST_LOGGED
from crawler.web.stores import Stores

logger = logging.getLogger(__name__)

# The servers of a data folder stop with the command that is cancelled, and are started here anew.
SERVERS_CHANGE_SECONDS = 30.0
RETRY_CANCEL_SECONDS = 0.2
RETRIED = (Outcome.FAILED, Outcome.REFUSED, Outcome.GONE)


# What is left out stays as it is. A null may be a NaN, which JSON cannot say: it is refused.
Given: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)] | msgspec.UnsetType


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page sends with an action. Each action uses what it needs."""

    run: str = ""
    corpus: str = ""
    upstream: str = ""
    rate: Given = msgspec.UNSET
    concurrency: Given = msgspec.UNSET
    outcome: str = ""
    reason: str | None = None
    digest: str = ""
    force: bool = False


Act: TypeAlias = Callable[[Stores, Wanted], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Action:
    """One action. It `act`s, and returns what has happened in words. The page offers it in these states of a run."""

    act: Act
    states: tuple[str, ...]


async def _limit(stores: Stores, wanted: Wanted) -> str:
    limit = wanted_limit(wanted.rate or None, None, wanted.concurrency or None)
    async with stores.catalogue(has_bound=False) as catalogue:
        upstream = await change_limit(catalogue, stores.client, wanted.run, wanted.upstream, limit)
    return f"the limit of {upstream} is changed for every worker"


async def _retry(stores: Stores, wanted: Wanted) -> str:
    if wanted.outcome not in ("", *RETRIED):
        raise UsageError(f"retry: outcome is {wanted.outcome!r:.40}; choose {', '.join(RETRIED)}")
    outcomes = (Outcome(wanted.outcome),) if wanted.outcome else ()
    pages = PagesToRetry(outcomes, reason=wanted.reason or None, digest=bytes.fromhex(wanted.digest) or None)
    async with stores.catalogue(has_bound=False) as catalogue:
        keys = sum((await put_back(catalogue, wanted.run, pages)).values())
    if not keys:
        return "no key is left that ended so: nothing is changed"
    words = "1 key goes" if keys == 1 else f"{keys:,} keys go"
    return f"{words} back into run {wanted.run}; a command that works on it goes on, else: shardcrawl run JOB"


async def _cancel(stores: Stores, wanted: Wanted) -> str:
    deadline = monotonic() + SERVERS_CHANGE_SECONDS
    while True:
        try:
            counts = await cancel_run(stores.client, stores.database, wanted.run)
        except Unavailable:
            if monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_CANCEL_SECONDS)
        else:
            return f"run {wanted.run} is cancelled; the rows of {sum(counts.values()):,} keys are kept"


async def _publish(stores: Stores, wanted: Wanted) -> str:
    async with stores.catalogue(has_bound=False) as catalogue:
        run, held_back = await publish_run(catalogue.connection, wanted.run, force=wanted.force)
    if held_back:
        raise UsageError(f"it is not published: {held_back}")
    return f"readers of corpus {run.corpus} see run {run.name} now"


async def _rollback(stores: Stores, wanted: Wanted) -> str:
    async with stores.catalogue(has_bound=False) as catalogue:
        now, before = await roll_back(catalogue.connection, wanted.corpus)
    return f"readers of corpus {wanted.corpus} see run {now} now, no longer {before}"


async def _pause(stores: Stores, wanted: Wanted) -> str:
    await steer_run(stores.client, stores.database, wanted.run, lambda now: replace(now, paused=True))
    return f"run {wanted.run} is paused on all machines"


async def _resume(stores: Stores, wanted: Wanted) -> str:
    await steer_run(stores.client, stores.database, wanted.run, lambda now: replace(now, paused=False))
    return f"run {wanted.run} goes on"


ACTIONS: Mapping[str, Action] = {
    "pause": Action(_pause, ("running",)),
    "resume": Action(_resume, ("paused",)),
    "limit": Action(_limit, ("running", "paused")),
    "retry": Action(_retry, ("running", "paused", "complete")),
    "cancel": Action(_cancel, ("running", "paused", "resolved")),
    "publish": Action(_publish, ("complete",)),
    "rollback": Action(_rollback, ("complete",)),
}


async def act(stores: Stores, verb: str, body: bytes) -> Mapping[str, Any]:
    """Carry out an action with what a page sent, and log it. Raises UsageError, and what the action raises."""
    named = {"action": verb[:MOST_LOGGED]}
    try:
        wanted = _wanted(verb, body)
        if wanted.run:
            named["run"] = wanted.run[:MOST_LOGGED]
        try:
            done = await ACTIONS[verb].act(stores, wanted)
        except asyncpg.DataError as error:  # a text that Postgres cannot have
            raise UsageError(f"{verb}: {first_line(error)}") from error
    except ShardcrawlError as error:
        logger.warning(
            "%s by the page is refused: %s", *(named["action"], error), extra={"event": "action_refused", **named}
        )
        raise
    logger.info("%s by the page: %s", verb, done, extra={"event": "action_done", **named})
    return {"done": done}


def _wanted(verb: str, body: bytes) -> Wanted:
    if verb not in ACTIONS:
        raise UsageError(f"{verb!r:.40} is no action; there are {', '.join(ACTIONS)}")
    try:
        wanted = msgspec.json.decode(body, type=Wanted)
        bytes.fromhex(wanted.digest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{verb}: {error}") from error
    return wanted
