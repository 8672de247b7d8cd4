"""Sdist and wheel as users get them: they are complete, and the wheel has types that check a user's parser."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
pytest.importorskip("uv", reason="uv, which starts the build, is not installed")

from ops.dist import PACKAGES, ROOT, build, uv

EXAMPLES = sorted((ROOT / "examples").glob("*/parse.py"))
RIGHT = """
from typing import Any

from crawler import Response


def parse(response: Response) -> dict[str, list[dict[str, Any]]]:
    if response.status == 203:
        response.failed(response.key, "not from the origin")
    first: str | None = response.headers.get("etag")
    return {"things": [{"name": item["name"], "etag": first} for item in response.json()["items"]]}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--offline", "--no-index", "--no-deps", "--python", python, wheel)
    return python


def mypy(python: Path, folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """What mypy says of a parser in a folder. What it knows of the package stays beside the interpreter: 4 s.

    The parser is no file: of two with one size, written in one second, mypy would take the first one for both.
    """
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)),
        *("--cache-dir", str(python.parents[1] / "mypy"), "--command", source),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_wheel_has_every_file_of_both_packages(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_sdist_has_changelog_documents_and_examples(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = [path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.*")]
    wanted = {str(path.relative_to(ROOT)) for path in folders if path.suffix != ".pyc"}
    assert wanted | {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"} <= names
    assert not [name for name in names if name.startswith(("ops/", "tests/"))]


@pytest.mark.parametrize("source", [RIGHT, *map(Path.read_text, EXAMPLES)], ids=range(1 + len(EXAMPLES)))
def test_a_parser_is_checked_against_the_installed_package(python: Path, tmp_path: Path, source: str) -> None:
    checked = mypy(python, tmp_path, source)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("response.json()", "response.jsn()", 'has no attribute "jsn"'),
        ("import Response", "import Respons", 'has no attribute "Respons"'),
        ("first: str | None", "first: str", "Incompatible types in assignment"),
        ('response.key, "not', 'key="not', 'Missing positional argument "reason"'),
    ],
)
def test_a_mistake_in_a_parser_is_an_error(python: Path, tmp_path: Path, right: str, wrong: str, says: str) -> None:
    checked = mypy(python, tmp_path, RIGHT.replace(right, wrong))
    assert checked.returncode == 1, checked.stderr
    assert says in checked.stdout
