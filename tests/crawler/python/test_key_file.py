from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.python.key_file import write_keys


def written(keys: Iterable[Any], data: Path) -> tuple[str, str]:
    path = write_keys(keys, data)
    assert path.parent == data / "keys"
    return path.suffix, path.read_text()


@pytest.mark.parametrize(
    ("keys", "suffix", "text"),
    [
        (["a", "b"], ".txt", "a\nb\n"),
        ((number for number in (1, 2)), ".txt", "1\n2\n"),
        (["a b", "#c", "é"], ".txt", "a b\n#c\né\n"),
        ([{"sku": "a", "n": 1}, {"sku": "b\n"}], ".jsonl", '{"sku":"a","n":1}\n{"sku":"b\\n"}\n'),
        ([], ".txt", ""),
    ],
)
def test_keys_become_lines(keys: Iterable[Any], suffix: str, text: str, tmp_path: Path) -> None:
    assert written(keys, tmp_path / "data") == (suffix, text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("abc", "keys is one str; give a list"),
        ({"sku": "a"}, "keys is one dict"),
        (5, "keys is one int"),
        (["a", "b\nc"], r"number 2 is 'b\\nc'; a key is one line"),
        (["a", " b"], "number 2 is ' b'"),
        ([""], "number 1 is ''"),
        (["a", None], "number 2 is a NoneType"),
        ([True], "number 1 is a bool"),
        (["\ud800"], "not valid Unicode"),
        (["a", {"sku": "b"}], "number 2 is a dict; write texts or integers, or dicts alone"),
        ([{"sku": "b"}, "a"], "number 2 is a str; the first one was a dict"),
        ([{"sku": object()}], "number 1: Type is not JSON serializable"),
    ],
)
def test_what_is_no_key_is_refused_and_leaves_no_file(keys: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        write_keys(keys, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_the_same_keys_are_the_same_file_and_others_another_one(tmp_path: Path) -> None:
    first, again, other = (write_keys(keys, tmp_path) for keys in (["a", "b"], iter(["a", "b"]), ["a"]))
    assert first == again != other
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, other.name])


def test_only_its_user_can_read_the_file(tmp_path: Path) -> None:
    path = write_keys(["a"], tmp_path / "data")
    assert [one.stat().st_mode & 0o077 for one in (path, path.parent, path.parent.parent)] == [0, 0, 0]
