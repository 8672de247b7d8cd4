from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import crawler
from coordinator.errors import UsageError
from crawler.job.document import JobOverrides
from crawler.python.connection import _job_of

TOML = '[run]\ncorpus = "items"\n[source]\nkeys = ["1", "2"]\n[request]\nurl = "http://x/{key}"\n'
JOB = {"run": {"corpus": "items"}, "source": {"keys": ["1", "2"]}, "request": {"url": "http://x/{key}"}}


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.toml"
    path.write_text(TOML)
    return [path, "job.toml", JOB, crawler.Job.from_dict(JOB), crawler.Job.load("job.toml")]


def test_a_job_is_given_in_any_form(forms: list[Any], tmp_path: Path) -> None:
    made = [_job_of(form, JobOverrides(workers=3), None, tmp_path) for form in forms]
    assert all(job == made[0] for job in made)
    assert (made[0].run.workers, made[0].folder, made[0].source.keys) == (3, str(tmp_path), ("1", "2"))


def test_keys_are_the_source_in_the_place_of_the_jobs(forms: list[Any], tmp_path: Path) -> None:
    for form in forms:
        source = _job_of(form, JobOverrides(), ["3"], tmp_path / "data").source
        assert (Path(source.path or "").read_text(), source.keys) == ("3\n", ())
    rows = _job_of({**JOB, "source": {"key": "id", "path": "x"}}, JobOverrides(), [{"id": 3}], tmp_path / "data").source
    assert (Path(rows.path or "").read_text(), rows.key) == ('{"id":3}\n', "id")


@pytest.mark.parametrize(
    ("parse", "options", "words"),
    [
        ({"python": print}, {}, "workers are processes of their own"),
        ({}, {"log_level": "loud"}, "log_level is 'loud'; write one of debug, info, warning, error"),
        ({}, {"workers": 2000}, r"\[run\] workers is 2000"),
        ({}, {"rate": "fast"}, "rate"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(
    parse: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        crawler.run({**JOB, "parse": parse}, data=tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()
