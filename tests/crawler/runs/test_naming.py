"""The name of a run whose job gives none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coordinator.model import Epoch
from crawler.runs.naming import new_name, with_name
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection
from crawler.store.tables import RunTables
from tests.crawler.examples import a_document, a_job

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def test_a_new_name_has_the_day_and_from_the_second_on_a_number() -> None:
    names: list[str] = []
    for _ in range(3):
        names.append(new_name("wiki", NOW, names))
    assert names == ["wiki-2026-11-27", "wiki-2026-11-27-2", "wiki-2026-11-27-3"]


@pytest.mark.anyio
async def test_a_run_goes_on_until_it_is_decided_whether_readers_see_it(connection: PostgresConnection) -> None:
    catalogue, corpora, epoch = Catalogue(connection), Corpora(connection), Epoch("first")
    await catalogue.prepare()
    job = a_job(run={"corpus": "wiki"})
    run = RunTables(await catalogue.make("begun", a_document(), epoch, (), corpus="wiki"))
    assert (await with_name(job, catalogue)).run.name == "begun"
    await catalogue.complete(run, epoch)
    assert (await with_name(job, catalogue)).run.name == "begun", "who completed it died before it was published"
    await corpora.publish("wiki", run, ())
    assert (await with_name(job, catalogue)).run.name == new_name("wiki", datetime.now(UTC), ())
