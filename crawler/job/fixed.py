"""Pure: the settings that must stay the same within a run, or from one run of a corpus to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from crawler.job.job import Job

# The [section] and key of each setting that must stay the same within a run; without a key, the whole section. With
# another source, template or table, the keys and rows of the run would mean something else.
_FIXED_SETTINGS = (
    ("source", None),
    *(("request", name) for name in ("url", "method", "json", "form", "body", "keys_per_request")),
    *(("tables", None), ("kinds", None), ("store", "schema")),
)
_SHOWN_CHARACTERS = 60


class BegunRun(Protocol):
    """A run that exists, and the document of the job with which it was opened last."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def folder(self) -> str | None:
        """The folder of the job file; None when an older version began the run."""
        ...

    @property
    def document(self) -> Mapping[str, Any]:
        """The document."""
        ...


def changed_setting(job: Job, stored: BegunRun) -> str | None:
    """Pure: the error message for the first fixed setting that differs from the stored job; None when none differs.

    Of tables their names, kinds and columns are fixed, and of kinds their requests: selectors may be mended.
    """
    for section, key in _FIXED_SETTINGS:
        then, now = (_fixed_part(section, document.get(section)) for document in (stored.document, job.document))
        if key is not None:
            then, now = (then or {}).get(key), (now or {}).get(key)
        if then != now:
            if section == "tables" and (column := _new_column(then, now)):
                return (
                    f"run {stored.name} was begun without {column}, and has these columns to its end: finish it with "
                    "the job as it was, or give the new run another --name"
                )
            if key is None and isinstance(then, dict) and isinstance(now, dict):
                key = next(key for key in {**then, **now} if then.get(key) != now.get(key))
                then, now = then.get(key), now.get(key)
            return _begun_with_another(stored, f"[{section}] {key}" if key else f"[{section}]", then, now)
    corpus = (stored.document.get("run") or {}).get("corpus")
    if corpus is None and stored.folder is not None:  # one of an older version stays what it is, whatever the job says
        corpus = stored.name
    if corpus not in (None, job.corpus):
        return _begun_with_another(stored, "[run] corpus", corpus, job.corpus)
    return None


def why_no_new_run(job: Job, newest: BegunRun | None, current: BegunRun | None) -> str | None:
    """Pure: the error message when the job must not begin a run in its corpus; else None.

    `newest` is the corpus' newest run, and `current` the one that readers see.
    """
    return _other_corpus(job, newest) or _left_out_table(job, current)


def _other_corpus(job: Job, newest: BegunRun | None) -> str | None:
    # Two job files with the same name in two folders are two corpora when they fetch other things. With the name in the
    # job file it is meant.
    if newest is None:
        return None
    then, now = ((one.get("source"), (one.get("request") or {}).get("url")) for one in (newest.document, job.document))
    if job.names_corpus or newest.folder in (None, job.folder) or then == now:
        return None
    return (
        f"corpus {job.corpus} is that of the job in {newest.folder}, which has another [source] or [request] url: "
        f'write [run] corpus = "…" with another name into this job file, or corpus = "{job.corpus}" to go on with it'
    )


def _left_out_table(job: Job, current: BegunRun | None) -> str | None:
    # Neither a new run nor any later one would have the records of a table that merges, and that the job has no longer.
    names = {table.name for table in job.tables}
    for table in current.document.get("tables", ()) if current is not None else ():
        if table.get("mode") == "merge" and table["name"] not in names:
            return (
                f"table {table['name']} merges, and the job has it no longer: {table['name']}_current would lose what "
                f"runs of corpus {job.corpus} have brought; bring it back, or let one run have it with "
                'mode = "replace" before'
            )
    return None


def _begun_with_another(stored: BegunRun, setting: str, then: Any, now: Any) -> str:
    return (
        f"run {stored.name} was begun with another {setting} ({_shortened(then)}, now {_shortened(now)}): "
        "give the new run another --name"
    )


def _fixed_part(section: str, settings: Any) -> Any:
    """What of a section must stay the same."""
    if section == "tables" and isinstance(settings, list):
        return {table.get("name"): {"kind": table.get("kind", ""), "columns": _types(table)} for table in settings}
    if section == "kinds" and isinstance(settings, dict):
        return {kind: given.get("request", {}) for kind, given in settings.items()}
    return settings


def _new_column(then: Any, now: Any) -> str | None:
    """The first column that only a table of the new job has."""
    pairs = [(name, then[name], now[name]) for name in now or () if name in (then or ())]
    new = (
        f"column {column} of table {name}"
        for name, a, b in pairs
        for column in b["columns"]
        if column not in a["columns"]
    )
    return next(new, None)


def _types(table: Mapping[str, Any]) -> dict[str, Any]:
    columns = table.get("columns", {}).items()
    return {name: given.get("type") if isinstance(given, dict) else given for name, given in columns}


def _shortened(value: Any) -> str:
    """A setting as a job file has it."""
    text = "nothing" if value is None else orjson.dumps(value, default=str).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
