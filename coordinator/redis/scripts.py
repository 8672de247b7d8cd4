"""The Lua scripts as typed callables; each file in `lua/` opens with its contract."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, TypeAlias

from redis.asyncio import Redis

Argument: TypeAlias = "str | bytes | int | float"


class Script:
    """One script, sent by its digest and loaded again when Redis has forgotten it."""

    def __init__(self, client: Redis, name: str) -> None:
        source = files("coordinator").joinpath("lua", f"{name}.lua").read_text()
        self._script = client.register_script(source)
        self.name = name

    def __repr__(self) -> str:
        return f"<Script {self.name}>"

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run it; the answer's shape stands in the script's contract."""
        return await self._script(keys=list(keys), args=list(arguments))
