"""A real Redis with the product's scripts on a simulated clock; it checks after each script that the promises hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from operator import itemgetter
from typing import Any

import redis

from coordinator.model import Outcome
from coordinator.queue.sharding import digest, member
from coordinator.redis.keys import RUNS
from coordinator.redis.scripts import source
from tests.simulation.reference_model import CALLER_AT, COUNTED, WORKER_AT, ReferenceModel
from tests.simulation.truth import Truth

# The clock is two keys, and the leader's lease, which Redis itself would end on its own clock, is ended by the test.
CLOCKED = {
    "redis.call('TIME')": "redis.call('MGET', 'test:seconds', 'test:micros')",
    "redis.call('PTTL', leader_key)": "1",
    "redis.call('SET', leader_key, coordinator, 'PX', lease_ms)": "redis.call('SET', leader_key, coordinator)",
}
SCRIPTS = sorted(
    f"{folder.name}/{file.name.removesuffix('.lua')}"
    for folder in files("coordinator").joinpath("lua").iterdir()
    if folder.name != "fragments"
    for file in folder.iterdir()
)
# KEYS of the run: state, deferred set, then ARGV[1] streams, then the done buckets.
LOOK = """
local keys, done, entries = redis.call('ZCARD', KEYS[2]), {}, 0
for at = 3, 2 + ARGV[1] do
  for _, entry in ipairs(redis.call('XRANGE', KEYS[at], '-', '+')) do
    entries = entries + 1
    -- Only version and keys: contexts have bytes, which this cannot read.
    local _, _, in_block = cmsgpack.unpack_limit(entry[2][2], 2, 1)
    keys = keys + #in_block
  end
