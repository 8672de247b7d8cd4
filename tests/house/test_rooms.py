"""Rules of the rooms that the import contracts in pyproject.toml cannot check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("coordinator", "crawler")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "ops").rglob("*.py")), *sorted(ROOT.glob("c*/**/*.lua"))]
FOLDERS = sorted({path.parent for path in MODULES})
MAX_LINES = 300
MAX_WORKER_LINES = 150
MAX_FILES_IN_A_ROOM = 10
# The job file's [request], selectors, what is followed, what commands show, and the page have rooms of their own.
MAX_CRAWLER_PACKAGES = 32
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "crawler", "coordinator", "tests", "ops", "Procfile", "Makefile", "CHANGELOG.md"),
    *("LICENSE", "requirements.lock", "docs", "examples", "CONTRIBUTING.md", "SECURITY.md"),
}
MADE_BY_TOOLS = {"build", "dist"}
# Modules outside `cli` that write to the terminal, each in one place: two programs, and a child's error line.
WRITERS = ["crawler/job/reference.py", "crawler/local/child.py", "crawler/sample/upstream.py"]
PRINTING = ("print", "sys.stdout.write", "sys.stderr.write")
# Modules where a process begins. They read the environment, and pass it to constructors.
DOORS = {
    "crawler/reader.py",  # it is `crawler.read`
    "crawler/python/connection.py",  # it is `crawler.connect`
    *("crawler/local/child.py", "crawler/pool/child.py", "crawler/sample/upstream.py"),
}


def name_of(path: Path) -> str:
    """The path in the repository."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """The dotted name under which a module is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def outside_cli(*words: str) -> list[tuple[Path, ast.AST]]:
    """Modules outside of the command line that have one of the words, each with its tree: parsing all is slow."""
    texts = {path: path.read_text() for path in MODULES if not name_of(path).startswith("crawler/cli/")}
    return [(path, ast.parse(text)) for path, text in texts.items() if any(word in text for word in words)]


def dotted(node: ast.expr) -> str:
    """`sys.stdout.write` of a name or an attribute; empty for other expressions."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
    return ""


def imported(tree: ast.AST) -> set[str]:
    """First parts of the names that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_string_names_a_module_that_is_started_or_loaded() -> None:
    """A process is started by `module.__name__` of an imported module, so that the import graph has this edge.

    A module may name its own package, to read files of it.
    """
    ours = {module_of(path) for path in MODULES}
    dotted_names = {name for name in ours if "." in name}
    bad = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value.partition(":")[0]
                if name in dotted_names and not module_of(path).startswith(f"{name}."):
                    bad.append(f"{name_of(path)}:{node.lineno} {node.value}")
            elif isinstance(node, ast.Call | ast.Tuple | ast.List):
                values = node.args if isinstance(node, ast.Call) else node.elts
                words = [value.value if isinstance(value, ast.Constant) else None for value in values]
                if "-m" in words[:-1] and words[words.index("-m") + 1] in ours:
                    bad.append(f"{name_of(path)}:{node.lineno} -m {words[words.index('-m') + 1]}")
    assert not bad


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_source_file_is_short(path: Path) -> None:
    limit = MAX_WORKER_LINES if name_of(path) == "crawler/worker.py" else MAX_LINES
    lines = path.read_text().count("\n")
    assert lines < limit


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_room_has_few_files(folder: Path) -> None:
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_FILES_IN_A_ROOM, files


def test_crawler_has_few_packages() -> None:
    packages = [folder for folder in FOLDERS if folder.is_relative_to(ROOT / "crawler")]
    assert len(packages) <= MAX_CRAWLER_PACKAGES, packages


def test_only_cli_imports_click_and_rich() -> None:
    assert not [name_of(path) for path, tree in outside_cli("rich", "click") if imported(tree) & {"rich", "click"}]


def test_only_cli_prints() -> None:
    writers = [
        name_of(path)
        for path, tree in outside_cli("print", "write")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) in PRINTING
    ]
    assert writers == WRITERS


def test_only_doors_read_the_environment() -> None:
    bad = {
        f"{name_of(path)}:{node.lineno}"
        for path, tree in outside_cli("environ", "getenv")
        if name_of(path) not in DOORS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv", "os.environb")
    }
    assert not bad


def test_the_top_level_has_only_what_belongs_there() -> None:
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    extra = {name for name in names - TOP_LEVEL - MADE_BY_TOOLS if not re.search(r"\.egg-info$", name)}
    assert not extra
    assert names >= TOP_LEVEL
