"""Reading a job: what is taken, and the one line that refuses what is not."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path
from typing import Any

import orjson
import pytest

from coordinator.errors import NotYet, UsageError
from coordinator.queue.registry import RunRecord
from coordinator.queue.sharding import Layout
from coordinator.settings import LimitSettings, Window
from crawler.job.document import load_job_file
from crawler.job.job import read_job
from crawler.job.models import RetrySettings, StoreSettings
from crawler.job.request.settings import RequestSettings
from crawler.job.tables import TableSettings

from .examples import a_document, a_job

# The job file that the command reference shows.
SAMPLE = """
[run]
name = "afd-2026q4"
[source]
path = "titles.txt.gz"
[request]
url = "https://en.wikipedia.org/w/api.php?action=query&prop=revisions&titles={keys}&format=json&formatversion=2"
keys_per_request = 50
allow_private = ["127.0.0.0/8"]
[limits."en.wikipedia.org"]
rate = 50
concurrency = 40
[retry]
attempts = 5
[parse]
python = "parse:revisions"
[store]
batch_rows = 1000
[[tables]]
name = "revisions"
columns = { page_id = "bigint", rev_id = "bigint", user_name = "text", at = "timestamptz" }
"""


A_TABLE = [{"name": "a", "columns": {"b": "text"}}]


def fault(document: dict[str, Any]) -> str:
    """The one line that refuses a document."""
    with pytest.raises(UsageError) as caught:
        read_job(document)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def not_yet(document: dict[str, Any]) -> str:
    with pytest.raises(NotYet) as caught:
        read_job(document)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "not yet" in message or "in this version" in message
    return message


def test_the_reference_sample_is_read_whole() -> None:
    job = read_job(tomllib.loads(SAMPLE), "/jobs")
    assert job.run.name == "afd-2026q4"
    assert job.source.path == "titles.txt.gz"
    assert job.request == RequestSettings(
        url="https://en.wikipedia.org/w/api.php?action=query&prop=revisions&titles={keys}&format=json&formatversion=2",
        keys_per_request=50,
        allow_private=("127.0.0.0/8",),
    )
    assert job.limits == {"en.wikipedia.org": LimitSettings((Window(50.0, 1.0),), concurrency=40)}
    assert job.retry == RetrySettings(attempts=5)
    assert job.parse.python == "parse:revisions"
    assert job.store == StoreSettings(batch_rows=1000)
    columns = (("page_id", "bigint"), ("rev_id", "bigint"), ("user_name", "text"), ("at", "timestamptz"))
    assert job.tables == (TableSettings(name="revisions", column_settings=dict(columns)),)
    assert job.tables[0].columns == columns
    assert job.folder == "/jobs"


def test_what_the_sample_names_in_its_comments_is_read_too() -> None:
    job = a_job(
        source={"python": "corpus:keys"},
        request={
            "url": "https://x.example/?ids={keys}",
            "keys_per_request": 2,
            "separator": ",",
            "headers": {"X-Api": "1"},
            "user_agent": "mine/1",
            "timeout": 5,
            "http2": True,
            "engine": "httpx",
        },
        limits={"x.example": {"rate": "5000/h"}, "y.example": {"rate": "none"}, "*": {"rate": "50/s"}},
        retry={"backoff": 1, "max_delay": 2.5},
    )
    assert (job.source.path, job.source.python) == (None, "corpus:keys")
    assert job.request == RequestSettings(
        url="https://x.example/?ids={keys}",
        keys_per_request=2,
        separator=",",
        headers={"X-Api": "1"},
        user_agent="mine/1",
        timeout=5.0,
        http2=True,
        engine="httpx",
    )
    assert job.limits == {
        "x.example": LimitSettings((Window(5000.0, 3600.0),)),
        "y.example": LimitSettings(),
        "*": LimitSettings((Window(50.0, 1.0),)),
    }
    assert job.retry == RetrySettings(attempts=5, backoff=1.0, max_delay=2.5)


def test_a_job_that_came_through_json_is_the_same_job() -> None:
    document = tomllib.loads(SAMPLE)
    assert read_job(orjson.loads(orjson.dumps(document))) == read_job(document)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("source", "table", "keys"),
        ("parse", "records", "$.items[*]"),
        ("parse", "columns", {"id": "$.id"}),
        ("parse", "links", "a[href]"),
        ("retry", "in_place", 2),
        ("store", "parquet", "out"),
    ],
)
def test_a_documented_feature_that_is_missing_is_refused_by_name(section: str, key: str, value: Any) -> None:
    document = a_document()
    document[section] = {**document.get(section, {}), key: value}
    message = not_yet(document)
    assert f"[{section}] {key}" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": {}}, "[job] has no key 'sources'; did you mean source?"),
        ({"run": {"name": "a", "worker": 2}}, "[run] has no key 'worker'; did you mean workers?"),
        ({"run": {"name": "a", "zzz": 2}}, "[run] has no key 'zzz'; known are "),
        ({"source": {"path": "a", "pth": "b"}}, "[source] has no key 'pth'; did you mean path?"),
        ({"request": {"user-agent": "a"}}, "[request] has no key 'user-agent'; did you mean user_agent?"),
        ({"request": {"key_per_request": 2}}, "did you mean keys_per_request?"),
        ({"limits": {"x.example": {"rates": 2}}}, "[limits.x.example] has no key 'rates'; did you mean rate?"),
        ({"retry": {"attempt": 2}}, "[retry] has no key 'attempt'; did you mean attempts?"),
        ({"parse": {"pyton": "a:b"}}, "[parse] has no key 'pyton'; did you mean python?"),
        ({"store": {"batch_row": 2}}, "[store] has no key 'batch_row'; did you mean batch_rows?"),
        ({"tables": [{"name": "a", "column": {}}]}, "[[tables]] has no key 'column'; did you mean columns?"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(change: dict[str, Any], words: str) -> None:
    assert words in fault(a_document() | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": None}, "[run] name is missing"),
        ({"run": {"name": "a/b"}}, "[run] name is 'a/b'"),
        ({"run": {"name": ""}}, "[run] name is empty"),
        ({"run": {"name": ".a"}}, "[run] name"),
        ({"run": {"name": "a" * 101}}, "[run] name"),
        ({"run": {"name": "a\n"}}, "[run] name"),
        ({"run": {"name": 5}}, "[run] name is 5; it must be text in quotes"),
        ({"run": "a"}, "[job] run is 'a'; it must be a table"),
        ({"run": {"name": "a", "shards": 3}}, "shards is 3; it must be a power of two"),
        ({"run": {"name": "a", "shards": 131_072}}, "shards is 131072; it must be from 0 to 65536"),
        *(
            ({"run": {"name": "a", "max_age": age}}, f'[run] max_age is {age!r}; write a time like "90d", "12h" or')
            for age in ("30", "x", "-1d", "1w", "1y", "1d\n")
        ),
        *(
            ({"store": {"schema": name}}, f"[store] schema is {name!r}; use lower-case letters, digits and _")
            for name in ("Foo-Bar", "A", "afd.x", "x" * 41)
        ),
        ({"store": {"schema": "pg_x"}}, "[store] schema is 'pg_x', which is Postgres' own; use another name"),
        ({"store": {"schema": "information_schema"}}, "'information_schema', which is Postgres' own"),
        ({"run": {"name": "a", "workers": -1}}, "workers is -1"),
        ({"run": {"name": "a", "workers": True}}, "workers is True; it must be a whole number"),
        ({"run": {"name": "a", "workers": 2.0}}, "workers is 2.0; it must be a whole number"),
        ({"run": {"name": "a", "concurrency": 0}}, "concurrency is 0"),
        ({"run": {"name": "a", "high_water": 10}}, "high_water is 10"),
        ({"run": {"name": "a", "max_failed": 1.01}}, "max_failed is 1.01; it must be from 0.0 to 1.0"),
        ({"publish": {"min_keys": 95}}, "min_keys is 95; it must be from 0.0 to 1.0; 95 % is written 0.95"),
        ({"publish": {"max_failed": 2}}, "max_failed is 2; it must be from 0.0 to 1.0; 2 % is written 0.02"),
        ({"run": {"name": "a", "max_failed": float("nan")}}, "max_failed is nan"),
        ({"run": {"name": "a", "max_failed": "1 %"}}, "max_failed is '1 %'; it must be a number"),
        ({"source": {}}, "[source] needs one of path"),
        ({"source": {"path": "a", "python": "b:c"}}, "[source] has path and python; leave out all but one"),
        ({"source": {"keys": []}}, "[source] needs one of path (a file, or - for standard input), keys, python"),
        ({"source": {"keys": "a"}}, "[source] keys is 'a'; it must be a list of texts"),
        ({"source": {"keys": ["a"], "key": "sku"}}, "[source] keys have no columns; leave out key and carry"),
        ({"source": {"path": "a.csv", "key": 1}}, "[source] key is 1; write a column like"),
        ({"source": {"path": "a.csv", "key": [""]}}, "[source] key and carry are names of columns, and one of them is"),
        ({"source": {"path": "a.csv", "carry": "b"}}, "[source] carry needs key"),
        ({"source": {"path": "a.csv", "carri": "b"}}, "[source] has no key 'carri'; did you mean carry?"),
        ({"source": {"path": "a.csv", "key": ["a", "b"]}}, "[source] key has several columns, which are no URL"),
        ({"source": {"path": "a", "database": "${A}"}}, "[source] database is for query"),
        ({"source": {"query": "select 1 order by 1"}}, "[source] query needs key"),
        ({"source": {"query": "select 1", "key": "a"}}, "[source] query has no ORDER BY: a run that goes on skips"),
        (
            {"source": {"query": "select ' order by' -- order by\nfrom (select 1 order by (2)) x", "key": "a"}},
            "[source] query has no ORDER BY",
        ),
        (
            {"source": {"query": "select 1 order by 1", "key": "a", "database": "postgres://h/${A}"}},
            "[source] database must be the name of an environment variable",
        ),
        ({"source": {"path": ""}}, "[source] path is empty"),
        ({"source": {"python": "keys"}}, "[source] python is 'keys'; write module:function"),
        ({"parse": {"python": "a:b:c"}}, "[parse] python"),
        ({"parse": {"python": "a b:c"}}, "[parse] python"),
        ({"request": {"url": "https://x.example/"}}, "[request] url: 0 placeholders"),
        ({"request": {"keys_per_request": 2}}, "keys_per_request needs a url with {keys}"),
        ({"request": {"url": "https://x.example/{key}", "keys_per_request": 501}}, "keys_per_request is 501"),
        ({"request": {"separator": ""}}, "[request] separator is empty"),
        ({"request": {"engine": "aiohttp"}}, "engine is 'aiohttp'; known are pyreqwest and httpx"),
        ({"request": {"http2": 1}}, "http2 is 1; write true, false or"),
        ({"request": {"timeout": 0}}, "timeout is 0"),
        ({"request": {"max_body": 2**30}}, "max_body is"),
        ({"request": {"allow_private": "127.0.0.1"}}, "allow_private is '127.0.0.1'; it must be a list of texts"),
        ({"request": {"allow_private": [1]}}, "allow_private must be a list of texts"),
        ({"request": {"allow_private": ["localhost"]}}, "write networks like 127.0.0.0/8"),
        ({"request": {"headers": ["a"]}}, "headers is ['a']; it must be a table"),
        ({"request": {"headers": {"a b": "c"}}}, "headers: 'a b'"),
        ({"request": {"headers": {"a": 5}}}, "headers: 'a'"),
        ({"request": {"headers": {"a": "b\r\nc: d"}}}, "headers: 'a'"),
        ({"request": {"headers": {"a": "b\rc"}}}, "headers: 'a'"),
        ({"request": {"user_agent": "a\nb"}}, "user_agent must be a text in one line"),
        ({"limits": {"x.example": 5}}, "[limits.x.example] is no table"),
        ({"limits": {"https://x.example": {"rate": 5}}}, "write a host"),
        ({"limits": {"x.example/": {"rate": 5}}}, "write a host"),
        ({"limits": {"": {"rate": 5}}}, "write a host"),
        ({"limits": {"x.example": {"rate": 5}, "X.example": {"rate": 5}}}, "stands there twice"),
        ({"limits": {"x.example": {"concurrency": -1}}}, "concurrency is -1"),
        ({"retry": {"attempts": 0}}, "attempts is 0; it must be from 1 to 100"),
        ({"retry": {"backoff": -1}}, "backoff is -1"),
        ({"retry": {"max_delay": 1e6}}, "max_delay is 1000000.0"),
        ({"store": {"batch_rows": 0}}, "batch_rows is 0"),
        ({"store": {"batch_bytes": 1}}, "batch_bytes is 1"),
        ({"store": {"batch_age": 0}}, "batch_age is 0"),
    ],
)
def test_a_value_out_of_its_type_or_bounds_is_an_error_that_says_where(change: dict[str, Any], words: str) -> None:
    document = a_document() | change
    if document["run"] is None:
        del document["run"]
    assert words in fault(document)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"name": "a"}, "tables are written as [[tables]]"),
        (["a"], "[[tables]] is no table"),
        ([{"columns": {"a": "text"}}], "table ''"),
        ([{"name": "Facts", "columns": {"a": "text"}}], "table 'Facts': use lower-case"),
        ([{"name": 'a"; drop table runs; --', "columns": {"a": "text"}}], "use lower-case"),
        ([{"name": "a" * 41, "columns": {"a": "text"}}], "at most 40"),
        ([{"name": "pages", "columns": {"a": "text"}}], "table 'pages' is taken"),
        ([{"name": "runs", "columns": {"a": "text"}}], "table 'runs' is taken"),
        ([{"name": "pages_current", "columns": {"a": "text"}}], "shardcrawl's own"),
        ([{"name": "facts_r12", "columns": {"a": "text"}}], "shardcrawl's own"),
        ([{"name": "a", "columns": {"a": "text"}}] * 2, "table 'a' is taken"),
        ([{"name": "a"}], "table a needs columns"),
        ([{"name": "a", "columns": {}}], "table a needs columns"),
        ([{"name": "a", "columns": {"run_id": "text"}}], "column 'run_id' is taken"),
        ([{"name": "a", "columns": {"digest": "text"}}], "column 'digest' is taken"),
        ([{"name": "a", "columns": {"A b": "text"}}], "column 'A b': use lower-case"),
        ([{"name": "a", "columns": {"b": "int8range"}}], "column b is of type 'int8range'; known types are bigint"),
        ([{"name": "a", "columns": {"b": "text; drop table runs"}}], "known types are"),
        ([{"name": "a", "columns": {"b": "text(5)"}}], "known types are"),
        ([{"name": "a", "columns": {"b": "varchar(3,4)"}}], "known types are"),
        ([{"name": "a", "columns": {"b": "text[][]"}}], "known types are"),
        ([{"name": "a", "columns": {"b": 5}}], "needs a type: a text"),
    ],
)
def test_tables_that_cannot_be_made_are_refused(tables: Any, words: str) -> None:
    assert words in fault(a_document(parse={"python": "a:b"}, tables=tables))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"parse": {"rows": "items"}}, "[parse] rows: selectors fill [[tables]]; add one with its columns"),
        ({"parse": {"gone": ["missing"]}}, "[parse] gone: selectors fill [[tables]]"),
        ({"parse": {"python": "a:b", "key": "id"}, "tables": A_TABLE}, "[parse] key: [parse] python makes the records"),
        (
            {"parse": {"python": "a:b"}, "tables": [{"name": "a", "columns": {"b": {"type": "text", "from": "c"}}}]},
            "table a: column b: [parse] python makes the records; leave out one of the two",
        ),
        (
            {"parse": {"failed": 5}, "tables": A_TABLE},
            "[parse] failed is 5; write a condition, or a list of conditions",
        ),
        ({"tables": [{"name": "a", "columns": {"b": "text", "rows": "items"}}]}, "rows stands below [tables.columns]"),
        ({"tables": [{"name": "a", "columns": {"b": "text", "skip": ["x"]}}]}, "skip stands below [tables.columns]"),
        ({"tables": [{"name": "a", "columns": {"b": {"from": "c"}}}]}, "'b' needs a type: a text, or { type"),
        (
            {"tables": [{"name": "a", "columns": {"b": {"type": "text", "form": "c"}}}]},
            "'b' needs a type: a text, or {",
        ),
    ],
)
def test_selectors_that_nothing_reads_are_refused(sections: dict[str, Any], says: str) -> None:
    assert says in fault(a_document(**sections))


def test_a_column_may_have_the_name_of_a_key() -> None:
    assert a_job(tables=[{"name": "a", "columns": {"rows": "bigint"}}]).tables[0].columns == (("rows", "bigint"),)


@pytest.mark.parametrize(
    "kind",
    ["bigint", "double precision", "varchar", "varchar(10)", "char(3)", "numeric", "numeric(10)", "numeric(10, 2)"]
    + ["numeric(5,2)[]", "timestamptz(3)", "interval", "Text", " text ", "jsonb", "bytea[]", "uuid"],
)
def test_every_documented_type_is_taken(kind: str) -> None:
    job = a_job(parse={"python": "a:b"}, tables=[{"name": "a", "columns": {"b": kind}}])
    assert job.tables[0].columns == (("b", kind),)


def test_a_secret_stands_in_nothing_that_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setenv("A", "s3cret")
    path = tmp_path / "job.toml"
    path.write_text(SAMPLE + '[request.headers]\nAuthorization = "Bearer ${TOKEN}"\n')
    document = load_job_file(path)
    job = read_job(document, str(tmp_path))
    record = RunRecord("test", 1, "epoch", Layout(1, 1), document, job.folder)  # type: ignore[arg-type]
    for written in (repr(job), repr(document), repr(record)):
        assert "${TOKEN}" in written
        assert "s3cret" not in written


def test_a_job_file_is_read_as_toml(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(SAMPLE)
    assert load_job_file(path) == tomllib.loads(SAMPLE)


@pytest.mark.parametrize("content", [b"[run\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_job_file_that_is_no_toml_is_a_usage_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"job[.]toml: ") as caught:
        load_job_file(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_job_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name a file that can be read"):
        load_job_file(tmp_path / name)


def test_a_job_reaches_a_child_process_whole() -> None:
    document = tomllib.loads(SAMPLE)
    job = read_job(document, "/jobs")
    assert pickle.loads(pickle.dumps(job)) == job
    assert pickle.loads(pickle.dumps(job)).document == document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"name": "a", "grace": float("inf")}}, "grace is inf; it must be from 0.0 to 3600.0"),
        ({"run": {"name": "a", "high_water": 2**70}}, "high_water is 1180591620717411303424; it must be from 1000"),
        ({"run": {"name": "a", "name\n": 1}}, r"[run] has no key 'name\n'; did you mean name?"),
        ({"limits": {"x.example": {"rate": True}}}, "[limits.x.example] rate is True; write requests a second"),
        ({"limits": {"x.example": {"rate": [50, {}]}}}, "[limits.x.example] rate is [50, {}]; write requests a second"),
        ({"limits": {"x.example": {"rate": "5/y"}}}, "[limits.x.example] rate: write requests a second"),
        ({"limits": {"x.example": {"rate": 0}}}, "[limits.x.example] rate is 0; write requests a second"),
        ({"limits": {"x.example": {"rate": 5, "ceiling": 6}}}, 'ceiling: only rate = "auto" has one'),
        ({"limits": 5}, "[job] limits is 5; it must be a table"),
        ({"request": {"robots": "yes"}}, "[request] robots is 'yes'; write true or false"),
    ],
)
def test_what_the_models_alone_refuse_has_the_same_message(change: dict[str, Any], words: str) -> None:
    assert words in fault(a_document() | change)


@pytest.mark.parametrize("document", ["a", [], None])
def test_a_document_that_is_no_table_is_a_usage_error(document: Any) -> None:
    assert "is no table" in fault(document)


def test_zero_means_the_default_where_it_says_so() -> None:
    job = a_job(run={"name": "test", "workers": 0, "shards": 0}, limits={"x.example": {"concurrency": 0}})
    assert job.run == a_job().run
    assert job.limits["x.example"] == LimitSettings()


@pytest.mark.parametrize("change", [{"proxy": "http://me:s3cret@proxy.test"}, {"auth": "bearer:s3cret"}])
def test_no_message_shows_a_secret(change: dict[str, Any]) -> None:
    assert "s3cret" not in fault(a_document(request=change))
