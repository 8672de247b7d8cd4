"""What the benchmarks of whole runs share: `shardcrawl` commands, and a table of what they promise and what held."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

COUNT_PAGES = (
    "select count(*) as keys, count(distinct digest) as digests, count(*) filter (where outcome = 'stored') as stored, "
    "count(*) filter (where body->>'id' = split_part(key, '/item/', 2)) as right_id from pages where run_id = "
    "(select run_id from runs where name = '{name}')"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was done, the figure, what was promised, and whether it held."""

    what: str
    figure: str
    promised: str
    held: bool


async def shardcrawl(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Start a command with its data in `folder`, without a default rate."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "crawler",
        *arguments,
        "--data",
        str(folder / "data"),
        cwd=folder,
        env={"SHARDCRAWL_RATE": "none", **os.environ, "SHARDCRAWL_ALLOW_PRIVATE": "127.0.0.0/8"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def result(folder: Path, *arguments: str) -> Any:
    """Run a command, and return what it prints as JSON."""
    process = await shardcrawl(folder, *arguments, "--json")
    out, _ = await process.communicate()
    return json.loads(out)


def peak_memory(pid: int) -> float:
    """The most memory that a process has had so far, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def children(pid: int) -> list[psutil.Process]:
    """The processes of a run: workers, coordinator, Redis and Postgres."""
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def corpus(folder: Path, name: str, url: str, keys: int) -> str:
    """Write a file of URLs, and return its path."""
    path = folder / f"{name}.txt"
    with path.open("w") as file:
        file.writelines(f"{url}/item/{number}\n" for number in range(keys))
    return str(path)


async def page_counts(folder: Path, name: str) -> dict[str, int]:
    """How many pages of a run are in Postgres, by COUNT_PAGES."""
    return dict((await result(folder, "sql", COUNT_PAGES.format(name=name)))[0])


def each_key_once(counts: dict[str, int], keys: int) -> bool:
    """Whether each key has one page, stored, with its own body."""
    return set(counts.values()) == {keys}


def as_text(counts: dict[str, int]) -> str:
    """The counts as a figure of a row."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def report(rows: list[Row]) -> int:
    """Print the rows as a table; 1 when a promise did not hold, else 0."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("what", "measured", "promised", "held"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.what, row.figure, row.promised, "yes" if row.held else "NO")
    Console(width=140).print(table)
    return 0 if all(row.held for row in rows) else 1
