"""Checks of the selectors in `[parse]` and `[[tables]]`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from coordinator.errors import UsageError
from crawler.job.fields import DURATION, MAX_WAIT_SECONDS
from crawler.job.models import ParseSettings
from crawler.job.request_checks import seconds_of
from crawler.job.tables import TableSettings


def check_selectors(
    parse: ParseSettings, tables: Sequence[TableSettings], *, has_parser: bool, has_following: bool
) -> None:
    """Raise UsageError for selectors that nothing reads; `tables` are those of the kind."""
    given = [f"[parse] {key}" for key in ("rows", "key", "wait", "retry", "failed", "gone") if getattr(parse, key)]
    given += ["[parse] format"] if parse.format != "json" and not parse.ignore else []
    given += [f"table {table.name}: {key}" for table in tables for key in ("rows", "skip") if getattr(table, key)]
    given += [
        f"table {table.name}: column {column}"
        for table in tables
        for column, settings in table.column_settings.items()
        if not isinstance(settings, str)
    ]
    if not re.fullmatch(DURATION, parse.wait_most) or seconds_of(parse.wait_most) > MAX_WAIT_SECONDS:
        raise UsageError(f'job: [parse] wait_most is {parse.wait_most!r}; write a time like "10min", at most "24h"')
    if parse.ignore and has_parser:
        raise UsageError("job: [parse] ignore: pages with a parser are compared by their records; leave it out")
    if given and parse.python is not None:
        raise UsageError(f"job: {given[0]}: [parse] python makes the records; leave out one of the two")
    if given and not tables and not has_following:
        raise UsageError(f"job: {given[0]}: selectors fill [[tables]]; add one with its columns")
