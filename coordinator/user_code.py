"""The user's own Python: modules of a job's folder, and a bound on how long a call of theirs may take.

A module of the folder is loaded by its file, as a part of a package that stands for the folder. So two jobs may have
modules of one name, and an installed package never takes the place of a module of the job. What a module of the folder
imports is looked up in the folder first, except for names of the standard library and of this program. Nobody else sees
the folder's modules before installed ones: a `redis.py` in it is not what this program imports. And a module that is
missing in one job's folder is never taken from that of another job.
"""

from __future__ import annotations

import builtins
import importlib
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

PACKAGE_PREFIX = "shardcrawl_job_"
# `from crawler import Response` is how a parser gets its types, also beside a folder of that name.
NEVER_OURS = sys.stdlib_module_names | {"crawler", "coordinator"}
# Code that catches the first OutOfTime gets another one after so many seconds, until it ends.
AGAIN_SECONDS = 1.0


class OutOfTime(BaseException):
    """The user's code took too long. No Exception: code that goes on after any Exception must not go on after this."""


class TimeLimit:
    """Raises OutOfTime in the code inside `with`, when it takes longer than `seconds`; `hint` says who set them.

    It interrupts Python and the `re` module, but no other code in C; and only in the main thread, where signals arrive.
    It costs a microsecond.
    """

    __slots__ = ("_hint", "_is_main", "_seconds")

    def __init__(self, seconds: float, hint: str = "") -> None:
        self._seconds = seconds
        self._hint = hint
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            signal.signal(signal.SIGALRM, _interrupt)

    def __enter__(self) -> None:
        if self._is_main:
            signal.setitimer(signal.ITIMER_REAL, self._seconds, AGAIN_SECONDS)

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if not self._is_main:
            return
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        except OutOfTime as late:  # in the very moment in which the code ended
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            error = error or late
            raise
        finally:
            if isinstance(error, OutOfTime):
                error.args = (f"no result within {self._seconds:g} s{self._hint}",)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise OutOfTime


def load_module(name: str, folder: Path) -> ModuleType:
    """Import the module from the folder, else an installed one. Raises what importing raises: it runs the user's code.

    Modules of the folder that are imported by their plain names in another way (importlib, pickle) are found last.
    """
    package = _package_of(folder)
    if name.startswith(f"{package}.") or file_of(name, folder) is not None:
        return importlib.import_module(name if name.startswith(package) else f"{package}.{name}")
    _check_installed(name.partition(".")[0], folder)
    return importlib.import_module(name)


def file_of(name: str, folder: Path) -> str | None:
    """The file of that module in the folder, None when it has none."""
    path = folder.joinpath(*name.split("."))
    try:
        return next((str(file) for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
    except OSError:  # this process may not look into the folder: the module may be installed
        return None


def installed_place(top: str, folder: Path) -> Path | None:
    """Where a module is installed that a job in `folder` needs; None also when only another job's folder has it."""
    try:
        spec = find_spec(top)  # it imports nothing: it would only import a parent
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    package = spec.submodule_search_locations
    place = Path(next(iter(package)) if package else spec.origin or "").parent
    return None if str(place) in _finder().folders - {str(folder)} else place


def _check_installed(top: str, folder: Path) -> None:
    if top not in sys.modules and installed_place(top, folder) is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)


def _finder() -> _JobFinder:
    """The finder of this process, which is made at the first call."""
    finder = next((one for one in sys.meta_path if isinstance(one, _JobFinder)), None)
    if finder is None:
        finder = _JobFinder()
        sys.meta_path.insert(0, finder)
    return finder


def _package_of(folder: Path) -> str:
    """The name of the package that stands for the folder, which is made at the first call."""
    finder = _finder()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        finder.folders.add(str(folder))
        importlib.invalidate_caches()
    package = ModuleType(f"{PACKAGE_PREFIX}{blake2b(str(folder).encode(), digest_size=8).hexdigest()}")
    package.__path__ = [str(folder)]
    return sys.modules.setdefault(package.__name__, package).__name__


class _JobFinder(MetaPathFinder):
    """Finds modules of folders as any other, but gives them an import statement of their own."""

    def __init__(self) -> None:
        self.folders: set[str] = set()  # those that are in sys.path for their jobs only

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PACKAGE_PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _JobLoader(spec.loader.name, spec.loader.path)
        return spec


class _JobLoader(SourceFileLoader):
    def path_stats(self, _: str | bytes | PathLike[str]) -> Mapping[str, Any]:
        """Use no .pyc file: it would be taken for an edited file of the same size and second."""
        raise OSError

    def exec_module(self, module: ModuleType) -> None:
        package = sys.modules[module.__name__.partition(".")[0]]

        def import_from_folder(
            name: str,
            globals: Mapping[str, Any] | None = None,  # noqa: A002 - __import__'s own names
            locals: Mapping[str, Any] | None = None,  # noqa: A002
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            top = name.partition(".")[0]
            folder = Path(package.__path__[0])
            if level or top in NEVER_OURS or file_of(top, folder) is None:
                if not level:
                    _check_installed(top, folder)
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            found = builtins.__import__(f"{package.__name__}.{name}", globals, locals, fromlist or (), 0)
            return found if fromlist else sys.modules[f"{package.__name__}.{top}"]

        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_from_folder}
        super().exec_module(module)
