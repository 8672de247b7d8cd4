"""`[parse]`: its model, and checks of the selectors there and in `[[tables]]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from coordinator.errors import UsageError
from crawler.job.fields import DURATION, FUNCTION, MAX_WAIT_SECONDS, MEDIAWIKI_ALIASES, Section, number, text, value
from crawler.job.request_checks import seconds_of
from crawler.job.tables import TableSettings


# The formatter would give each argument a line of its own.
# fmt: off
class ParseSettings(Section, frozen=True, kw_only=True):
    """What makes rows of a response: a function of yours, or selectors."""

    python: Annotated[str, text(
        "A function of yours, module:function, that is called with each response and returns rows. The module is "
        "looked up in the job file's folder.",
        "parse:revisions", f"^{FUNCTION}$", absent="the whole body is stored in `pages`")] | None = None
    format: Annotated[Literal["json", "ndjson", "csv", "html", "xml"], value(
        "What the responses are, which decides the language of selectors: dotted paths, and CSS for html and xml. A "
        "response that is something else fails its keys.",
        "html", write='write "json", "ndjson", "csv", "html" or "xml"')] = "json"
    rows: Annotated[str, text(
        "Where the records are in a response, as a path: each element of a list, or one object; in html "
        "and xml each element that matches. A path that leads to nothing fails the key, and an empty list is no rows.",
        "query.pages", absent="each response is one record; in ndjson and csv each line is")] | None = None
    key: Annotated[str, text(
        "With several keys a request: the selector of that which says whose record it is.",
        "title")] | None = None
    wait: Annotated[str | tuple[str, ...], value(
        "When a key is not ready yet, written like `failed`: it is requested again, later and later, at no attempt's "
        "cost. With it, a 202 is read too. `wait`, `retry`, `failed` and `gone` are read in this order.",
        "$status = 202", write="write a condition, or a list of conditions")] = ()
    wait_most: Annotated[str, text(
        "How long a key may wait in all before it fails, at most 24h.", "10min", f"^{DURATION}$")] = "1h"
    retry: Annotated[str | tuple[str, ...], value(
        "When a response is worth another attempt, written like `failed`: a failed one, by the rules of `[retry]`.",
        "$.error.code = busy", write="write a condition, or a list of conditions")] = ()
    failed: Annotated[str | tuple[str, ...], value(
        "When a key has failed: a condition, or several of which one is enough. One that begins with `$` is about the "
        "response and all of its keys, any other one about a record and its key.",
        "$.error.info", write="write a condition, or a list of conditions")] = ()
    gone: Annotated[str | tuple[str, ...], value(
        "When the upstream does not have a key; written like `failed`, and read after it.",
        ["missing", "$ = null"], write="write a condition, or a list of conditions")] = ()
    timeout: Annotated[float, number(
        "Seconds that the function may take for one response. A key that takes longer when it is alone is failed.",
        120, 0.1, 3600.0)] = 20.0
    alias: Annotated[tuple[str, ...], value(
        "Where a JSON response lists what the upstream calls the keys of a request: paths to lists of "
        '{"from": …, "to": …}; a path may be absent. `response.key_for` and `_key` find keys by these names too. '
        "The default is where MediaWiki has them.",
        ["meta.renamed"])] = MEDIAWIKI_ALIASES
    no_record: Annotated[Literal["failed", "gone", "stored"], value(
        "How a key ends for which the parser returned no record, in a job with `[[tables]]`.",
        "gone", write='write "failed", "gone" or "stored"',
        absent="failed; stored when the key was asked for alone")] | None = None
    ignore: Annotated[tuple[str, ...], value(
        "What of a body without a parser may differ, like the id of a request, and the page is unchanged all the same: "
        "paths, in html and xml selectors.",
        ["footer .request-id"])] = ()
# fmt: on


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
