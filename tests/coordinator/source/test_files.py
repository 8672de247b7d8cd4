"""Sources that are several files: sorted by name, one corpus with one cursor; and pipes that have a name."""

from __future__ import annotations

import gzip
import lzma
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.errors import SourceError
from coordinator.source import Chunk, Cursor, reads_once
from coordinator.source.input.files import list_files
from tests.coordinator.source.test_source import START, URLS, everything, reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files: plain without a last line end, compressed, empty, in a folder below, and hidden."""
    keys = tmp_path / "keys"
    (keys / "more").mkdir(parents=True)
    (keys / ".hidden").write_bytes(b"never\n")
    (keys / "b.txt").write_bytes(b"three\nfour")
    (keys / "a.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (keys / "c.txt").write_bytes(b"")
    (keys / "d é:1.xz").write_bytes(lzma.compress("\ufefffive\r\nsix\r\n".encode("utf-16")))
    (keys / "more" / "e.txt").write_bytes(b"\nseven\n")
    return tmp_path


WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


@pytest.mark.parametrize("path", ["keys", "keys/", "keys/**", "k*s/**"])
def test_a_folder_or_a_glob_is_one_corpus_sorted_by_name(folder: Path, path: str) -> None:
    whole = everything(reading(folder, path))
    assert whole == Chunk(WORDS, [], Cursor(7, 2, "keys/more/e.txt"), True)
    with closing(reading(folder, path)) as source:
        assert source.estimate() == 8
    assert everything(reading(folder, "keys/?.*")).keys == WORDS[:4]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_cursor_resumes_in_its_file(folder: Path, limit: int) -> None:
    keys: list[str] = []
    cursor, exhausted = START, False
    while not exhausted:
        with closing(reading(folder, "keys", cursor=Cursor.parse(str(cursor)))) as source:
            chunk = source.read(limit, 60)
        keys += chunk.keys
        cursor, exhausted = chunk.end, chunk.exhausted
        assert str(cursor).isascii()
    assert keys == WORDS


def test_a_file_that_is_added_does_not_move_the_cursor_and_a_missing_one_is_named(folder: Path) -> None:
    with closing(reading(folder, "keys")) as source:
        end = source.read(3, 60).end
    (folder / "keys" / "a2.txt").write_bytes(b"new\n")
    assert everything(reading(folder, "keys", cursor=end)).keys == WORDS[3:]
    (folder / "keys" / "b.txt").unlink()
    with pytest.raises(SourceError, match=r"keys/b\.txt, where this run goes on, is not in the source any more"):
        reading(folder, "keys", cursor=end)


def test_a_fingerprint_changes_with_each_file_and_each_name(folder: Path) -> None:
    def mark() -> str:
        with closing(reading(folder, "keys")) as source:
            return source.fingerprint()

    marks = [mark()]
    assert mark() == marks[0]
    (folder / "keys" / "b.txt").write_bytes(b"three\nFour")
    marks.append(mark())
    (folder / "keys" / "b.txt").rename(folder / "keys" / "b2.txt")
    marks.append(mark())
    (folder / "keys" / "z.txt").touch()
    marks.append(mark())
    assert len(set(marks)) == 4


def test_refused_lines_of_several_files_stay_apart_and_name_their_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"http://host.example/\n" + b"x" * 300 + b"\n")
    first, second = everything(reading(tmp_path, "*.txt", URLS)).refused
    assert (first.place, second.place) == ("a.txt line 2", "b.txt line 2")
    assert first.key != second.key


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "k[1].txt").write_bytes(b"one\n")
    (tmp_path / "k1.txt").write_bytes(b"two\n")
    assert everything(reading(tmp_path, "k[1].txt")).keys == ["one"]


def test_what_is_no_text_in_a_folder_is_named_after_the_keys_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04")
    with closing(reading(tmp_path, "?.*")) as source:
        assert source.read(10, 60).keys == ["one"]
        with pytest.raises(SourceError, match="b.zip is a zip archive"):
            source.read(10, 60)
        with pytest.raises(SourceError, match="b.zip is a zip archive"):
            source.estimate()


def test_pipes_are_read_once_and_files_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "keys.txt").touch()
    once = {path: reads_once(path, tmp_path) for path in ("-", "fifo", "/dev/null", "keys.txt", ".", "absent", "*")}
    assert [path for path, is_one in once.items() if is_one] == ["-", "fifo", "/dev/null"]
    assert not reads_once(None, tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "socket"])
def test_a_device_and_a_socket_have_no_keys(tmp_path: Path, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(SourceError, match=f"{path} is a device or a socket, which has no keys"):
            reads_once(path, tmp_path)


def test_opening_a_named_pipe_does_not_wait_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with closing(reading(tmp_path, "fifo")) as source:
        assert source.estimate() is None
        with (tmp_path / "fifo").open("wb") as writer:
            writer.write(b"one\rtwo\r")
        assert everything(source).keys == ["one", "two"]


def test_a_link_that_leads_in_a_circle_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a\n")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    assert [file.name for file in list_files("corpus", tmp_path)] == ["corpus/a.txt"]
