from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import crawler
from coordinator.errors import UsageError

JOB: dict[str, Any] = {"run": {"corpus": "items"}, "source": {"keys": ["1", "2"]}, "request": {"url": "http://x/{key}"}}


def revisions() -> None: ...


def test_a_dict_is_read_as_a_job_file_is(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        '[run]\ncorpus = "items"\n[source]\nkeys = ["1", "2"]\n[request]\nurl = "http://x/{key}"\nmethod = "GET"\n'
    )
    loaded = crawler.Job.load(path)
    given = MappingProxyType({**JOB, "source": {"keys": ("1", "2")}, "request": {**JOB["request"], "method": "GET"}})
    made = crawler.Job.from_dict(given, tmp_path)
    assert made == loaded
    assert (made.document, made.folder) == (loaded.document, str(tmp_path))


def test_a_job_does_not_change_with_its_dict() -> None:
    given = {**JOB, "source": {"path": Path("keys.txt")}, "run": {"corpus": "items"}}
    made = crawler.Job.from_dict(given)
    given["run"]["corpus"] = "others"
    assert (made.corpus, made.document["run"], made.source.path) == ("items", {"corpus": "items"}, "keys.txt")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"run": {"corpsu": "items"}}, r"\[run\] has no key 'corpsu'; did you mean corpus\?"),
        ({"run": {"corpus": "items", "workers": "2"}}, r"\[run\] workers is '2'; it must be a whole number"),
        ({"parse": {"python": revisions}}, r'revisions is a function .* name it as "parse:revisions"'),
        ({"parse": {"python": lambda response: []}}, "is a function"),
        ({"kinds": {"page": {"parse": {"python": revisions}}}}, "revisions is a function"),
        ({"run": {"corpus": {1, 2}}}, r"\{1, 2\} is a set, which a job file cannot have"),
        ({"limits": {1: {"rate": 1}}}, "Dict key must be str"),
        ({"source": {"sitemap": "https://x.org/s.xml", "since": date(2026, 2, 3)}}, "leave .request. url out"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(section: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        crawler.Job.from_dict({**JOB, **section})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [crawler.Job.from_dict, crawler.Job.load])
def test_what_is_no_job_is_refused(make: Callable[[Any], crawler.Job]) -> None:
    with pytest.raises(UsageError):
        make("none.toml")
