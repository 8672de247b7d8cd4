"""The reference and the JSON Schema say what the models say, and both are current."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from coordinator.errors import UsageError
from crawler.job.fields import Section
from crawler.job.job import read_job
from crawler.job.reference import INTRODUCTION, SECTIONS, job_page, job_schema

from .examples import a_document

ROOT = Path(__file__).parents[3]
VALIDATOR = Draft202012Validator(job_schema())
PARSED = {"parse": {"python": "a:b"}}


def every_key() -> Iterator[Any]:
    for title, model, _ in SECTIONS:
        for field in msgspec.structs.fields(model):
            yield pytest.param(model, field.encode_name, id=f"{title} {field.encode_name}")


def described(model: type[Section], key: str) -> dict[str, Any]:
    found: dict[str, Any] = job_schema()["$defs"][model.__name__]["properties"][key]
    return found


def example(page: str) -> dict[str, Any]:
    block = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert block
    return tomllib.loads(block[1])


def accepts(document: dict[str, Any]) -> bool:
    return VALIDATOR.is_valid(document)


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "job-file.md").read_text()
    assert page == job_page(), "python -m crawler.job.reference > docs/job-file.md"


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize(("model", "key"), list(every_key()))
def test_every_key_has_a_description_and_an_example_that_is_right(model: type[Section], key: str) -> None:
    schema = described(model, key)
    assert schema["description"].endswith(".")
    for value in schema["examples"]:
        assert msgspec.convert({key: value}, model)
        assert Draft202012Validator({**schema, "$defs": job_schema()["$defs"]}).is_valid(value)
    assert f"- **`{key}`**: " in job_page()


def test_examples_of_the_page_are_read_with_the_rest_of_a_job() -> None:
    assert read_job(example(INTRODUCTION)).tables
    for line in re.findall(r"  Example: `(.*)`", job_page()):
        assert tomllib.loads(line)


@pytest.mark.parametrize("page", [INTRODUCTION, (ROOT / "README.md").read_text()], ids=["reference", "readme"])
def test_the_schema_takes_the_job_that_is_shown(page: str) -> None:
    assert read_job(example(page))
    assert accepts(example(page))


@pytest.mark.parametrize(
    "change",
    [
        {"request": {"http2": "prior-knowledge", "headers": {"a": "b"}, "timeout": 5, "robots": True}},
        *(
            {"limits": {"*": {"rate": rate}}}
            for rate in (50, 2.5, "50", "5000/h", "50/s, 300/min", " 1.5 / s ", "none")
        ),
        {"limits": {"[2001:DB8::1]:8080": {"rate": ["5000/h", 50]}, "*.Wikipedia.org": {}, "a.example/v2/*": {}}},
        {"limits": {"x.example:*": {"rate": "auto", "ceiling": "200/s", "concurrency": 0}}},
        {"run": {"workers": 0, "name": "a"}, "publish": {"mode": "auto"}},
        {"source": {"python": "corpus:keys"}},
        {**PARSED, "tables": [{"name": "a", "columns": {"b": "numeric(10, 2)[]"}}]},
    ],
)
def test_the_schema_takes_what_is_read(change: dict[str, Any]) -> None:
    assert read_job({**a_document(), **change})
    assert accepts({**a_document(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {}},
        {"run": {"name": "a", "worker": 2}},
        {"run": {"name": "a/b"}},
        {"run": {"name": ""}},
        {"run": {"name": "a", "workers": 2000}},
        {"run": {"name": "a"}, "publish": {"mode": "perhaps"}},
        {"source": {}},
        {"source": {"path": "a", "python": "b:c"}},
        {"source": {"python": "keys"}},
        {"request": {"headers": {"a": 5}}},
        {"request": {"engine": "aiohttp"}},
        {"request": {"auth": "digest:${A}"}},
        {"limits": {"https://x.example": {"rate": 5}}},
        {"limits": {"": {"rate": 5}}},
        *({"limits": {"x.example": {"rate": rate}}} for rate in (0, -1, True, "fast", "50/y", "", {}, [], ["auto"])),
        {**PARSED, "tables": {"name": "a"}},
        {**PARSED, "tables": [{"name": "a"}]},
        {**PARSED, "tables": [{"name": "Facts", "columns": {"a": "text"}}]},
        {**PARSED, "tables": [{"name": "a", "columns": {"A b": "text"}}]},
        {**PARSED, "tables": [{"name": "a", "columns": {"b": 5}}]},
    ],
)
def test_the_schema_refuses_what_reading_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        read_job({**a_document(), **change})
    assert not accepts({**a_document(), **change})


def test_the_job_room_imports_no_other_room() -> None:
    imports = re.compile(r"^\s*(?:from|import) (crawler[.\w]*|ops[.\w]*)", re.MULTILINE)
    for path in (ROOT / "crawler" / "job").glob("*.py"):
        assert all(name.startswith("crawler.job") for name in imports.findall(path.read_text())), path.name
