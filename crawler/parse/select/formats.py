"""The formats of responses and their languages: paths through JSON, NDJSON and CSV, and CSS through HTML and XML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from crawler.parse.received import Received
from crawler.parse.select.language import Language, Rows, not_of_format
from crawler.parse.select.path import ABSENT, Each, Node, Step, compile_path, compile_quick, expand, read_path, walk
from crawler.parse.values import exact_json

DELIMITERS = ",;\t|"


def _read_json(response: Received) -> Any:
    try:
        return response.json()
    except ValueError:
        raise not_of_format(response, "JSON") from None


def _read_ndjson(response: Received) -> Any:
    records = []
    for number, line in enumerate(response.text().split("\n"), 1):
        if line.strip():
            try:
                records.append(exact_json.loads(line.encode()))
            except ValueError:
                raise not_of_format(response, "NDJSON", ValueError(f"line {number} is no JSON")) from None
    return records


def _read_csv(response: Received) -> Any:
    """A list of mappings by the names in the first line. The delimiter is the one that stands there most often."""
    text = response.text()
    first, _, _ = text.partition("\n")
    delimiter = max(DELIMITERS, key=first.count)
    records: list[Mapping[str, str]] = []
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(lines, [])]
        for fields in lines:
            if fields and len(fields) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(fields)} fields, the first line {len(names)}")
            if fields:
                records.append(dict(zip(names, fields, strict=True)))
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


def _compile_rows_of_list(path: str | None) -> Rows:
    return _compile_rows(path or "")


def _compile_without(paths: Sequence[str]) -> Callable[[Any], bytes]:
    found = [read_path(path.removeprefix("$").removeprefix(".")) for path in paths]
    if not all(found):
        raise ValueError("an empty path is all of the response")

    def without(value: Any) -> bytes:
        for steps in found:
            _remove(value, steps)
        return exact_json.dumps(value).encode()

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


_LANGUAGES = {
    "json": Language(_read_json, _compile_get, compile_quick, _compile_rows, _compile_without),
    "ndjson": Language(_read_ndjson, _compile_get, compile_quick, _compile_rows_of_list, _compile_without),
    "csv": Language(_read_csv, _compile_get, compile_quick, _compile_rows_of_list, _compile_without, is_text=True),
}
