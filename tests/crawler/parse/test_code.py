"""Which files are the parser's, and whether two machines have the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from coordinator.errors import UsageError
from crawler.job.job import Job, read_job
from crawler.parse.code import LoadedParsers, check_parser, differing_file, parser_files
from tests.crawler.examples import a_document

PARSER = b"def f(response): ...\n"


def job_in(folder: Path, **files: str) -> Job:
    """A job whose parser is `f` of parse.py, with these files beside it."""
    for name, text in {"parse": PARSER.decode(), **files}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_job(a_document(parse={"python": "parse:f"}), str(folder))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, "parse.py"),
        ({"other": ""}, "parse.py"),
        ({"parse": "import rows, json", "rows": "", "json": ""}, "parse.py rows.py"),
        ({"parse": "def f(_):\n  from rows import a", "rows": "import deep", "deep": ""}, "deep.py parse.py rows.py"),
        ({"parse": "import rows", "rows": "import parse"}, "parse.py rows.py"),
        ({"parse": "from . import rows\nfrom .x import y", "rows": "", "x": ""}, "parse.py rows.py x.py"),
        (
            {"parse": "import p.a", "p/__init__": "", "p/b/c": "import x", "x": ""},
            "p/__init__.py p/b/c.py parse.py x.py",
        ),
        ({"parse": "from lib import a", "lib/a": "from . import x", "x": ""}, "lib/a.py parse.py"),
        ({"parse": "import lib", "lib": "", "lib/a": ""}, "lib.py parse.py"),
        ({"parse": "not python ("}, "parse.py"),
        ({"parse": "import absent_module"}, "parse.py"),
    ],
)
def test_the_files_are_the_module_and_what_it_imports_from_the_folder(
    tmp_path: Path, files: dict[str, str], names: str
) -> None:
    assert " ".join(parser_files(job_in(tmp_path, **files)).digests) == names


@pytest.mark.parametrize("python", [None, "os:system"])
def test_a_job_without_a_parser_of_the_user_has_no_files(tmp_path: Path, python: str | None) -> None:
    assert parser_files(read_job(a_document(parse={"python": python} if python else {}), str(tmp_path))).digests == {}


def test_a_parser_may_be_installed_on_one_machine_and_lie_in_the_folder_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed").mkdir()
    job_in(tmp_path / "installed", parse="import rows", rows="")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    recorded = parser_files(job_in(tmp_path / "folder", parse="import rows", rows="")).digests
    elsewhere = read_job(a_document(parse={"python": "parse:f"}), str(tmp_path / "empty"))
    assert check_parser(elsewhere, recorded).digests == recorded
    (tmp_path / "installed" / "rows.py").write_text("edited")
    with pytest.raises(UsageError, match=r"rows\.py is not the one with which the run was opened"):
        check_parser(elsewhere, recorded)


def test_a_machine_without_the_file_learns_where_it_must_lie(tmp_path: Path) -> None:
    elsewhere = read_job(a_document(parse={"python": "parse_absent:f"}), str(tmp_path))
    for recorded in ({}, {"parse_absent.py": "1"}):
        with pytest.raises(UsageError) as raised:
            check_parser(elsewhere, recorded)
        assert f"this machine has no {tmp_path.resolve()}/parse_absent.py" in str(raised.value)


@pytest.mark.parametrize(
    ("recorded", "found", "name"),
    [
        ({}, {"parse.py": "1"}, None),
        ({"parse.py": "1"}, {"parse.py": "1"}, None),
        ({"parse.py": "1"}, {"parse.py": "2"}, "parse.py"),
        ({"parse.py": "1", "rows.py": "1"}, {"parse.py": "1"}, "rows.py"),
        ({"parse.py": "1"}, {"parse.py": "1", "extra.py": "1"}, "extra.py"),
        ({"parse.py": "1"}, {}, "parse.py"),
    ],
)
def test_every_difference_counts_but_that_to_an_older_version(
    recorded: dict[str, str], found: dict[str, str], name: str | None
) -> None:
    assert differing_file(recorded, found) == name


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        ({"parse.py": "1"}, "parse.py is not the one"),
        ({"rows.py": "1"}, "parse.py is not among the files"),
        ({"absent.py": "1"}, "absent.py is missing"),
        ({"/dev/zero": "1"}, "/dev/zero is missing"),
    ],
)
def test_the_message_names_the_first_file_that_differs(tmp_path: Path, recorded: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_parser(job_in(tmp_path), recorded)


def recorded_of(job: Job) -> Mapping[str, str]:
    return parser_files(job).digests


def test_a_process_keeps_what_it_has_loaded(tmp_path: Path) -> None:
    """An edited file does not change it: it joins the run of before again, and not one of the edited file."""
    job, parsers = job_in(tmp_path, parse="import rows", rows="1"), LoadedParsers()
    first = recorded_of(job)
    parsers.add(job, parsers.check(job, first))
    job_in(tmp_path, parse="import rows, more", rows="1", more="")
    assert parsers.check(job, first).digests == first
    with pytest.raises(UsageError, match=r"has loaded another .*/parse\.py .*start `shardcrawl work` again"):
        parsers.check(job, recorded_of(job))
    assert LoadedParsers().check(job, recorded_of(job))


def test_a_module_that_two_parsers_import_is_loaded_once(tmp_path: Path) -> None:
    first, parsers = job_in(tmp_path, parse="import rows", rows="1", other="import rows"), LoadedParsers()
    second = read_job(a_document(parse={"python": "other:f"}), str(tmp_path))
    parsers.add(first, parsers.check(first, recorded_of(first)))
    parsers.add(second, parsers.check(second, recorded_of(second)))
    (tmp_path / "rows.py").write_text("2")
    for job in (first, second):
        with pytest.raises(UsageError, match=r"has loaded another .*/rows\.py"):
            parsers.check(job, recorded_of(job))


def test_the_files_of_transforms_are_among_them(tmp_path: Path) -> None:
    job_in(tmp_path, features="import model", model="")
    tables = [{"name": "facts", "columns": {"n": "bigint"}}]
    transform = {"python": "features:batch"}
    both = a_document(parse={"python": "parse:f"}, tables=tables, transform=transform)
    assert list(parser_files(read_job(both, str(tmp_path))).digests) == ["parse.py", "features.py", "model.py"]
    alone = read_job(a_document(tables=tables, transform=transform), str(tmp_path))
    assert list(parser_files(alone).digests) == ["features.py", "model.py"]
    with pytest.raises(UsageError, match=r"^\[transform\] python: .*/features\.py is not the one with which the run"):
        check_parser(read_job(both, str(tmp_path)), {**parser_files(alone).digests, "parse.py": "", "features.py": ""})
    absent = a_document(tables=tables, transform={"python": "features_absent:batch"})
    with pytest.raises(UsageError, match=r"^\[transform\] python: cannot import features_absent: this machine has no "):
        parser_files(read_job(absent, str(tmp_path)))


def test_a_process_works_on_a_run_with_an_edited_transform_which_it_does_not_load_itself(tmp_path: Path) -> None:
    job_in(tmp_path, features="")
    tables = [{"name": "facts", "columns": {"n": "bigint"}}]
    document = a_document(parse={"python": "parse:f"}, tables=tables, transform={"python": "features:batch"})
    job, parsers = read_job(document, str(tmp_path)), LoadedParsers()
    parsers.add(job, parsers.check(job, recorded_of(job)))
    job_in(tmp_path, features="edited")
    assert parsers.check(job, recorded_of(job)).digests == recorded_of(job)
    job_in(tmp_path, parse="edited")
    with pytest.raises(UsageError, match=r"has loaded another .*/parse\.py"):
        parsers.check(job, recorded_of(job))


def test_a_run_of_an_older_version_is_joined_with_any_parser(tmp_path: Path) -> None:
    job, parsers = job_in(tmp_path), LoadedParsers()
    parsers.add(job, parsers.check(job, {}))
    job_in(tmp_path, parse="edited")
    assert parsers.check(job, {})
