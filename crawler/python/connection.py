"""`crawler.connect` and `crawler.run`: what commands do, for Python programs and notebooks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.errors import UsageError
from coordinator.tasks import Background
from crawler.cli.display.notebook import screen_here
from crawler.cli.inspect import all_runs
from crawler.cli.options import DATA_FOLDER, LOG_LEVELS
from crawler.cli.rows.diff import compared_runs, diff_json
from crawler.job.document import JobOverrides, load_document, plain_document
from crawler.job.job import Job, read_job
from crawler.job.sections.source import KINDS
from crawler.local.events import Listener
from crawler.local.services import Place
from crawler.python.key_file import Key, write_keys
from crawler.python.result import RunResult
from crawler.python.threaded import run_in_thread
from crawler.reader import read

if TYPE_CHECKING:
    from arro3.core import RecordBatchReader


class Connection:
    """A place where runs are: Redis and Postgres at their addresses, or embedded in a folder.

    Each call starts the servers that are embedded, unless a command has, and stops them at its end. Every method raises
    ShardcrawlError.
    """

    def __init__(self, place: Place, environ: Mapping[str, str]) -> None:
        self._place = place
        self._environ = environ

    def run(
        self,
        job: Job | Mapping[str, Any] | str | Path,
        *,
        keys: Iterable[Key] | None = None,
        name: str | None = None,
        refresh: bool = False,
        workers: int | None = None,
        rate: float | str | None = None,
        log_level: str = "warning",
    ) -> RunResult:
        """Run a job, the dict of one, or a job file, until it is complete; see `crawler.run`."""
        if log_level not in LOG_LEVELS:
            raise UsageError(f"run: log_level is {log_level!r}; write one of {', '.join(LOG_LEVELS)}")
        overrides = JobOverrides(name=name, refresh=refresh, workers=workers, rate=None if rate is None else str(rate))
        wanted = _job_of(job, overrides, keys, self._place.data)
        with screen_here() as screen:
            listener = Listener(screen, screen.progress_seconds, log_level=log_level.upper())
            end = run_in_thread(self._place, wanted, listener, self._environ)
        result = RunResult.of(end, self._place)
        for line in (result.summary, *result.notices):
            screen.say(line)
        return result

    def read(
        self, name: str, table: str = "", *, columns: Sequence[str] | None = None, where: str | None = None
    ) -> RecordBatchReader:
        """The rows of a run, or of a corpus' current run; see `crawler.read`."""
        place = self._place
        return read(name, table, columns=columns, where=where, database=place.database, data=place.data)

    def runs(self) -> list[dict[str, Any]]:
        """Every run, oldest first, as `shardcrawl runs --json` has it."""
        with closing(Background()) as background:
            return background.result(all_runs(self._place))

    def diff(self, first: str, second: str | None = None, *, table: str | None = None) -> dict[str, Any]:
        """How many keys changed from one run to another, or from a corpus' former run to its current one.

        It is as `shardcrawl diff --json` has it; `table` counts by the rows of one table.
        """
        with closing(Background()) as background:
            return diff_json(*background.result(compared_runs(self._place, first, second, table)), table)


def connect(*, redis: str | None = None, database: str | None = None, data: str | Path = DATA_FOLDER) -> Connection:
    """The place where runs are: by default at REDIS_URL and DATABASE_URL, or embedded in the folder `data`."""
    redis, database = redis or os.environ.get("REDIS_URL"), database or os.environ.get("DATABASE_URL")
    return Connection(Place(redis, database, Path(data)), os.environ)


def run(
    job: Job | Mapping[str, Any] | str | Path,
    *,
    keys: Iterable[Key] | None = None,
    name: str | None = None,
    refresh: bool = False,
    workers: int | None = None,
    rate: float | str | None = None,
    log_level: str = "warning",
    redis: str | None = None,
    database: str | None = None,
    data: str | Path = DATA_FOLDER,
) -> RunResult:
    """Run a job, the dict of one, or a job file, until it is complete, as `shardcrawl run` does; resumes it.

    `keys` are the source in the place of the job's: texts or integers, or dicts, of which `[source] key` names the
    fields. They are written into the folder `data`; to resume they must be the same ones. The next four arguments beat
    the job. Workers log from `log_level` on.
    KeyboardInterrupt finishes what is in flight, a second one leaves at once; it is raised at the end, and the same
    call goes on. Raises UsageError, SourceError, and the other ShardcrawlErrors of a command.
    """
    place = connect(redis=redis, database=database, data=data)
    return place.run(job, keys=keys, name=name, refresh=refresh, workers=workers, rate=rate, log_level=log_level)


def _job_of(
    given: Job | Mapping[str, Any] | str | Path, overrides: JobOverrides, keys: Iterable[Key] | None, data: Path
) -> Job:
    """The job with the overrides in it; with `keys` a file of these, which is written, is its source."""
    match given:
        case Job():
            document, folder, names_corpus = dict(given.document), given.folder, given.names_corpus
        case Mapping():
            document, folder, names_corpus = plain_document(given), str(Path.cwd()), True
        case _:
            document, folder, names_corpus = load_document(str(given), JobOverrides())
    document = overrides.apply(document)
    source = document.get("source", {})
    if keys is not None and isinstance(source, dict):
        kept = {key: value for key, value in source.items() if key not in KINDS}
        document["source"] = {**kept, "path": str(write_keys(keys, data))}
    return replace(read_job(document, folder), names_corpus=names_corpus)
