"""A table with a row for each fault: tests report the rows, and pytest prints them at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TypeAlias

FAULT = "fault"
HEAD = ("scenario", "injected", "lost", "doubled", "recovery")

Property: TypeAlias = dict[str, "str | int | float | None"]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault: what was injected, and how many keys were lost or stored twice.

    `recovery` is the seconds from the fault's end to the next committed page; None where the run did not stop.
    """

    scenario: str
    injected: str
    lost: int
    doubled: int
    recovery: float | None

    def as_property(self) -> Property:
        """The row as a property of a test report, which pytest-xdist sends from process to process."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """The row as texts, in the order of HEAD."""
        recovery = "-" if self.recovery is None else f"{self.recovery:.1f} s"
        return (self.scenario, self.injected, str(self.lost), str(self.doubled), recovery)


def rows_of(properties: Iterable[tuple[str, object]]) -> list[Row]:
    """The rows among a test report's properties."""
    return [Row(**value) for name, value in properties if name == FAULT and isinstance(value, dict)]


def table_lines(rows: Iterable[Row]) -> list[str]:
    """The table as lines, ordered by the number that each scenario begins with."""
    ordered = sorted(rows, key=lambda row: (int(row.scenario.split(" ")[0]), row.scenario, row.injected))
    cells = [HEAD, *(row.cells() for row in ordered)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
