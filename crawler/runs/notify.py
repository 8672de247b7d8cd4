"""Notifies the user's command or webhook of what has happened to a run. When that fails, nothing of the run changes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from typing import Literal, TypeAlias

import orjson
from redis.asyncio import Redis

from coordinator.errors import FetchError, RedisDamaged, RedisUnavailable
from coordinator.model import Outcome
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import SEEN_AFTER_END_SECONDS, RunKeys
from coordinator.status import RunSnapshot
from crawler.fetch.network.credentials import fill_secrets
from crawler.fetch.webhook import post_json
from crawler.job.job import Job
from crawler.job.request.placeholders import places_in
from crawler.job.request_checks import seconds_of
from crawler.store.rows.stored_run import StoredRun

logger = logging.getLogger(__name__)

Happening: TypeAlias = Literal["complete", "held_back", "stalled"]
NOTIFY_SECONDS = 30.0

# Who has them can do what the command that runs can do.
OUR_SECRETS = frozenset({"REDIS_URL", "DATABASE_URL", "SHARDCRAWL_TOKEN"})


def environ_for(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Pure: the environment of the job's command, without our secrets and the job's, but for those that it names."""
    secrets = OUR_SECRETS | {place.name for place in places_in(job.document) if place.is_secret}
    hidden = secrets - set(re.findall(r"\$\{?(\w+)", job.notify.command))
    return {name: value for name, value in environ.items() if name not in hidden}


class Notifier:
    """Notifies of each event of a job's run once, whichever of the commands that work on it sees it first.

    Raises UsageError when the webhook names what is not in `environ`.
    """

    def __init__(self, client: Redis, job: Job, environ: Mapping[str, str]) -> None:
        self._client = client
        self._job = job
        self._environ = environ
        self._webhook = fill_secrets(job.notify.webhook, "[notify] webhook", environ)
        self.stalled_seconds = seconds_of(job.notify.stalled) if job.notify.stalled else None

    async def notify_of_end(self, stored: StoredRun | None) -> None:
        """Notify that the run is complete, or held back; of one that goes on nothing is to be said."""
        if stored is not None and stored.shortfall:
            text = f"run {stored.name} is not published: {stored.shortfall}"
            await self._notify("held_back", text, stored.counts, stored.finished_at)
        elif stored is not None:
            await self._notify("complete", f"run {stored.name} is complete", stored.counts, stored.finished_at)

    async def notify_stalled(self, snapshot: RunSnapshot) -> None:
        """Notify that the run makes no progress."""
        text = f"run {snapshot.name} has made no progress for {self._job.notify.stalled}"
        await self._notify("stalled", text, snapshot.counts.outcomes, sum(snapshot.counts.outcomes.values()))

    async def _notify(self, event: Happening, text: str, counts: Mapping[Outcome, int], point: object) -> None:
        settings, run = self._job.notify, self._job.run.name
        if not (settings.command or settings.webhook) or not await self._is_first(event, point):
            return
        outcomes = {outcome.value: keys for outcome, keys in counts.items() if keys}
        message = {"event": event, "run": run, "corpus": self._job.corpus, "text": text, "keys": outcomes}
        encoded = orjson.dumps(message)
        if settings.command:
            try:
                await asyncio.to_thread(self._run_command, event, text, encoded)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                logger.warning("[notify] command: %s of %s is not notified: %s", event, run, type(error).__name__)
        if settings.webhook:
            try:
                await post_json(self._webhook, encoded, seconds=NOTIFY_SECONDS)
            except FetchError as error:
                logger.warning("[notify] webhook: %s of %s is not notified: %s", event, run, error)

    def _run_command(self, event: Happening, text: str, encoded: bytes) -> None:
        named = {"SHARDCRAWL_EVENT": event, "SHARDCRAWL_RUN": self._job.run.name, "SHARDCRAWL_TEXT": text}
        with subprocess.Popen(  # noqa: S602 - the shell's command is the user's own, in the job file of this machine
            self._job.notify.command,
            shell=True,
            cwd=self._job.folder,
            env={**environ_for(self._job, self._environ), **named},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                process.communicate(encoded, timeout=NOTIFY_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what the shell has started, too
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, "command")

    async def _is_first(self, event: Happening, point: object) -> bool:
        """Whether nobody has notified of this event at this point of the run."""
        key = RunKeys(self._job.run.name).notified
        try:
            with translate_redis_errors():
                is_first = await self._client.hsetnx(key, f"{event} {point}", "1")
                await self._client.expire(key, SEEN_AFTER_END_SECONDS)
        except (RedisUnavailable, RedisDamaged):
            return True
        return bool(is_first)
