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


def test_a_function_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers are processes of their own"):
        crawler.run({**JOB, "parse": {"python": print}}, data=tmp_path / "data")
    assert not (tmp_path / "data").exists()