end
for at = 3 + ARGV[1], #KEYS do
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[at])) do done[#done + 1] = name end
end
return {redis.call('HGETALL', KEYS[1]), keys, entries, done}
"""
FINGERPRINT = """
local all = {}
for _, key in ipairs(KEYS) do all[#all + 1] = redis.call('DUMP', key) or '' end
return redis.sha1hex(table.concat(all, '|'))
"""


class CheckedRedis:
    """One connection to Redis for all processes of a simulation.

    `mutations` maps the name of a script to (a text in it, another text in its place).
    """

    def __init__(self, url: str, mutations: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.client = redis.Redis.from_url(url, single_connection_client=True)
        self._connection: Any = self.client.connection
        self.names: dict[str, str] = {}
        self._hashes: dict[str, bytes] = {}
        for name in SCRIPTS:
            lua = source(name)
            self.names[lua] = name
            for text, other in CLOCKED.items():
                lua = lua.replace(text, other)
            if mutations and name in mutations:
                text, other = mutations[name]
                assert lua.count(text) == 1, f"{name} no longer says {text!r} once"
                lua = lua.replace(text, other)
            self._hashes[name] = self.client.script_load(lua).encode()
        self._look = self.client.script_load(LOOK).encode()
        self._fingerprint = self.client.script_load(FINGERPRINT).encode()

    def begin(self, truth: Truth, *, once: bool) -> None:
        """Forget the last simulation, here and in Redis. `once`: no key is twice in the source."""
        self.truth = truth
        layout, names = truth.layout, truth.keys
        streams = [names.stream(shard) for shard in range(layout.shards)]
        buckets = [names.done(bucket) for bucket in range(layout.buckets)]
        self._looked = [names.state, names.deferred_due, *streams, *buckets]
        self._all = [*names.all(layout.shards, layout.buckets), *names.all_known(layout.buckets)]
        self._guarded = [name for name in self._all if name != names.workers]  # renew forgets old leases there
        self._members = {member(digest(key)): digest(key) for key in truth.corpus}
        self._once = once
        self.model = ReferenceModel(truth)
        self._calls: dict[str, dict[str, tuple[Sequence[str], Sequence[Any]]]] = {}
        self.wipe()
        self.advance(0)

    def close(self) -> None:
        self._send(b"UNLINK", RUNS, *self._all, b"test:seconds", b"test:micros")
        self.client.close()

    def advance(self, milliseconds: int) -> None:
        """Let time pass. From the very ms at which a lease ends, the calls of its worker must be refused."""
        until = self.truth.now + milliseconds
        for worker, lease_end in sorted(self.model.leases.items(), key=itemgetter(1)):
            if self.truth.now < lease_end <= until:
                self._set_clock(lease_end)
                self._expect_refusals(worker)
        self._set_clock(until)

    def _set_clock(self, now_ms: int) -> None:
        truth = self.truth
        truth.now = now_ms
        self._send(b"MSET", b"test:seconds", truth.now // 1000, b"test:micros", truth.now % 1000 * 1000)
        deposed = self.model.leader
        if deposed is not None and self.model.leader_until <= truth.now:
            self._send(b"DEL", truth.keys.leader)
            self.model.leader = None
            self._expect_refusals(deposed)

    def wipe(self) -> None:
        """Delete everything but the loaded scripts."""
        self._send(b"UNLINK", RUNS, *self._all)
        self.synchronise()

    def release_dead(self, worker: str) -> None:
        """End the lease of a dead worker, as `membership.release_dead` does."""
        self._send(b"ZREM", self.truth.keys.workers, worker)
        self.model.leases.pop(worker, None)
        self._expect_refusals(worker)

    def entries(self) -> list[tuple[str, bytes]]:
        """(stream, entry id) of all entries."""
        streams = self._looked[2 : 2 + self.truth.layout.shards]
        return [(stream, entry) for stream in streams for entry, _ in self._send(b"XRANGE", stream, b"-", b"+")]

    def vanish(self, entries: Sequence[tuple[str, bytes]]) -> int:
        """Delete entries, as another program might; returns how many keys were in them."""
        before = self.look()[1]
        for stream, entry in entries:
            self._send(b"XDEL", stream, entry)
        keys = before - self.look()[1]
        self.model.vanished += keys
        return keys

    def synchronise(self) -> None:
        """Tell the model which epoch and state are there now, after a command that is not a script."""
        epoch, state = (
            value and value.decode() for value in self._send(b"HMGET", self.truth.keys.state, "epoch", "state")
        )
        is_other_run = epoch != self.model.epoch
        self.model.found(epoch, state)
        if is_other_run:
            self._expect_refusals(*self._calls)

    def run(self, who: str, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Carry a script out, and check what it returned and changed."""
        truth, worker = self.truth, str(arguments[WORKER_AT[name]]) if name in WORKER_AT else None
        refusal = self.model.refusal(name, arguments, worker)
        if name in CALLER_AT:
            self._calls.setdefault(str(arguments[CALLER_AT[name]]), {})[name] = (keys, arguments)
        stale = (
            name == "queue/publish" and self._send(b"HGET", truth.keys.state, "cursor") != str(arguments[2]).encode()
        )
        unchanged = refusal or stale or self.model.repeats(name, arguments)
        fingerprint = self._fingerprinted() if unchanged else None
        result = self._evaluate(self._hashes[name], keys, arguments)
        status = _status(result)
        truth.say(who, f"{name} {_shown_arguments(name, arguments)}-> {_shown_result(result)}")
        if refusal:
            wanted = " or ".join(refusal)
            truth.expect(status in refusal, f"{name} of {who} must be refused ({wanted}), and returns {status}")
        elif name == "run/replan" and status == "epoch" and truth.layout.follows:
            self.synchronise()
            return result
        else:
            truth.expect(status not in ("lost", "epoch"), f"{name} of {who} is refused ({status}) without a reason")
        if fingerprint:
            truth.expect(self._fingerprinted() == fingerprint, f"{name} of {who} must change nothing, and it does")
        elif not refusal:
            self.model.enter(name, arguments, worker, result, status)
            if name in COUNTED:
                self.check()
            if name == "run/replan" and result:
                truth.expect(not self.pending(), "deliveries are still pending after a replan")
            if name == "run/release":
                self._expect_refusals(str(arguments[0]))
        return result

    def _expect_refusals(self, *callers: str) -> None:
        """Repeat the last calls of processes whose lease or run has ended, as if they arrived late: all are refused."""
        for caller in callers:
            for name, (keys, arguments) in self._calls.get(caller, {}).items():
                if self.model.refusal(name, arguments, caller if name in WORKER_AT else None):
                    self.run(caller, name, keys, arguments)

    def look(self) -> tuple[dict[str, str], int, int, set[int]]:
        """(state, keys in the streams and in the deferred set, entries of streams, done set)"""
        state, keys, entries, done = self._evaluate(self._look, self._looked, [self.truth.layout.shards])
        fields = [field.decode() for field in state]
        return dict(zip(fields[::2], fields[1::2], strict=True)), keys, entries, {int(name) for name in done}

    def check(self) -> None:
        """Check what must hold between any two steps."""
        truth = self.truth
        state, queued, _, done = self.look()
        committed = {name for name, digest in self._members.items() if digest in truth.pages}
        truth.expect(done <= committed, f"{len(done - committed)} keys are done that were never committed")
        outcomes = sum(int(state.get(outcome.value, 0)) for outcome in Outcome)
        if done or state.get("state") not in ("resolved", "complete"):  # else Postgres has the final counts
            truth.expect(outcomes == len(done), f"{outcomes} outcomes are counted for {len(done)} keys that are done")
        published, resolved = int(state.get("published", 0)), int(state.get("resolved", 0))
        truth.expect(
            queued <= published - resolved <= queued + self.model.vanished,
            f"published {published} - resolved {resolved} is not {queued}, the keys in the streams and the deferred set"
            + (f" (and {self.model.vanished} vanished)" if self.model.vanished else ""),
        )
        pointers = self._send(b"ZRANGE", truth.keys.frontier, 0, -1)
        pending, named = int(state.get("pending", 0)), sum(int(pointer.split()[2]) for pointer in pointers)
        truth.expect(pending == named, f"{pending} keys are pending, and the frontier has {named}")
        if state.get("exhausted") == "1" and self._once and not truth.layout.follows:
            planned = published - int(state.get("deferred", 0)) + int(state.get("skipped", 0))
            truth.expect(planned == len(truth.corpus), f"{planned} keys are planned of a corpus of {len(truth.corpus)}")
        if state.get("state") in ("resolved", "complete"):
            missing = len(truth.wanted - truth.pages.keys())
            truth.expect(not missing, f"the run is {state['state']} while {missing} keys have no outcome")

    def pending(self) -> int:
        """How many deliveries are not acknowledged."""
        return sum(
            int(self._send(b"XPENDING", stream, "workers")[0])
            for stream in self._looked[2 : 2 + self.truth.layout.shards]
            if self._send(b"EXISTS", stream)
        )

    def left_behind(self) -> list[str]:
        """The Redis keys of the queue and of the done set that exist."""
        layout = self.truth.layout
        queue = [*self.truth.keys.queue(layout.shards), *self.truth.keys.done_buckets(range(layout.buckets))]
        return [name.rpartition("}:")[2] for name in queue if self._send(b"EXISTS", name)]

    def _fingerprinted(self) -> Any:
        return self._evaluate(self._fingerprint, self._guarded, [])

    def _evaluate(self, script: bytes, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return self._send(b"EVALSHA", script, len(keys), *keys, *arguments)

    def _send(self, *command: Any) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()


def _status(result: Any) -> str:
    first = result[0] if isinstance(result, list) and result else result
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def _shown_result(result: Any) -> str:
    parts = result if isinstance(result, list) else [result]
    shown = [part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in parts[:3]]
    return " ".join(shown)[:60]


def _shown_arguments(name: str, arguments: Sequence[Any]) -> str:
    match name:
        case "queue/requeue_due":
            return f"{arguments[2]} keys "
        case "queue/publish":
            return f"{arguments[2]} to {arguments[3]}{' (the end)' if int(arguments[4]) else ''} "
        case "queue/claim_block":
            return f"of shard {arguments[1]}, number {arguments[3]} "
        case "run/renew":
            return f"({arguments[3]}) "
        case "queue/complete":
            return f"number {arguments[2]} "
    return ""
