"""The files of the user's parser and transforms.

A run records their digests, so that all of its workers have the same code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from coordinator.errors import UsageError
from coordinator.user_code import NEVER_OURS, file_of, installed_place
from crawler.job.job import Job

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ParserFiles:
    """The digest of each file of a job's functions, by its name below `place`, like `parse.py`."""

    place: Path
    digests: Mapping[str, str]


def parser_files(job: Job, others: Iterable[str] = ()) -> ParserFiles:
    """The files of the job's parser and transforms, as they are now; none without a function of the user's.

    `place` is that of the first of them. These are the module's file, or all `.py` files of its package; of a module in
    the job's folder also the modules of the folder that it imports, and so on. Of the `others` those that lie beside it
    are there too. Nothing is imported. Raises UsageError when this machine does not have a module.
    """
    folder = Path(job.folder).resolve()
    parts = [_files_of(where, python.partition(":")[0], folder, others) for python, where in job.functions.items()]
    place = parts[0].place if parts else folder
    return ParserFiles(place, {name: digest for part in parts for name, digest in part.digests.items()})


def _files_of(where: str, module: str, folder: Path, others: Iterable[str]) -> ParserFiles:
    top = module.partition(".")[0]
    if file_of(module, folder) is not None:
        return _read(folder, {*_with_imports(top, folder), *others})
    if top in NEVER_OURS:
        return ParserFiles(folder, {})
    place = installed_place(top, folder)
    if place is None:
        raise UsageError(
            f"[{where}] python: cannot import {module}: this machine has no {folder.joinpath(*module.split('.'))}.py; "
            "write it, or copy it there from the machine that began the run"
        )
    return _read(place, {*_module_files(top, place), *others})


def differing_file(recorded: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Pure: the first file that is not the same in both; None also where an older version recorded nothing."""
    names = sorted({*recorded, *found}) if recorded else []
    return next((name for name in names if recorded.get(name) != found.get(name)), None)


def check_parser(job: Job, recorded: Mapping[str, str]) -> ParserFiles:
    """The parser's files on this machine. Raises UsageError when they are not those that a run has recorded."""
    found = parser_files(job, recorded)
    if (name := differing_file(recorded, found.digests)) is None:
        return found
    here = name in found.digests
    what = "is missing" if not here else "is not the one" if name in recorded else "is not among the files"
    raise UsageError(
        f"[{_section_of(job, name)}] python: {found.place / name} {what} with which the run was opened; copy the job's "
        "Python files from the machine that runs `run` or `coordinate`, or start that command again with these files, "
        "perhaps under another --name"
    )


def _section_of(job: Job, file: str) -> str:
    """The section whose function lies in this file; the first one for what a module imports."""
    sections = {re.split("[.:]", python)[0]: section for python, section in job.functions.items()}
    return sections.get(Path(file).parts[0].removesuffix(".py"), next(iter(sections.values()), "parse"))


class LoadedParsers:
    """The parsers that one process has loaded: it keeps them, whatever happens to their files."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str | None], Path] = {}
        self._digests: dict[Path, dict[str, str]] = {}

    def check(self, job: Job, recorded: Mapping[str, str]) -> ParserFiles:
        """The files of the parser that the process has, or would load. Raises UsageError as check_parser does."""
        place = self._places.get((job.folder, job.parse.python))
        if place is not None and recorded and recorded.items() <= self._digests[place].items():
            return ParserFiles(place, recorded)
        found = check_parser(job, recorded)
        loaded = self._digests.get(found.place, {})
        for name, digest in found.digests.items() if recorded else ():
            if loaded.get(name, digest) != digest:
                raise UsageError(
                    f"[parse] python: this process has loaded another {found.place / name} than the run was opened "
                    "with; start `shardcrawl work` again: it loads the one that is there now"
                )
        return found

    def add(self, job: Job, files: ParserFiles) -> None:
        """Keep that the job's parser was loaded from these files; not those that its transforms' processes load."""
        digests = files.digests
        if job.transform:
            own = parser_files(replace(job, transform=())).digests
            digests = {name: digest for name, digest in digests.items() if name in own}
        self._places[job.folder, job.parse.python] = files.place
        self._digests[files.place] = {**digests, **self._digests.get(files.place, {})}


def _with_imports(top: str, folder: Path) -> Iterator[str]:
    """The files of a module of the folder and of those that it imports from there, by their names in the folder."""
    seen, waiting = {top}, [top]
    while waiting:
        for name in _module_files(waiting.pop(), folder):
            yield name
            new = {module for module in _imports(folder / name, in_folder="/" not in name) if module not in seen}
            seen |= new
            waiting += sorted(new - NEVER_OURS)


def _module_files(top: str, place: Path) -> list[str]:
    """The files of a top-level module or package, by their names below `place`; none when it is not there."""
    package, file = place / top, place / f"{top}.py"
    try:
        if file.is_file() and not (package / "__init__.py").is_file():
            return [file.name]
        return sorted(path.relative_to(place).as_posix() for path in package.rglob("*.py"))
    except OSError:
        return []


def _imports(path: Path, *, in_folder: bool) -> set[str]:
    """The top-level modules that a file names in import statements; relative ones only of a file of the folder."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # importing it will say what is wrong
        return set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (in_folder or not node.level):
            found += [node.module] if node.module else [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in found}


def _read(place: Path, names: Iterable[str]) -> ParserFiles:
    found = {}
    for name in sorted(names):
        try:
            # Postgres has the names of `others`: what is no regular file could never end.
            content = (place / name).read_bytes() if (place / name).is_file() else None
        except (OSError, ValueError):
            content = None
        if content is not None:
            text = name.encode("utf-8", "replace").decode()
            found[text] = blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
    return ParserFiles(place, found)
