"""One word for one thing: the glossary of docs/architecture.md, held against every name in the code."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
FILES = sorted(
    path for folder in ("coordinator", "crawler", "ops", "tests", "examples") for path in (ROOT / folder).rglob("*.py")
)
SCRIPTS = sorted((ROOT / "coordinator" / "lua").rglob("*.lua"))
# Names of other libraries.
FOREIGN = {"identity_pem", "call_later", "call_soon", "call_soon_threadsafe"}


def table(heading: str) -> list[tuple[str, str]]:
    """The rows of a two-column table below a heading."""
    text = ARCHITECTURE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (`.+?) \| (.+?) \|$", text, re.MULTILINE)


@cache
def words(*, scope: str = "") -> set[str]:
    """The retired words, in lower case: those without a scope, or of one scope such as "the module"."""
    found = set()
    for cell, _ in table("Retired words"):
        match = re.fullmatch(r"`([^`]+)`(?: \((.+)\))?", cell)
        assert match, cell
        if (match[2] or "") == scope:
            found.add(match[1].lower())
    return found


@cache
def parts(name: str) -> set[str]:
    """A name, and its parts: `DeferredItem` is deferred and item, `put_off_until` has put_off in it."""
    pieces = [piece.lower() for piece in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]
    pairs = {f"{one}_{two}" for one, two in pairwise(pieces)}
    return {name.lower().strip("_"), *pieces, *pairs}


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Every name that this file gives: of classes, functions, arguments, variables and attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute():
                yield node.lineno, node.attr


def those_with(pattern: str) -> Iterator[tuple[Path, str]]:
    """Files that match, with their texts: reading all of them as Python takes seconds."""
    for path in FILES:
        if re.search(pattern, text := path.read_text(), re.IGNORECASE):
            yield path, text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_a_retired_word(path: Path) -> None:
    retired = words()
    bad = sorted({f"{line}: {name}" for line, name in names(path) if name not in FOREIGN and retired & parts(name)})
    assert not bad


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_in_lua_is_a_retired_word(path: Path) -> None:
    code = re.sub(r"--.*|'[^']*'", "", path.read_text())
    bad = {name for name in re.findall(r"[A-Za-z_]\w*", code) if words() & parts(name)}
    assert not bad


def test_no_module_class_or_method_has_a_retired_name() -> None:
    modules = words() | words(scope="the module")
    bad = [str(path.relative_to(ROOT)) for path in (*FILES, *SCRIPTS) if path.stem.removeprefix("test_") in modules]
    classes, methods = words(scope="the class"), words(scope="the method")
    for path, text in those_with(rf"(class|def)\s+({'|'.join(classes | methods)})\b"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.lower() in classes:
                bad.append(f"{path}: {node.name}")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in methods:
                bad.append(f"{path}: {node.name}")
    assert not bad


def test_a_glossary_word_is_not_retired_and_stands_once() -> None:
    glossary = [cell.strip("`") for cell, _ in table("Glossary")]
    assert len(glossary) == len(set(glossary)) > 40
    assert not set(glossary) & (words() | words(scope="the class"))


def test_no_name_stands_for_two_things() -> None:
    """Public classes, functions, types and constants of modules: a reader who has met one knows what it is.

    The test kit's are words for users' tests, who see no others of ours.
    """
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if any(path.is_relative_to(ROOT / part) for part in ("tests", "ops", "crawler/testing.py")):
            continue
        for node in ast.parse(path.read_text()).body:
            given = []
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    given = [node.name]
                case ast.Assign(targets=targets):
                    given = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                case ast.AnnAssign(target=ast.Name(id=name)):
                    given = [name]
            for name in given:
                if not name.startswith("_") and name not in ("logger", "main"):
                    homes[name].append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_comments_and_docstrings_have_no_retired_word() -> None:
    """Those retired words that are not plain English."""
    riddles = {"heed", "aside", "bury", "burial", "readmit", "refeed", "patiently", "nowhere", "workforce", "astray"}
    bad = []
    for path, text in those_with("|".join(riddles)):
        if path == Path(__file__):
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if (token.type == tokenize.COMMENT or token.string.startswith('"""')) and riddles & set(
                re.findall(r"[a-z]+", token.string)
            ):
                bad.append(f"{path.relative_to(ROOT)}:{token.start[0]}")
    assert not bad
