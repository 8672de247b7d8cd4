"""Pure: `{since}` of `[run]` in the texts of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

# {{since}} stands for the text {since}, and ${since} for a secret.
PLACE = "{since}"
_PLACE = re.compile(r"(?<![{$])\{since\}(?!\})")


def with_since(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document with `[run] since` in the place of each {since} in `[request]`, also of kinds, and `[source] since`.

    It is percent-encoded in `url`. A document without `[run] since`, or a malformed part of it, stays as it is.

    """
    run = document.get("run")
    since = run.get("since") if isinstance(run, Mapping) else None
    if not isinstance(since, str):
        return document
    filled = dict(document)
    if "request" in filled:
        filled["request"] = _request(filled["request"], since)
    if isinstance(kinds := filled.get("kinds"), Mapping):
        filled["kinds"] = {
            name: {**kind, "request": _request(kind["request"], since)}
            if isinstance(kind, Mapping) and "request" in kind
            else kind
            for name, kind in kinds.items()
        }
    source = filled.get("source")
    if isinstance(source, Mapping) and source.get("since") == PLACE:  # which takes a day
        filled["source"] = {**source, "since": since[:10]}
    return filled


def _request(section: Any, since: str) -> Any:
    if not isinstance(section, Mapping):
        return section
    encoded = quote(since, safe="")
    return {name: _filled(value, encoded if name == "url" else since) for name, value in section.items()}


def _filled(value: Any, since: str) -> Any:
    if isinstance(value, str):
        return _PLACE.sub(since.replace("\\", r"\\"), value)
    if isinstance(value, Mapping):
        return {name: _filled(part, since) for name, part in value.items()}
    return [_filled(part, since) for part in value] if isinstance(value, list) else value
