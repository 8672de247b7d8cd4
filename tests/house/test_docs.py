"""Documents that cannot rot: what they show exists, and what exists is shown."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from coordinator import errors
from coordinator.redis import keys
from crawler.cli.main import main
from crawler.job.job import read_job
from crawler.store import queries

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LUA = sorted(path for path in (ROOT / "coordinator" / "lua").glob("*/*.lua") if path.parent.name != "fragments")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_stands_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"shardcrawl {name}" in README
    command = main.commands[name]
    assert "Example:" in (command.help or "")
    assert f"shardcrawl {name}" in (command.help or "")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_options_have_one_name_everywhere_and_help(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_readme_shows_a_job_file_that_is_one() -> None:
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block
    job = read_job(tomllib.loads(block[1]))
    assert job.limits["en.wikipedia.org"].rate == 50


def test_the_readme_shows_a_parser_that_parses() -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    names: dict[str, object] = {}
    exec(compile(block[1], "parse.py", "exec"), names)
    assert callable(names["revisions"])


def test_the_makefile_has_the_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in map("".join, re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    names = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ShardcrawlError)
    }
    drawn = set(re.findall(r"(?:──|   )\s?([A-Z]\w+)", errors.__doc__ or ""))
    assert names <= drawn | {"ShardcrawlError"}, names - drawn


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_every_script_opens_with_its_contract(path: Path) -> None:
    header = path.read_text().partition("\n\n")[0]
    for word in ("Purpose:", "KEYS", "ARGV", "Returns"):
        assert word in header or (word == "ARGV" and "ARGV" not in path.read_text()), word


def test_every_redis_key_stands_in_the_table() -> None:
    table = keys.__doc__ or ""
    run = keys.RunKeys("r")
    names = [*run.all(1, 1), run.slots("host")]
    for name in names:
        kind = name.partition("}:")[2].partition(":")[0]
        assert f"…:{kind}" in table, kind


def test_every_query_is_used() -> None:
    code = "".join(path.read_text() for path in (ROOT / "crawler").rglob("*.py"))
    sql = (ROOT / "crawler" / "store" / "sql" / "queries.sql").read_text()
    for name in re.findall(r"^-- name: (\S+)$", sql, re.MULTILINE):
        assert f'query("{name}"' in code, name
        assert queries.query(name)


@pytest.mark.parametrize("name", ["requirements.lock", "ops/bench/requirements.lock", "ops/valkey.lock"])
def test_a_lock_file_names_no_index(name: str) -> None:
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert "--hash=sha256:" in lock
