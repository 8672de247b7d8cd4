"""Limits as users write them, and the names of upstreams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import NotYet, UsageError
from coordinator.settings import LimitSettings, Window
from crawler.job.document import JobOverrides, load_document
from crawler.job.job import read_job
from crawler.job.sections.limits import limit_of, limits_in, upstream_named


@pytest.mark.parametrize(
    ("rate", "windows"),
    [(50, [(50, 1)]), (2.5, [(2.5, 1)]), ("50", [(50, 1)]), ("50/s", [(50, 1)]), (" 1.5 / s ", [(1.5, 1)])]
    + [("60/m", [(60, 60)]), ("60/min", [(60, 60)]), ("5000/h", [(5000, 3600)]), ("9/d", [(9, 86_400)])]
    + [(["5000/h", 50], [(50, 1), (5000, 3600)]), ("50/s, 300/min", [(50, 1), (300, 60)])]
    + [(0.5, [(1, 2)]), ("0.1/min", [(1, 600)]), ("none", []), (None, [])],
)
def test_a_rate_is_windows_the_shortest_first(rate: Any, windows: list[tuple[float, float]]) -> None:
    assert limit_of(rate, None, None, "x").windows == tuple(Window(*window) for window in windows)


@pytest.mark.parametrize(
    "rate",
    [0, -1, True, "fast", "50/y", "0/s", "-5/s", "nan", "inf", float("nan"), 1e7, "", {}, ["50/s", "auto"], "5/s,"]
    + [float("inf"), -float("inf"), 10**400, 1e-320, "0.002/d", "9" * 5000, "\u0663/s"],
)
def test_a_rate_that_is_none_is_an_error(rate: Any) -> None:
    with pytest.raises(UsageError, match="^x rate: write requests a second") as caught:
        limit_of(rate, None, None, "x")
    assert not isinstance(caught.value, NotYet)


@pytest.mark.parametrize("rate", [[], ["50/s", 40], "60/min, 50/m"])
def test_two_rates_over_the_same_time_are_an_error(rate: Any) -> None:
    with pytest.raises(UsageError, match="one rate for each length of time"):
        limit_of(rate, None, None, "x")


def test_an_auto_rate_may_have_a_ceiling_and_only_that() -> None:
    assert limit_of("auto", None, 3, "x") == LimitSettings(auto=True, concurrency=3)
    assert limit_of("auto", "200/s", None, "x") == LimitSettings((Window(200, 1),), auto=True)
    with pytest.raises(UsageError, match='only rate = "auto" has one'):
        limit_of("50/s", "200/s", None, "x")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (LimitSettings(), "none"),
        (LimitSettings((Window(50, 1), Window(5_000, 3600))), "50/s and 5,000/h"),
        (LimitSettings((Window(1, 2),)), "1/2 s"),
        (LimitSettings(auto=True), "auto"),
        (LimitSettings((Window(200, 1),), auto=True), "auto, at most 200/s"),
    ],
)
def test_a_rate_is_shown_as_it_is_written(limit: LimitSettings, words: str) -> None:
    assert limit.rate_text == words


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("EN.Wikipedia.org", "en.wikipedia.org"),
        ("[2001:DB8::1]:8080", "[2001:db8::1]:8080"),
        ("h:80", "h:80"),
        ("*", "*"),
        ("*.Wikipedia.org", "*.wikipedia.org"),
        ("127.0.0.1:*", "127.0.0.1"),
        ("example.org.", "example.org"),
        ("B\xfccher.example:0443", "xn--bcher-kva.example:443"),
        ("*.b\xfccher.example", "*.xn--bcher-kva.example"),
        ("127.1", "127.0.0.1"),
        ("2130706433:8000", "127.0.0.1:8000"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("*.0.1", "*.0.1"),
        ("api.example.org/a/../b c\xe9*".replace(" ", ""), "api.example.org/bc%C3%A9*"),
        ("API.example.org/V2/*", "api.example.org/V2/*"),
    ],
)
def test_an_upstream_has_one_name_however_its_host_is_written(name: str, upstream: str) -> None:
    assert upstream_named(name, "x") == upstream


@pytest.mark.parametrize(
    "name", ["", "https://x.example", "x example", "x.example/", "x.example/a b", "/v2/*", "x:y", "u@x"]
)
def test_a_name_that_no_request_would_ever_meet_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="write a host like"):
        upstream_named(name, "x")


def test_the_rate_of_the_command_line_beats_every_entry_and_its_ceiling() -> None:
    limits = {"a.example": {"rate": "auto", "ceiling": 9, "concurrency": 2}}
    changed = JobOverrides(rate="50/s").apply({"limits": limits})["limits"]
    bound = (Window(50, 1),)
    assert limits_in(changed) == {"a.example": LimitSettings(bound, concurrency=2), "*": LimitSettings(bound)}
    assert limits["a.example"]["rate"] == "auto", "the document given stays as it was"
    auto = limits_in(JobOverrides(rate="auto").apply({"limits": limits})["limits"])
    assert auto["a.example"] == LimitSettings((Window(9, 1),), auto=True, concurrency=2)


@pytest.mark.parametrize("document", [{"limits": {"x.example": 5}}, {"limits": 5}, {"run": "a"}, {"request": 5}])
def test_options_leave_a_malformed_document_for_reading_to_refuse(document: dict[str, Any]) -> None:
    changed = JobOverrides(name="a", rate="5", allow_private=("127.0.0.0/8",)).apply(document)
    with pytest.raises(UsageError, match="is no table|must be a table"):
        read_job({"run": {"name": "a"}, "source": {"path": "a"}, **changed})


def test_options_beat_the_job_file_and_networks_add_to_it() -> None:
    options = JobOverrides(name="b", workers=2, concurrency=3, batch_rows=4, grace=5.0, allow_private=("10.0.0.0/8",))
    changed = options.apply({"run": {"name": "a"}, "request": {"allow_private": ["127.0.0.0/8"]}})
    assert changed == {
        "run": {"name": "b", "workers": 2, "concurrency": 3, "grace": 5.0},
        "store": {"batch_rows": 4},
        "request": {"allow_private": ["127.0.0.0/8", "10.0.0.0/8"]},
    }


def test_a_bare_source_is_a_job_named_after_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_document("some keys.txt.gz", JobOverrides()) == (
        {"run": {"corpus": "some-keys", "name": "some-keys"}, "source": {"path": str(tmp_path / "some keys.txt.gz")}},
        *(str(tmp_path), False),
    )
    for glob in ("titles/*.txt.gz", "titles/**/*", "titles", "titles/"):
        assert load_document(glob, JobOverrides())[0]["run"] == {"corpus": "titles", "name": "titles"}
    assert load_document("-", JobOverrides())[0] == {
        "run": {"corpus": "stdin", "name": "stdin"},
        "source": {"path": "-"},
    }
    (tmp_path / "job.toml").write_text('[run]\nname = "a"\n')
    assert load_document("job.toml", JobOverrides(workers=2)) == (
        {"run": {"name": "a", "corpus": "job", "workers": 2}},
        *(str(tmp_path), False),
    )
    (tmp_path / "job.toml").write_text('[run]\ncorpus = "job"\n')
    assert load_document("job.toml", JobOverrides())[1:] == (str(tmp_path), True)
