"""The document of a job: read from a job file, or made for a bare source; with the options of a command in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from coordinator.errors import UsageError

JOB_SUFFIX = ".toml"


def load_job_file(path: Path) -> dict[str, Any]:
    """The document in a job file. Raises UsageError."""
    import tomllib  # not for each child process, which gets its document from its parent

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"job file {path}: {error.strerror or error}; name a file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"job file {path}: {error}") from error


def plain_document(given: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of a program as a job file would have it: its own copy, of texts, numbers, lists and tables.

    Raises UsageError for a value that a job file cannot have, above all a function.
    """
    try:
        document: dict[str, Any] = orjson.loads(
            orjson.dumps(given, default=_plain_value, option=orjson.OPT_SERIALIZE_NUMPY)
        )
    except orjson.JSONEncodeError as error:
        raise error.__cause__ if isinstance(error.__cause__, UsageError) else UsageError(f"job: {error}") from None
    return document


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        name = getattr(value, "__name__", "function")
        raise UsageError(
            f"job: {name} is a function of this process, and workers are processes of their own: write it into a file "
            f'(in a notebook by a cell that begins with "%%writefile parse.py") and name it as "parse:{name}"'
        )
    raise UsageError(f"job: {value!r} is a {type(value).__name__}, which a job file cannot have")


@dataclass(frozen=True, slots=True)
class JobOverrides:
    """Options that beat the job file, or add to it (`allow_private`); None where the user gave none."""

    name: str | None = None
    workers: int | None = None
    concurrency: int | None = None
    rate: str | None = None
    batch_rows: int | None = None
    grace: float | None = None
    allow_private: tuple[str, ...] = ()
    refresh: bool = False

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The job document with these options in it. A malformed section stays as it is: `read_job` refuses it."""
        changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in document.items()}
        for section, key, value in (
            ("run", "name", self.name),
            ("run", "workers", self.workers),
            ("run", "concurrency", self.concurrency),
            ("run", "grace", self.grace),
            ("run", "refresh", self.refresh or None),
            ("store", "batch_rows", self.batch_rows),
        ):
            if value is not None and isinstance(changed.setdefault(section, {}), dict):
                changed[section][key] = value
        if self.allow_private and isinstance(request := changed.setdefault("request", {}), dict):
            given = request.get("allow_private", [])
            if isinstance(given, list):
                request["allow_private"] = list(dict.fromkeys([*given, *self.allow_private]))
        if self.rate is not None and isinstance(limits := changed.setdefault("limits", {}), dict):
            limits.setdefault("*", {})
            changed["limits"] = {name: self._limit(limit) for name, limit in limits.items()}
        return changed

    def _limit(self, limit: Any) -> Any:
        """One entry of `[limits]` with the rate of the command line, which has no ceiling unless it is "auto"."""
        if not isinstance(limit, Mapping):
            return limit
        kept = {key: value for key, value in limit.items() if key != "ceiling" or self.rate == "auto"}
        return {**kept, "rate": self.rate}


def load_document(job: str, overrides: JobOverrides) -> tuple[dict[str, Any], str, bool]:
    """The document of a job file or of a bare source, with the overrides in it, and the folder of its relative paths.

    And whether it names its corpus itself. Raises UsageError.
    """
    if job.endswith(JOB_SUFFIX):
        path = Path(job)
        document = load_job_file(path)
        run = document.setdefault("run", {})
        names_corpus = isinstance(run, dict) and "corpus" in run
        if isinstance(run, dict):
            run.setdefault("corpus", _name_of(path.resolve()))
        return overrides.apply(document), str(path.resolve().parent), names_corpus
    folder = str(Path.cwd())
    if job == "-":
        return overrides.apply({"run": {"corpus": "stdin", "name": "stdin"}, "source": {"path": job}}), folder, False
    path = Path(job).absolute()
    name = _name_of(path)
    run = {"corpus": name} if overrides.refresh else {"corpus": name, "name": name}
    return overrides.apply({"run": run, "source": {"path": str(path)}}), folder, False


def _name_of(path: Path) -> str:
    """A corpus' name from that of its file, or of its folder; for a glob such as titles/*.gz that of the folder."""
    stems = (re.sub(r"[^A-Za-z0-9._-]+", "-", part.split(".")[0]).strip("-._") for part in reversed(path.parts))
    return next((stem for stem in stems if stem), "run")[:80]
