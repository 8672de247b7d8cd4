"""`python -m ops.dist`: builds sdist and wheel into dist/, and checks that the wheel works alone.

The wheel is built from the sdist, so that a file that is missing in the sdist is noticed here. The wheel is then
installed into an empty virtual environment, with its dependencies by the hashes of requirements.lock, and the installed
command runs the demo.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).parent.parent
FOLDERS = ("coordinator", "crawler", "docs", "examples")
FILES = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "requirements.lock")
PACKAGES = {"coordinator", "crawler"}
DEMO_KEYS = 3_000


class DistFailed(Exception):
    """The wheel installs something else than its two packages."""


def build(into: Path) -> Path:
    """Build sdist and wheel into a folder; returns the path of the wheel.

    Needs no network, because requirements.lock has hatchling. It works on a copy, so the checkout is not changed.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in (path for path in map(ROOT.joinpath, FOLDERS) if path.exists()):
            shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for file in map(ROOT.joinpath, FILES):
            shutil.copy(file, copy)
        uv("build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable, "-o", into, copy)
    (wheel,) = into.glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> set[str]:
    """Install a wheel and its locked dependencies into a new environment; returns the top-level names of its files."""
    uv("venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirement = environment / "requirement.txt"
    requirement.write_text(f"shardcrawl @ {wheel.resolve().as_uri()} --hash=sha256:{digest}\n")
    locked = ("--require-hashes", "--constraints", ROOT / "requirements.lock", "--requirements", requirement)
    uv("pip", "install", "--quiet", "--python", python, *locked)
    show = "import importlib.metadata as m; print(*{file.parts[0] for file in m.files('shardcrawl')}, sep='\\n')"
    listed = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True, cwd=environment)
    return set(listed.stdout.split())


def demo(environment: Path) -> None:
    """Run the demo with the installed command, in an empty folder, without this checkout and its settings."""
    command = [str(environment / "bin" / "shardcrawl"), "demo", "--keys", str(DEMO_KEYS)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, cwd=folder, env=clean_environment())


def clean_environment() -> dict[str, str]:
    """The environment of this process without the settings of shardcrawl and Python."""
    ours = ("REDIS_URL", "DATABASE_URL", "PYTHONPATH")
    return {
        name: value for name, value in os.environ.items() if name not in ours and not name.startswith("SHARDCRAWL_")
    }


def uv(*words: str | Path) -> None:
    """Run uv."""
    subprocess.run([find_uv_bin(), *words], check=True)


def main() -> None:
    """Build, install and run the demo; print one line when all of it succeeded."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheel = build(dist)
    with tempfile.TemporaryDirectory() as name:
        environment = Path(name) / "environment"
        added = {word for word in install(wheel, environment) if not word.endswith(".dist-info") and word != ".."}
        if added != PACKAGES:
            raise DistFailed(f"{wheel.name} installs {', '.join(sorted(added))}; it should be only {PACKAGES}")
        demo(environment)
    names = " and ".join(sorted(path.name for path in dist.glob("shardcrawl-*")))
    print(f"dist: {names}; the wheel, installed alone, has crawled the demo of {DEMO_KEYS:,} keys")


if __name__ == "__main__":
    main()
