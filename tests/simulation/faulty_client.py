"""The Redis client of a simulated process: it waits for its turn before each call, and calls can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import redis.exceptions

from tests.simulation.checked_redis import CheckedRedis
from tests.simulation.truth import pause

NOT_SENT, LOST, TWICE = "never arrives", "its result gets lost", "arrives twice"


class FaultyClient:
    """What one process uses as its Redis client. `fault` is what happens to its next call."""

    def __init__(self, redis: CheckedRedis, who: str) -> None:
        self.redis = redis
        self.who = who
        self.fault: str | None = None

    def register_script(self, source: str) -> Any:
        name = self.redis.names[source]

        async def call(*, keys: Sequence[str], args: Sequence[Any]) -> Any:
            return await self.send(
                name, lambda: self.redis.run(self.who, name, keys, args), may_repeat=name != "run/replan"
            )

        return call

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            return await self.send(name, lambda: self._plain(name, arguments, named))

        return call

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self, self.redis.client.pipeline(transaction=transaction))

    async def send(
        self, what: str, carry_out: Callable[[], Any], *, error: type[Exception] | None = None, may_repeat: bool = False
    ) -> Any:
        """Carry a call out at the next turn, with the fault that is set then."""
        await pause(what)
        fault, self.fault = self.fault, None
        error = error or redis.exceptions.ConnectionError
        if fault == TWICE and not may_repeat:
            fault = None
        if fault:
            self.redis.truth.say(self.who, f"{what} {fault}:")
        if fault == NOT_SENT:
            raise error("Connection closed by server.")
        result = carry_out()
        if fault == TWICE:
            result = carry_out()
        if fault == LOST:
            raise error("Connection closed by server.")
        return result

    def _plain(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        result = getattr(self.redis.client, name)(*arguments, **named)
        if name in ("unlink", "set"):
            self.redis.truth.say(self.who, name)
            self.redis.synchronise()
        return result


class Pipeline:
    """A transaction of plain commands."""

    def __init__(self, client: FaultyClient, commands: Any) -> None:
        self._client = client
        self._commands = commands

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._commands, name)

    async def execute(self) -> None:
        await self._client.send("transaction", self._carry_out)

    def _carry_out(self) -> None:
        self._commands.execute()
        self._client.redis.truth.say(self._client.who, "transaction")
        self._client.redis.synchronise()
