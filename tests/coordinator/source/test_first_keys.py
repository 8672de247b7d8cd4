"""A source none of whose first 1,000 keys is one: it stops, and names the likely cause."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.errors import SourceError
from coordinator.source import Cursor, KeyRule
from tests.coordinator.source.test_source import IDS, URLS, everything, module, reading, yielding

ONE_ID = KeyRule(absolute_url=False)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("%d,https://host.example/%d", "it looks like a CSV: end its name in .csv, and name the column of URLs"),
        ('"%d","https://host.example/%d"', "it looks like a CSV: end its name in .csv, and name the column of URLs"),
        ('"https://host.example/%d","%d"', "it looks like a CSV: end its name in .csv, and name the column of URLs"),
        ("title %d\thttps://host.example/%d", "it looks like a CSV: end its name in .csv, and name the column of URLs"),
        ("%d;title %d", "it looks like a CSV: end its name in .csv, and name the column of keys"),
        ('"https://host.example/%d?x=%d"', "the URLs are in quotes: remove these"),
        ("<https://host.example/%d?x=%d>", "the URLs are in quotes: remove these"),
        ("- https://host.example/%d?x=%d", "something stands before each URL"),
        ("%d https://host.example/%d", "something stands before each URL"),
        ("ftp://host.example/%d?x=%d", "only http:// and https:// can be fetched"),
        ("host.example/%d?x=%d", "the URLs lack http://"),
        ("www.host%d.example:80%d", "the URLs lack http://"),
        ("//host.example/%d?x=%d", "the URLs lack http://"),
        ("Q%d%d", "if these are ids, a job file says what their URL is: [request] url = "),
        ("10.1000/%d.%d", "if these are ids, a job file says what their URL is: [request] url = "),
    ],
)
def test_lines_that_are_no_urls_have_a_likely_cause(tmp_path: Path, line: str, cause: str) -> None:
    lines = [line % (number, number) for number in range(1_000)]
    (tmp_path / "keys.txt").write_text("\n".join(["id,url", *lines]))
    with pytest.raises(SourceError) as caught:
        everything(reading(tmp_path, "keys.txt", URLS), limit=65_536)
    assert str(caught.value).startswith(
        "keys.txt: its first 1,000 keys are all refused; line 1 (id,url) does not start"
    )
    assert f"; {cause}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("key é %d\n".encode("latin-1"), "is it in another encoding? convert it"),
        ("key %d\n".encode("utf-16-le"), "it looks like UTF-16 without a byte order mark"),
        ("key %d\n".encode("utf-16-be"), "it looks like UTF-16 without a byte order mark"),
        (b"left|right %d\n", "set [request] separator to a text that no key contains"),
    ],
)
def test_lines_that_are_no_ids_have_a_likely_cause(tmp_path: Path, line: bytes, cause: str) -> None:
    (tmp_path / "keys.txt").write_bytes(line.replace(b"%d", b"7") * 1_001)
    with pytest.raises(SourceError, match="its first 1,000 keys are all refused") as caught:
        everything(reading(tmp_path, rule=IDS))
    assert cause in str(caught.value)


@pytest.mark.parametrize("limit", [1, 7, 999, 1_000, 65_536])
@pytest.mark.parametrize(("bad_lines", "stops"), [(999, False), (1_000, True)])
def test_exactly_the_first_1000_keys_count_whatever_is_read_at_a_time(
    tmp_path: Path, limit: int, bad_lines: int, stops: bool
) -> None:
    (tmp_path / "keys.txt").write_text("# comment\n\n" * 50 + "bad\n" * bad_lines + "https://host.example/\n")
    python = module(
        tmp_path, f"corpus_{limit}_{stops}", f"def keys():\n    yield from ['bad'] * {bad_lines} + ['http://h/']\n"
    )
    for source in (reading(tmp_path, rule=URLS), yielding(tmp_path, python, URLS)):
        if stops:
            with pytest.raises(SourceError, match="its first 1,000 keys are all refused"):
                everything(source, limit)
        else:
            assert len(everything(source, limit).refused) == bad_lines


def test_a_run_that_goes_on_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("http://h/\n" + "bad\n" * 2_000)
    with closing(reading(tmp_path, rule=URLS)) as source:
        end = source.read(1, 60).end
    assert len(everything(reading(tmp_path, rule=URLS, cursor=end)).refused) == 2_000


def test_a_generator_that_yields_lines_with_their_ends_hears_of_it(tmp_path: Path) -> None:
    python = module(tmp_path, "corpus_lines", "def keys():\n    yield from ['id\\n'] * 1_000\n")
    with pytest.raises(SourceError, match=r"each ends in a line break: yield line.strip\(\)"):
        everything(yielding(tmp_path, python, IDS))


def test_a_short_source_without_a_key_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "keys.txt").write_text("host.example/a\nhost.example/b\n")
    assert len(everything(reading(tmp_path, rule=URLS)).refused) == 2
    (warning,) = caplog.messages
    assert warning.startswith("keys.txt: all of its keys are refused; line 1 (host.example/a) does not start")
    assert "the URLs lack http://" in warning


@pytest.mark.parametrize("text", ["", "\n \n", "# only\n# comments\n", "\ufeff"])
def test_an_empty_source_says_so(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "keys.txt").write_text(text)
    everything(reading(tmp_path, rule=URLS))
    assert caplog.messages == ["keys.txt is empty: it has no keys"]


def test_an_empty_generator_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    python = module(tmp_path, "corpus_empty", "def keys():\n    return []\n")
    assert everything(yielding(tmp_path, python)).end == Cursor()
    assert caplog.messages == ["corpus_empty:keys is empty: it has no keys"]
    everything(yielding(tmp_path, module(tmp_path, "corpus_full", "def keys():\n    return ['k']\n"), ONE_ID))
    assert len(caplog.messages) == 1
