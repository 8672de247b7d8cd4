"""Modules of a job's folder, and calls of the user's code that do not end."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from coordinator.user_code import OutOfTime, TimeLimit, load_module


def write(folder: Path, modules: Mapping[str, str]) -> None:
    for name, source in modules.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import my_rows; found = my_rows.NAME", "my_rows"),
        ("from my_rows import NAME as found", "my_rows"),
        ("from package.part import NAME as found", "package.part"),
        ("import package.part; found = package.part.NAME", "package.part"),
        ("import package.part as part; found = part.NAME", "package.part"),
        ("from package import part; found = part.NAME", "package.part"),
        ("from package import *; found = NAME", "package"),
        ("import namespace.part; found = namespace.part.NAME", "namespace.part"),
        ("import importlib; found = importlib.import_module('my_rows').NAME", "my_rows"),
        ("exec('import my_rows as it'); found = it.NAME", "my_rows"),
        ("def inner():\n    import my_rows\n    return my_rows.NAME\nfound = inner()", "my_rows"),
        # an installed package of the same name, which this program has imported, does not win
        ("from msgpack import NAME as found", "msgpack"),
        ("import user; found = user.msgpack.NAME", "msgpack"),
        # the standard library and the types of a parser do
        ("import queue; found = queue.Queue.__name__", "Queue"),
        ("from crawler import Response; found = Response.__name__", "Response"),
        ("import httpx; found = httpx.__name__", "httpx"),
    ],
)
def test_what_a_module_of_the_folder_imports(folder: Path, statement: str, found: str) -> None:
    modules = {
        "job": statement,
        "my_rows": "NAME = 'my_rows'",
        "package/__init__": "NAME = 'package'",
        "package/part": "from my_rows import NAME\nNAME = __name__.partition('.')[2]",
        "namespace/part": "NAME = 'namespace.part'",
        "msgpack": "NAME = 'msgpack'",
        "user": "import msgpack",
        "queue": "raise RuntimeError('not the standard library')",
        "crawler/__init__": "raise RuntimeError('not this program')",
        "uvloop": "raise RuntimeError('nobody imports this')",
    }
    write(folder, modules)
    assert load_module("job", folder).found == found
    assert sys.modules["msgpack"] is msgpack, "nobody else sees the folder's module"
    assert sys.path[-1] == str(folder), "so an installed module is found first"


def test_two_folders_have_neighbours_of_one_name(folder: Path) -> None:
    for name in ("a", "b"):
        write(folder / name, {"job": "from my_rows import NAME", "my_rows": f"NAME = '{name}'"})
    assert [load_module("job", folder / name).NAME for name in ("a", "b")] == ["a", "b"]


def test_a_file_that_was_edited_to_the_same_size_and_time_is_read_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = []
    for name in ("a", "b"):
        write(folder, {"edited": f"NAME = {name!r}"})
        os.utime(folder / "edited.py", (1, 1))
        module = load_module("edited", folder)
        found.append(module.NAME)
        del sys.modules[module.__name__]
    assert found == ["a", "b"]


@pytest.mark.parametrize("name", ["absent", "asks"])
def test_a_module_that_is_missing_in_a_folder_is_not_taken_from_another_jobs(folder: Path, name: str) -> None:
    write(folder / "a", {"absent": "NAME = 'a'"})
    write(folder / "b", {"asks": "import absent"})
    assert load_module("absent", folder / "a").NAME == "a"
    with pytest.raises(ModuleNotFoundError, match="^No module named 'absent'$"):
        load_module(name, folder / "b")
    assert "absent" not in sys.modules


def test_a_module_that_is_no_text_is_taken_from_the_folder_itself(folder: Path) -> None:
    shutil.copy(msgpack._cmsgpack.__file__, folder)
    assert load_module("_cmsgpack", folder).Packer


def test_a_module_that_is_not_in_the_folder_is_an_installed_one(folder: Path) -> None:
    assert load_module("msgpack", folder) is msgpack


def forever() -> None:
    while True:
        pass


def catches_everything() -> None:
    for _ in range(3):
        with suppress(Exception):
            time.sleep(1e6)


def catches_the_first() -> None:
    with suppress(BaseException):
        time.sleep(1e6)
    time.sleep(1e6)


@pytest.mark.parametrize(
    "code",
    [forever, catches_everything, catches_the_first, lambda: re.match("(a+)+$", "a" * 40 + "b")],
    ids=["a loop", "except Exception", "except BaseException", "a regular expression"],
)
def test_what_does_not_end_is_interrupted(code: Callable[[], Any]) -> None:
    with pytest.raises(OutOfTime, match=r"^no result within 0\.05 s \(why\)$"), TimeLimit(0.05, " (why)"):
        code()


def test_code_that_ends_is_not_interrupted() -> None:
    limit = TimeLimit(0.01)
    for _ in itertools.repeat(None, 1000):
        with limit:
            pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
