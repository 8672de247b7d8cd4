"""Pure: the models -> docs/job-file.md and the JSON Schema. `python -m crawler.job.reference` prints the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from inspect import cleandoc, getdoc
from textwrap import fill
from typing import Any

import msgspec
from msgspec import NODEFAULT, inspect

from crawler.job.fields import Section, type_and_extra
from crawler.job.models import (
    JobFile,
    RetrySettings,
    StoreSettings,
)
from crawler.job.request.settings import LoginSettings, RequestSettings
from crawler.job.sections.following import FollowSettings, KindSettings, PaginateSettings
from crawler.job.sections.limits import LimitEntry
from crawler.job.sections.notify import NotifySettings
from crawler.job.sections.parse import ParseSettings
from crawler.job.sections.publish import PublishSettings
from crawler.job.sections.run import RunSettings
from crawler.job.sections.source import KINDS, SourceSettings
from crawler.job.sections.transform import TransformSettings
from crawler.job.tables import KNOWN_TYPES, TableSettings

INTRODUCTION = """\
# The job file

<!-- Made by `python -m crawler.job.reference` from crawler/job/models.py: change it there. -->

A job file is TOML. It says what to fetch, how politely, and where the rows go. Only `[source]` and a name are needed;
every other key has a default. A key that is not on this page is an error that names the nearest one.
`shardcrawl check job.toml` reads everything and sends nothing.

Options of the command line beat the environment (`SHARDCRAWL_WORKERS`, …), which beats the job file. Relative paths and
Python modules are looked up in the job file's folder. The job file is stored with its run, its secrets still as
`${NAME}`.

```toml
[run]
name = "revisions-2026q4"
[source]
path = "titles.txt.gz"
[request]
url = "https://en.wikipedia.org/w/api.php?action=query&prop=revisions&titles={keys}&format=json&formatversion=2"
keys_per_request = 50
[limits."en.wikipedia.org"]
rate = 50
[parse]
python = "parse:revisions"
[[tables]]
name = "revisions"
columns = { page_id = "bigint", rev_id = "bigint", user_name = "text", at = "timestamptz" }
```
"""

_SOURCE_NOTE = """\
Only the machine that runs `run` or `coordinate` reads the source. A run that goes on must find the file unchanged."""

_LIMITS_NOTE = """\
The most specific entry wins: a part of a host, then the host, then the pattern with the most literal characters. A host
without an entry, and without a `*`, gets 10 requests a second and 8 in flight. Two runs at the same time have a budget
each, also at the same upstream. `shardcrawl limit` changes a limit while a run goes on."""

_PARSE_NOTE = """\
Without `python`, the selectors of `[[tables]]` make the rows: [parsers.md](parsers.md#without-code).
With workers on several machines, the module of `python` must lie on each of them, in a folder of the same path as the
job file's; or install it there as a package. The same holds for every file that it reads."""

_TABLES_NOTE = f"""\
Types: {KNOWN_TYPES}. What selectors are, and what `as` reads, is in [parsers.md](parsers.md#without-code)."""

SECTIONS: tuple[tuple[str, type[Section], str], ...] = (
    ("[run]", RunSettings, ""),
    ("[publish]", PublishSettings, ""),
    ("[notify]", NotifySettings, ""),
    ("[source]", SourceSettings, _SOURCE_NOTE),
    ("[request]", RequestSettings, ""),
    ("[request.login]", LoginSettings, ""),
    ("[limits.NAME]", LimitEntry, _LIMITS_NOTE),
    ("[retry]", RetrySettings, ""),
    ("[parse]", ParseSettings, _PARSE_NOTE),
    ("[transform]", TransformSettings, ""),
    ("[store]", StoreSettings, ""),
    ("[[tables]]", TableSettings, _TABLES_NOTE),
    ("[paginate]", PaginateSettings, ""),
    ("[[follow]]", FollowSettings, ""),
    ("[kinds.NAME]", KindSettings, ""),
)
# Left out of the JSON Schema: TOML has no null, and an empty text stands for a key that is not given.
_UNWRITTEN: tuple[tuple[str, Any], ...] = (("default", None), ("default", ""), ("required", []))


def job_page() -> str:
    """The text of docs/job-file.md."""
    return "\n".join([INTRODUCTION, *(_section_text(*section) for section in SECTIONS)])


def job_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a job file, for editors.

    It refuses what the models refuse. Mistakes that take two keys to see, and wrong column types, only `check` finds.
    """
    schema = _without_null(msgspec.json.schema(JobFile))
    parts = schema["$defs"]
    parts["SourceSettings"]["oneOf"] = [{"required": [kind]} for kind in KINDS]
    parts["RequestSettings"]["properties"]["login"] |= _described(
        next(f.type for f in msgspec.structs.fields(RequestSettings) if f.name == "login")
    )
    parts["LoginSettings"]["required"] = ["url"]
    parts["TableSettings"]["required"] = ["name", "columns"]
    parts["TransformSettings"]["required"] = ["python"]
    parts["JobFile"]["required"] = ["source"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null(node: Any) -> Any:
    """The schema without "or null", and without the entries in _UNWRITTEN."""
    if isinstance(node, list):
        return [_without_null(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: _without_null(part) for key, part in node.items() if (key, part) not in _UNWRITTEN}
    if "anyOf" in node:
        kinds = [kind for kind in node.pop("anyOf") if kind != {"type": "null"}]
        node |= {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
    if "description" in node:
        node["description"] = cleandoc(node["description"])
    return node


def _section_text(title: str, model: type[Section], note: str) -> str:
    paragraphs = [f"## `{title}`", getdoc(model) or "", _filled(note)]
    paragraphs.append("\n".join(map(_key_text, msgspec.structs.fields(model))))
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _key_text(field: msgspec.structs.FieldInfo) -> str:
    kind, extra = type_and_extra(inspect.type_info(field.type))
    about = _without_null(msgspec.json.schema(field.type))
    if "description" not in about:
        about |= _described(field.type)
    default = extra.get("absent") or _default(field.default)
    return "\\\n".join(
        (
            f"- **`{field.encode_name}`**: {_kind_words(kind, extra)}. Default: {default}.",
            _filled(about["description"], indent="  "),
            f"  Example: `{field.encode_name} = {_toml(about['examples'][0])}`",
        )
    )


def _described(kind: Any) -> dict[str, Any]:
    """The description and examples of a section in a section, which msgspec leaves out of the schema."""
    about = inspect.type_info(kind)
    while isinstance(about, inspect.UnionType):
        about = about.types[0]
    return dict(about.extra_json_schema or {}) if isinstance(about, inspect.Metadata) else {}


def _filled(text: str, indent: str = "") -> str:
    return fill(
        text, 120, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _default(value: Any) -> str:
    if value is NODEFAULT or value in (None, ()):  # a factory makes an empty table
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"`{_toml(value)}`"
    return f"{value:,.10g}"


def _kind_words(kind: inspect.Type, extra: Mapping[str, str]) -> str:
    match kind:
        case inspect.IntType(ge=least, le=most):
            return f"whole number, {least:,} to {most:,}"
        case inspect.FloatType(ge=least, le=most):
            return f"number, {least:,.10g} to {most:,.10g}"
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=known):
            return " or ".join(f"`{_toml(value)}`" for value in known)
        case inspect.VarTupleType():
            return "list of texts"
        case inspect.DictType():
            return extra.get("kind", "table of texts")
    return extra["write"].removeprefix("write ")


def _toml(value: Any) -> str:
    """The value as TOML writes it on one line."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(part)}' for key, part in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(job_page())
