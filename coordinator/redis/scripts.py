"""The Lua scripts as callables. Each file in `lua/` has its contract at the top.

A line `-- include: NAME` in a script is replaced by the text of `lua/fragments/NAME.lua`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coordinator.redis.connection import is_damage

logger = logging.getLogger(__name__)

Argument: TypeAlias = "str | bytes | int | float"
_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)


@cache
def source(name: str) -> str:
    """The text of a script such as "queue/publish", with its fragments included. Raises FileNotFoundError."""
    return _INCLUDE.sub(lambda include: _read(f"fragments/{include[1]}"), _read(name))


def _read(name: str) -> str:
    return files("coordinator").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


class Script:
    """One script. It is called by its SHA-1 (EVALSHA), and loaded again when Redis does not have it any more.

    The keys of one that is `disposable` can be done without, but those that it `keeps`: when another program has put
    something else there, they are deleted, and it begins anew.
    """

    def __init__(self, client: Redis, name: str, *, disposable: bool = False, keeps: Sequence[str] = ()) -> None:
        self._client = client
        self._script = client.register_script(source(name))
        self._disposable, self._keeps = disposable, keeps
        self.name = name

    def __repr__(self) -> str:
        return f"<Script {self.name}>"

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Carry it out. Its contract says what it returns. Raises redis-py's errors."""
        try:
            return await self._script(keys=list(keys), args=list(arguments))
        except ResponseError as error:
            if not self._disposable or not is_damage(error):
                raise
            logger.warning("Redis has something else where %s keeps its state; it is deleted: %s", self.name, error)
            await self._client.unlink(*(key for key in keys if key not in self._keeps))
            return await self._script(keys=list(keys), args=list(arguments))
