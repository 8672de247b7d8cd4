"""What the pages show of keys: those that brought nothing, one key with its rows, and what differs between two runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import Any, cast

from coordinator.errors import UsageError
from coordinator.model import Outcome
from coordinator.queue.sharding import digest
from coordinator.queue.wire import decode_deferral
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from crawler.runs.diff import changed_keys_query, compare_runs, runs_to_compare
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query
from crawler.store.rows.ended import KeysOfRun, is_sample
from crawler.web.stores import Stores

SHOWN_OUTCOMES = (Outcome.FAILED, Outcome.REFUSED, Outcome.GONE)
SHOWN_CHANGED = 200
# Counting them takes Postgres 0.1 s, and while keys fail each open page asks again and again.
RECOUNT_SECONDS = 10.0


class KeysView:
    """Reads keys. Every method raises Unavailable, PostgresRefused, and UsageError for what is not known."""

    def __init__(self, stores: Stores, clock: Callable[[], float] = monotonic) -> None:
        self._stores = stores
        self._clock = clock
        self._counting = asyncio.Lock()
        self._counted: dict[str, tuple[float, Mapping[str, Any]]] = {}  # {run: when, and its reasons}

    def forget_reasons(self) -> None:
        """Count them anew when somebody asks next."""
        self._counted.clear()

    async def ended(self, name: str, outcome: str, behind: str, text: str) -> Mapping[str, Any]:
        """Some keys of a run that ended so, behind a digest; with `text` those that have it in key or reason."""
        if outcome not in SHOWN_OUTCOMES:
            raise UsageError(f"outcome is {outcome!r:.50}; choose {', '.join(SHOWN_OUTCOMES)}")
        async with self._stores.catalogue() as catalogue:
            run = await self._stores.run(catalogue, name)
            keys = KeysOfRun(catalogue.connection, run)
            found = asdict(await keys.ended(Outcome(outcome), _bytes(behind), text))
            exact = await keys.page(digest(text)) if text and not behind else None
        return found | {"exact": digest(text) if exact is not None else None, "state": run.state}

    async def reasons(self, name: str) -> Mapping[str, Any]:
        """Why keys of a run failed or were refused, as it was `age` seconds ago: all who ask share one count.

        `sampled` says that only some of them were looked at.
        """
        async with self._counting:
            now = self._clock()
            self._counted = {run: one for run, one in self._counted.items() if now - one[0] < RECOUNT_SECONDS}
            if name not in self._counted:
                self._counted[name] = now, await self._count_reasons(name)
            counted_at, found = self._counted[name]
        return {**found, "age": round(now - counted_at, 3)}

    async def _count_reasons(self, name: str) -> Mapping[str, Any]:
        async with self._stores.catalogue() as catalogue:
            run = await self._stores.run(catalogue, name)
            reasons = await KeysOfRun(catalogue.connection, run).usual_reasons()
        return {"reasons": reasons, "sampled": is_sample(run, reasons)}

    async def key(self, name: str, hexadecimal: str) -> Mapping[str, Any]:
        """One key: its page, its records, what became of it in other runs, and its attempts while it is deferred."""
        wanted = _bytes(hexadecimal)
        async with self._stores.catalogue() as catalogue:
            run = await self._stores.run(catalogue, name)
            of_corpus = [one for one in await catalogue.all() if one.corpus == run.corpus]
            keys = KeysOfRun(catalogue.connection, run)
            page = await keys.page(wanted)
            found = {
                "state": run.state,
                "page": page,
                "tables": await keys.records(wanted) if page is not None else [],
                "versions": await keys.versions(wanted, of_corpus),
            }
        with translate_redis_errors():
            packed = await self._stores.client.hget(RunKeys(name).deferred_keys, cast("str", wanted))
        return found | {"deferred": _deferred(wanted, cast("bytes", packed or b""))}

    async def diff(self, first: str, second: str, table: str) -> Mapping[str, Any]:
        """How many keys changed from one complete run to another, of all pages or of one table."""
        async with self._stores.catalogue() as catalogue:
            runs = await runs_to_compare(catalogue, first, second or None)
            found = await compare_runs(catalogue.connection, runs, table or None)
        return {
            "old": runs.old.name,
            "new": runs.new.name,
            "corpus": runs.new.corpus,
            "comparable": runs.are_comparable,
            "waiting": runs.waiting.name if runs.waiting else None,
            "tables": runs.tables,
            "keys": found.keys,
            "rows": found.rows,
        }

    async def changed(self, first: str, second: str, table: str, change: str) -> Sequence[str]:
        """Some keys that changed so."""
        async with self._stores.catalogue() as catalogue:
            runs = await runs_to_compare(catalogue, first, second or None)
            statement = query("changed-keys-of-kind", changed=changed_keys_query(runs, table or None))
            with postgres_errors():
                rows = await catalogue.connection.fetch(statement, change, SHOWN_CHANGED)
        return [row["key"] for row in rows]


def _deferred(wanted: bytes, packed: bytes) -> Mapping[str, Any] | None:
    with suppress(ValueError):
        one = decode_deferral(wanted, packed)
        return {"key": one.key, "attempts": one.attempts.total, "history": one.attempts.history}
    return None


def _bytes(hexadecimal: str) -> bytes:
    try:
        return bytes.fromhex(hexadecimal)
    except ValueError:
        raise UsageError(f"{hexadecimal[:40]!r} is no digest") from None
