"""`[publish] export`: the tables of the run that readers see are written as files, in a folder that has its name.

Beside the folders of its runs a corpus has CORPUS.json, which names the run that readers saw last, when all is there.
Nothing here keeps a run from being published, or takes that back: what is missing is written by the next command.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import orjson

from coordinator.errors import ShardcrawlError, Unavailable
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.redis.retrying import retry_unavailable
from crawler.export.exporter import MANIFEST, ExportPlan, export
from crawler.export.formats import need_columns_extra
from crawler.export.place import open_place
from crawler.job.job import Job, read_job
from crawler.job.sections.publish import export_place
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import PAGES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """The files of a published run: where they are, how many with how many rows; or the `fault` that kept them away."""

    run: str
    place: str
    files: int = 0
    rows: int = 0
    fault: str = ""

    @property
    def words(self) -> str:
        """What there is to say of them, in one line for people."""
        if self.fault:
            again = f"`shardcrawl publish {self.run}` goes on with them"
            return f"its files are not written (exit code 7): {self.fault}; {again}"
        return (
            f"{self.rows:,} rows in {self.files:,} file{'' if self.files == 1 else 's'} and {MANIFEST}, in {self.place}"
        )


def check_export(job: Job) -> None:
    """Raise UsageError when this machine cannot write what `[publish] export` wants."""
    if (wanted := export_place(job.publish, job.folder)) is not None:
        need_columns_extra(wanted[0])
        open_place(wanted[1])


async def export_published(
    database: str,
    corpus: str,
    name: str | None = None,
    *,
    folder: str | None = None,
    failpoint: Failpoint = no_failpoint,
) -> PublishedFiles | None:
    """Write the files that the job of the run that readers see wants; what is there is kept.

    None when it wants none, and when readers see another run than the one of this `name`. `folder` is where relative
    paths begin, by default that of the job. Waits while Postgres does not respond. Raises PostgresRefused; what keeps
    the files away is a `fault`.
    """
    return await retry_unavailable(partial(_export_published, database, corpus, name, folder, failpoint), "export")


async def _export_published(
    database: str, corpus: str, name: str | None, folder: str | None, failpoint: Failpoint
) -> PublishedFiles | None:
    async with open_catalogue(database) as catalogue:
        await catalogue.prepare(upgrade=True)
        run = await catalogue.current(corpus)
        if run is None or not run.complete or (name is not None and run.name != name):
            return None
        where = ""
        try:
            job = read_job(run.document, folder or run.folder or ".")
            if (wanted := export_place(job.publish, job.folder)) is None:
                return None
            form, address = wanted
            where = f"{address.rstrip('/')}/{run.name}"
            plan, place = ExportPlan(run, run.table_names or [PAGES], form), open_place(where)
            if place.read(MANIFEST) is None:
                logger.info("run %s is exported to %s", run.name, where, extra={"event": "run_exported"})
            files = await export(catalogue.connection, plan, place, replaces=True, failpoint=failpoint)
            await _point(catalogue, run, address)
        except Unavailable:
            raise
        except ShardcrawlError as error:
            return PublishedFiles(run.name, where, fault=str(error).removeprefix("export: "))
    return PublishedFiles(run.name, where, len(files), sum(one.rows for one in files))


async def _point(catalogue: Catalogue, run: StoredRun, address: str) -> None:
    """Let CORPUS.json name this run, if readers still see it. One command at a time does so, and the last is right."""
    place, name = open_place(address), f"{run.corpus}.json"
    content = orjson.dumps(
        {"corpus": run.corpus, "run": run.name, "run_id": run.run_id, "manifest": f"{run.name}/{MANIFEST}"}
    )
    with postgres_errors():
        async with catalogue.connection.transaction():
            await catalogue.connection.execute(query("lock-place"), f"{place.address}/{name}")
            now = await catalogue.current(run.corpus)
            if now is not None and now.run_id == run.run_id and place.read(name) != content:
                place.write(name, content)
