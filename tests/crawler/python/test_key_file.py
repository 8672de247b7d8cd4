from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.python.key_file import KeyFile


def written(keys: Iterable[Any], data: Path) -> tuple[str, str]:
    file = KeyFile.of(keys, data, "items")
    file.write()
    return file.path.name, file.path.read_text()


@pytest.mark.parametrize(
    ("keys", "name", "text"),
    [
        (["a", "b"], "items.txt", "a\nb\n"),
        ((number for number in (1, 2)), "items.txt", "1\n2\n"),
        (["a b", "#c", "é"], "items.txt", "a b\n#c\né\n"),
        ([{"sku": "a", "n": 1}, {"sku": "b\n"}], "items.jsonl", '{"sku":"a","n":1}\n{"sku":"b\\n"}\n'),
        ([], "items.txt", ""),
    ],
)
def test_keys_become_lines(keys: Iterable[Any], name: str, text: str, tmp_path: Path) -> None:
    assert written(keys, tmp_path / "data") == (name, text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("abc", "keys is one str; give a list"),
        ({"sku": "a"}, "keys is one dict"),
        (["a", "b\nc"], r"number 2 is 'b\\nc'; a key is one line"),
        (["a", " b"], "number 2 is ' b'"),
        ([""], "number 1 is ''"),
        (["a", None], "number 2 is a NoneType"),
        ([True], "number 1 is a bool"),
        (["\ud800"], "not valid Unicode"),
        (["a", {"sku": "b"}], "number 2 is a dict; the first one was a text"),
        ([{"sku": "b"}, "a"], "number 2 is a str; the first one was a dict"),
        ([{"sku": object()}], "number 1: Type is not JSON serializable"),
    ],
)
def test_what_is_no_key_is_refused_and_the_old_file_stays(keys: Any, words: str, tmp_path: Path) -> None:
    before = [written(["old"], tmp_path / "data"), written([{"key": "old"}], tmp_path / "data")]
    with pytest.raises(UsageError, match=words):
        written(keys, tmp_path / "data")
    folder = tmp_path / "data" / "keys"
    assert [(name, (folder / name).read_text()) for name, _ in before] == before


def test_only_its_user_can_read_the_file(tmp_path: Path) -> None:
    written(["a"], tmp_path / "data")
    found = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "data").rglob("*")}
    assert found == {"keys": 0, "items.txt": 0}
