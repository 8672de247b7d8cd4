"""What every fault did, in rows that tests report and `make faults` prints at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TypeAlias

FAULT = "fault"
HEAD = ("scenario", "injected", "lost", "doubled", "recovery")

Property: TypeAlias = dict[str, "str | int | float | None"]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. `recovery` is seconds from its end to the next committed page; None where nothing stood still."""

    scenario: str
    injected: str
    lost: int
    doubled: int
    recovery: float | None

    def packed(self) -> Property:
        """The row as a test's report carries it from one process to another."""
        return asdict(self)

    def shown(self) -> tuple[str, ...]:
        """Its cells."""
        recovery = "-" if self.recovery is None else f"{self.recovery:.1f} s"
        return (self.scenario, self.injected, str(self.lost), str(self.doubled), recovery)


def rows_of(properties: Iterable[tuple[str, object]]) -> list[Row]:
    """The rows in a report's properties."""
    return [Row(**value) for name, value in properties if name == FAULT and isinstance(value, dict)]


def lines(rows: Iterable[Row]) -> list[str]:
    """The table, ordered by scenario."""
    ordered = sorted(rows, key=lambda row: (int(row.scenario.split(" ")[0]), row.scenario, row.injected))
    cells = [HEAD, *(row.shown() for row in ordered)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
