"""`[transform]`: functions of the user's through which records go before they are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from msgspec.structs import replace

from coordinator.errors import UsageError
from crawler.job.fields import BYTES, FUNCTION, Section, bytes_of, number, read_section, text
from crawler.job.tables import TableSettings


# The formatter would give each argument a line of its own.
# fmt: off
class TransformSettings(Section, frozen=True, kw_only=True):
    """A function of yours from many records to records, in processes of its own: [transform.md](transform.md).

    Several are written as `[[transform]]`, in the order in which records go through them.
    """

    python: Annotated[str, text(
        "The function, module:function, from a list of records to a list of records. The module is looked up in the "
        "job file's folder. If it has a function `setup`, each process calls that once.",
        "features:batch", f"^{FUNCTION}$", absent="none, it is needed")] = ""
    table: Annotated[str, text(
        "The table whose records it gets.",
        "revisions", absent="the job's first table")] = ""
    batch: Annotated[int, number(
        "Records of one call at most. A key's records are in one call, unless they are more.",
        256, 1, 100_000)] = 1000
    age: Annotated[float, number(
        "Seconds that a record waits at most for its batch to become full, while a process has nothing to do.",
        5, 0.01, 60.0)] = 1.0
    processes: Annotated[int, number(
        "Processes of each worker that call the function.",
        2, 1, 256)] = 1
    seconds: Annotated[float, number(
        "Seconds that one call may take; at most `grace` of `[run]`. A key whose records take longer alone is failed.",
        10, 0.1, 3600.0)] = 20.0
    memory: Annotated[str, text(
        "What a process may take beside what it has after `setup` (Linux). A key whose records need more alone is "
        "failed.",
        "1GB", f"^{BYTES}$", absent="no bound")] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """`memory` as a number, None for no bound."""
        return None if self.memory is None else bytes_of(self.memory)
# fmt: on


def transforms_in(given: Any, tables: Sequence[TableSettings], grace: float) -> tuple[TransformSettings, ...]:
    """The transforms of a job in their order, each with its table. Raises UsageError."""
    if given is None:
        return ()
    if not isinstance(given, Mapping | list):
        raise UsageError("job: transform is written as [transform], or as [[transform]], once for each")
    several = isinstance(given, list)
    found = [
        read_section(TransformSettings, "[transform]" if several else "transform", one)
        for one in (given if isinstance(given, list) else [given])
    ]
    return tuple(_checked(one, [table.name for table in tables], grace) for one in found)


def _checked(settings: TransformSettings, tables: Sequence[str], grace: float) -> TransformSettings:
    if not re.fullmatch(FUNCTION, settings.python):
        raise UsageError(f"job: [transform] python is {settings.python!r}; write module:function")
    if not tables:
        raise UsageError("job: [transform] gets the records of a table: add [[tables]] with its columns")
    if settings.table and settings.table not in tables:
        close = get_close_matches(settings.table, tables, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the job has {', '.join(tables)}"
        raise UsageError(f"job: [transform] table: no table {settings.table!r}; {hint}")
    if settings.seconds > grace:
        raise UsageError(
            f"job: [transform] seconds is {settings.seconds:g}, and [run] grace {grace:g}: a worker that is told to "
            "stop could not finish a call; make seconds less, or grace more"
        )
    if settings.memory is not None and not re.fullmatch(BYTES, settings.memory):
        raise UsageError(f'job: [transform] memory is {settings.memory!r}; write a size like "1GB"')
    return replace(settings, table=settings.table or tables[0])
