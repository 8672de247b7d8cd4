"""The figures of `compare` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ops.bench.contenders import SHARDCRAWL
from ops.bench.trials import PARTS, Figures, Promise, ratio

HELD = {True: "yes", False: "NO", None: "not measured"}


def table(lines: Sequence[Figures]) -> Table:
    """The table of figures. Column `ours is`: how many times as fast shardcrawl is in the same circumstances."""
    ours = {(line.part, line.circumstance): line for line in lines if line.contender == SHARDCRAWL.name}
    shown = Table(box=box.SIMPLE_HEAD, caption="medians; CPU seconds and memory of the contender's own processes")
    shown.add_column("", no_wrap=True)
    for column in ("keys", "keys/s", "lowest to highest", "ours is", "CPU-s/1,000", "MB at most", "whole command"):
        shown.add_column(column, justify="right", no_wrap=True)
    title = ""
    for line in sorted(lines, key=lambda line: PARTS.index(line.part)):
        if line.circumstance != title:
            title = line.circumstance
            shown.add_section()
            shown.add_row(f"[bold]{title}")
        mine = ours.get((line.part, line.circumstance), line)
        shown.add_row(
            f"  {line.contender}",
            f"{line.keys:,}",
            f"{line.rate:,.0f}",
            f"{min(line.rates):,.0f} to {max(line.rates):,.0f}",
            "" if mine is line else f"{ratio(mine, line):.2f} x",
            f"{line.cpu:.3f}",
            f"{line.memory:,.0f}",
            f"{line.command_rate:,.0f}/s",
        )
    return shown


def promise_table(found: Sequence[Promise]) -> Table:
    """The promises and whether they held."""
    shown = Table(box=box.SIMPLE_HEAD)
    for column in ("promise", "at least", "measured", "held"):
        shown.add_column(column)
    for promise in found:
        shown.add_row(promise.what, promise.promised, promise.measured, HELD[promise.held])
    return shown
