"""The document of a job: read from a job file, or made for a bare source; with the options of a command in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.errors import UsageError

JOB_SUFFIX = ".toml"


def load_job_file(path: Path) -> dict[str, Any]:
    """The document in a job file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"job file {path}: {error.strerror or error}; name a file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"job file {path}: {error}") from error


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


def load_document(job: str, overrides: JobOverrides) -> tuple[dict[str, Any], str]:
    """The document of a job file or of a bare source, with the overrides in it, and the folder of its relative paths.

    Raises UsageError.
    """
    if job.endswith(JOB_SUFFIX):
        path = Path(job)
        document = load_job_file(path)
        if isinstance(run := document.setdefault("run", {}), dict):
            run.setdefault("corpus", _name_of(path.resolve()))
        return overrides.apply(document), str(path.resolve().parent)
    if job == "-":
        return overrides.apply({"run": {"corpus": "stdin", "name": "stdin"}, "source": {"path": job}}), str(Path.cwd())
    path = Path(job).absolute()
    name = _name_of(path)
    run = {"corpus": name} if overrides.refresh else {"corpus": name, "name": name}
    return overrides.apply({"run": run, "source": {"path": str(path)}}), str(Path.cwd())


def _name_of(path: Path) -> str:
    """A corpus' name from that of its file, or of its folder; for a glob such as titles/*.gz that of the folder."""
    stems = (re.sub(r"[^A-Za-z0-9._-]+", "-", part.split(".")[0]).strip("-._") for part in reversed(path.parts))
    return next((stem for stem in stems if stem), "run")[:80]
