"""The formats of responses and their languages: paths through JSON, NDJSON and CSV, and CSS through HTML and XML."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from coordinator.source.rows.delimited import delimiter_of
from crawler.parse.received import Received
from crawler.parse.select.language import Language, Lines, Rows, not_of_format
from crawler.parse.select.path import (
    ABSENT,
    NOT_ENCLOSED,
    Around,
    Each,
    Node,
    Step,
    compile_path,
    compile_quick,
    expand,
    read_path,
    walk,
)
from crawler.parse.values import exact_json

# How a page, XML and JSON begin. As a csv each may be one line of names, with no lines behind it.
_OTHER_FORMAT = re.compile(r"\s*(?:<(?:!doctype|html|\?xml)\b|\{\s*[\"}]|\[\s*[{\"\]])", re.IGNORECASE)


def _read_json(response: Received) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise not_of_format(response, "JSON", ValueError(exact_json.fault(error))) from None


def _read_ndjson(response: Received) -> Any:
    records = []
    for number, line in enumerate(response.json_lines(), 1):
        if line.strip():
            try:
                records.append(exact_json.loads(line.lstrip(b"\x1e")))  # which begins a record of RFC 7464
            except (ValueError, RecursionError):
                raise not_of_format(response, "NDJSON", ValueError(f"line {number} is no JSON")) from None
    return records


def _read_csv(response: Received) -> Any:
    """A list of mappings by the names in the first line that is not empty."""
    text = response.text()
    if _OTHER_FORMAT.match(text):
        raise not_of_format(response, "CSV")
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # which is one for the process
    records = Lines()
    try:
        delimiter = delimiter_of(re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0])
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(filter(None, lines), [])]
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise ValueError(f"two columns are called {twice[0]!r}")
        for fields in lines:
            if fields and len(fields) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(fields)} fields, the first line {len(names)}")
            if fields:
                records.append(dict(zip(names, fields, strict=True)))
        records.names = names
    except (csv.Error, ValueError) as error:
        raise not_of_format(response, "CSV", error) from None
    return records


def _compile_get(path: str) -> Callable[[Any, str], Any]:
    get = compile_path(path)
    return lambda value, _: get(value)


def _compile_rows(path: str | None) -> Rows:
    if path is None:
        return lambda value: (Node(value),)
    steps = [*read_path(path), Each.RECORD]
    straight = steps[: next(at for at, step in enumerate(steps) if isinstance(step, Each))]

    def rows(value: Any) -> Iterable[Node] | None:
        return None if walk(value, straight, path) in (ABSENT, None) else expand(Node(value), steps, path)

    return rows


def _compile_rows_of_lines(path: str | None) -> Rows:
    return _compile_rows(path or "")


def _is_list(path: str) -> bool:
    return any(isinstance(step, Each) for step in read_path(path))


def _around(path: str | None) -> Around:
    if path is None:
        return NOT_ENCLOSED
    steps = read_path(path)
    last = steps[-1] if steps else ""
    levels = sum(isinstance(step, Each) for step in steps) + (not isinstance(last, Each))
    return Around(levels, has_name=last is Each.VALUE)


def _around_of_lines(path: str | None) -> Around:
    return _around(path or "")


def _compile_without(paths: Sequence[str], *, of_lines: bool = False) -> Callable[[Any], bytes]:
    found = [read_path(path.removeprefix("$").removeprefix(".")) for path in paths]
    if not all(found):
        raise ValueError("an empty path is all of the response")
    if of_lines:  # a name is a member of each line, as in the columns of a table: the list of all lines has none
        found = [[Each.ELEMENT, *steps] if isinstance(steps[0], str) else steps for steps in found]

    def without(value: Any) -> bytes:
        for steps in found:
            _remove(value, steps)
        return exact_json.sorted_dumps(value).encode()

    return without


def _remove(value: Any, steps: Sequence[Step]) -> None:
    """Remove that to which the steps lead, where it is there."""
    step, *rest = steps
    if not isinstance(value, dict | list):
        return
    if isinstance(step, Each):
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
    elif isinstance(value, dict):
        places = [str(step)] if str(step) in value else []
    else:
        places = [step] if isinstance(step, int) and -len(value) <= step < len(value) else []
    for place in reversed(places):
        if rest:
            _remove(value[place], rest)
        else:
            del value[place]


def language_of(name: str) -> Language:
    """The language of a format."""
    if name in ("html", "xml"):
        from crawler.parse.select import markup  # importing takes 30 ms, which other jobs need not wait

        return markup.HTML if name == "html" else markup.XML
    return _LANGUAGES[name]


_OF_LINES = (
    *(_compile_get, compile_quick, _compile_rows_of_lines),
    *(partial(_compile_without, of_lines=True), _is_list, _around_of_lines),
)
_LANGUAGES = {
    "json": Language(_read_json, _compile_get, compile_quick, _compile_rows, _compile_without, _is_list, _around),
    "ndjson": Language(_read_ndjson, *_OF_LINES, has_lines=True),
    "csv": Language(_read_csv, *_OF_LINES, is_text=True, has_lines=True),
}
