"""A simulated process' Redis client: it waits for its turn before each call, and calls go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import redis.exceptions

from tests.simulation.truth import pause
from tests.simulation.wire import Wire

UNSENT, LOST, TWICE = "never arrives", "its answer gets lost", "arrives twice"


class Client:
    """What one process holds for a Redis client: it waits for its turn before each call, and calls can go wrong."""

    def __init__(self, wire: Wire, who: str) -> None:
        self.wire = wire
        self.who = who
        self.fault: str | None = None

    def register_script(self, source: str) -> Any:
        name = self.wire.names[source]

        async def call(*, keys: Sequence[str], args: Sequence[Any]) -> Any:
            return await self.send(
                name, lambda: self.wire.run(self.who, name, keys, args), may_repeat=name != "run/replan"
            )

        return call

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            return await self.send(name, lambda: self._plain(name, arguments, named))

        return call

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self, self.wire.redis.pipeline(transaction=transaction))

    async def send(
        self, what: str, carry_out: Callable[[], Any], *, error: type[Exception] | None = None, may_repeat: bool = False
    ) -> Any:
        """Carry a call out at the next turn, with the fault that this turn brings."""
        await pause(what)
        fault, self.fault = self.fault, None
        error = error or redis.exceptions.ConnectionError
        if fault == TWICE and not may_repeat:
            fault = None
        if fault:
            self.wire.truth.say(self.who, f"{what} {fault}:")
        if fault == UNSENT:
            raise error("Connection closed by server.")
        answer = carry_out()
        if fault == TWICE:
            answer = carry_out()
        if fault == LOST:
            raise error("Connection closed by server.")
        return answer

    def _plain(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        answer = getattr(self.wire.redis, name)(*arguments, **named)
        if name in ("unlink", "set"):
            self.wire.truth.say(self.who, name)
            self.wire.synchronise()
        return answer


class Pipeline:
    """A transaction of plain commands."""

    def __init__(self, client: Client, commands: Any) -> None:
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
        self._client.wire.truth.say(self._client.who, "transaction")
        self._client.wire.synchronise()
