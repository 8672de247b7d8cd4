from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coordinator.model import Epoch
from crawler.job.job import read_job
from crawler.runs.naming import new_name, with_name
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection
from crawler.store.tables import RunTables
from tests.crawler.examples import a_document, finished

NOW = datetime(2026, 11, 27, 23, 59, tzinfo=UTC)
EPOCH = Epoch("first")
FOLLOWS = {"follow": [{"from": "links", "kind": "other"}], "kinds": {"other": {}}}


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ([], "afd-2026-11-27"),
        (["afd-2026-11-26", "afd-2026-11-27-2"], "afd-2026-11-27"),
        (["afd-2026-11-27"], "afd-2026-11-27-2"),
        (["afd-2026-11-27", "afd-2026-11-27-2"], "afd-2026-11-27-3"),
    ],
)
def test_a_new_run_is_named_after_its_corpus_and_the_day(taken: list[str], name: str) -> None:
    assert new_name("afd", NOW, taken) == name


@pytest.mark.anyio
async def test_a_job_without_a_name_goes_on_with_the_unfinished_run_of_its_corpus(
    connection: PostgresConnection,
) -> None:
    catalogue = Catalogue(connection)
    await catalogue.prepare(upgrade=True)
    job = read_job(a_document(run={"corpus": "afd"}, **FOLLOWS))
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    assert (await with_name(job, catalogue)).run.name == f"afd-{today}"
    first = await catalogue.make("afd-1", {}, EPOCH, (), corpus="afd")
    await catalogue.make("other", {}, EPOCH, (), corpus="other")
    named = await with_name(job, catalogue)
    assert (named.run.name, named.document["run"]["name"], named.kinds["other"].run.name) == ("afd-1",) * 3
    await finished(connection, RunTables(first), EPOCH)
    assert (await with_name(job, catalogue)).run.name == f"afd-{today}"


@pytest.mark.anyio
async def test_a_name_of_the_users_is_kept(connection: PostgresConnection) -> None:
    job = read_job(a_document())
    assert await with_name(job, Catalogue(connection)) is job


@pytest.mark.anyio
async def test_a_complete_run_goes_on_until_it_is_decided_who_sees_it(
    connection: PostgresConnection,
) -> None:
    """Who completed it may have died before it was published."""
    catalogue, corpora = Catalogue(connection), Corpora(connection)
    await catalogue.prepare()
    job = read_job(a_document(run={"corpus": "afd"}))
    run = RunTables(await catalogue.make("begun", a_document(), EPOCH, (), corpus="afd"))
    await catalogue.complete(run, EPOCH)
    assert (await with_name(job, catalogue)).run.name == "begun"
    await corpora.refuse(run.run_id, "why")
    assert (await with_name(job, catalogue)).run.name == new_name("afd", datetime.now(UTC), ())
