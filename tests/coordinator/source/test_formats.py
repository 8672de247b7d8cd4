"""What a source may be: bytes of a file -> its keys, or the line that names what it is and what to do."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import sqlite3
import tarfile
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import coordinator.source.input.pieces as pieces_module
from coordinator.errors import SourceError
from coordinator.source import Cursor, KeyRule
from tests.coordinator.source.test_source import IDS, START, URLS, everything, reading

KEYS = ["https://host.example/a", "https://host.example/é", "https://host.example/😀"]
TEXT = "\n".join(KEYS) + "\n"


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)
    return file.getvalue()


def archived(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("keys.txt")
        entry.size = len(TEXT.encode())
        archive.addfile(entry, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def database() -> bytes:
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/db")) as connection:
        connection.execute("create table keys (key text)")
        return Path(folder, "db").read_bytes()


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("UTF-8", TEXT.encode()),
        ("UTF-8 with a byte order mark", codecs.BOM_UTF8 + TEXT.encode()),
        ("UTF-16, little-endian", codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")),
        ("UTF-16, big-endian", codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")),
        ("UTF-16 with CRLF", codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le")),
        ("UTF-16 with CR", codecs.BOM_UTF16_BE + TEXT.replace("\n", "\r").encode("utf-16-be")),
        ("UTF-16 without a last line end", codecs.BOM_UTF16_LE + TEXT.rstrip().encode("utf-16-le")),
        ("UTF-16 files, joined", b"".join(f"\ufeff{key}\n".encode("utf-16-le") for key in KEYS)),
        ("UTF-8 files, joined", b"".join(codecs.BOM_UTF8 + f"{key}\n".encode() for key in KEYS)),
        ("CRLF", TEXT.replace("\n", "\r\n").encode()),
        ("CR", TEXT.replace("\n", "\r").encode()),
        ("blanks", f"\u00a0{KEYS[0]}  \r\n\t{KEYS[1]}\n \n{KEYS[2]}\u3000".encode()),
        ("comments", f"# my list\n{KEYS[0]}\n  # more\n{KEYS[1]}\n{KEYS[2]}".encode()),
        ("gzip", gzip.compress(TEXT.encode())),
        ("xz", lzma.compress(TEXT.encode())),
        ("bzip2", bz2.compress(TEXT.encode())),
        ("zstd", zstandard.compress(TEXT.encode())),
        ("UTF-16 in gzip", gzip.compress(codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"))),
        ("gzip, then xz", gzip.compress(f"{KEYS[0]}\n".encode()) + lzma.compress("\n".join(KEYS[1:]).encode())),
        ("gzip, then garbage", gzip.compress(TEXT.encode()) + b"garbage"),
        ("xz, then garbage", lzma.compress(TEXT.encode()) + b"garbage"),
    ],
)
def test_a_text_is_read_whatever_its_encoding_line_ends_and_compression(
    tmp_path: Path, what: str, content: bytes
) -> None:
    (tmp_path / "keys.txt").write_bytes(content)
    whole = everything(reading(tmp_path, rule=URLS))
    assert (whole.keys, whole.refused) == (KEYS, []), what
    with closing(reading(tmp_path, rule=URLS)) as source:
        assert source.estimate() == whole.end.line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zipped("keys.txt"), "is a zip archive: unpack it"),
        (b"PK\x05\x06" + bytes(18), "is a zip archive: unpack it"),
        (zipped("[Content_Types].xml"), "is an Office file .*: write its keys as text"),
        (zipped("xl/workbook.xml"), "is an Office file .*: write its keys as text"),
        (archived(""), "is a tar archive: unpack it"),
        (archived("gz"), "is a tar archive: unpack it"),
        (archived("xz"), "is a tar archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive: unpack it"),
        (b"Rar!\x1a\x07\x01\x00", "is a RAR archive: unpack it"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "is lz4 data: unpack it"),
        (lzma.compress(TEXT.encode(), lzma.FORMAT_ALONE), "is lzma data: unpack it"),
        (b"PAR1\x15\x04\x15", "is a Parquet file: give it a name that ends in .parquet"),
        (b"ARROW1\x00\x00\xff", "is an Arrow file: write"),
        (b"ORC\x11\x00\x00", "is an ORC file: write"),
        (b"Obj\x01\x04\x14avro", "is an Avro file: write"),
        (database(), "is an SQLite database: write"),
        (b"%PDF-1.7\n", "is a PDF: write"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Office file .*: write"),
        (b"\x89PNG\r\n\x1a\n", "is an image: name a text"),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), "is text in UTF-32: convert it: iconv"),
        (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), "is text in UTF-32: convert it: iconv"),
        (b"<!DOCTYPE html>\n<title>Not found</title>", "is HTML: write"),
        (codecs.BOM_UTF8 + b"\n <html lang=en>", "is HTML: write"),
        (b'<?xml version="1.0"?>\n<urlset><url>', "is XML: write its keys .*<loc>"),
        (b'<urlset xmlns="x">', "is XML: write"),
        ('\ufeff<?xml version="1.0"?>'.encode("utf-16-le"), "is XML: write"),
        (b'{"url": "https://host.example/a"}\n', "is JSON: write .*jq"),
        (b'["https://host.example/a"]', "is JSON: write"),
        (b'[\n  "https://host.example/a"\n]', "is JSON: write"),
        (b"{\n}", "is JSON: write"),
    ],
)
@pytest.mark.parametrize("rule", [URLS, IDS], ids=["urls", "ids"])
def test_a_format_that_is_no_list_of_keys_is_named_with_what_to_do(
    tmp_path: Path, rule: KeyRule, content: bytes, says: str
) -> None:
    (tmp_path / "keys.txt").write_bytes(content)
    with pytest.raises(SourceError, match=rf"\A{tmp_path}/keys.txt {says}") as caught:
        everything(reading(tmp_path, rule=rule))
    assert "\n" not in str(caught.value)
    with closing(reading(tmp_path, rule=rule)) as source, pytest.raises(SourceError, match=says):
        source.estimate()


@pytest.mark.parametrize(
    "key", ["PK", "PAR1", "ORC", "Obj", "BZh9", "{6F9619FF-8B86-D011-B42D-00CF4FC964FF}", "[x]", "7z", "<x>", "LZIP"]
)
def test_a_key_that_begins_like_another_format_is_a_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "keys.txt").write_text(f"{key}\nother\n")
    assert everything(reading(tmp_path)).keys == [key, "other"]


def test_half_a_character_of_utf_16_costs_its_line_and_no_other(tmp_path: Path) -> None:
    lone = "\ud800".encode("utf-16-le", "surrogatepass")
    lines = codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le") + lone + "\ntwo\nthr".encode("utf-16-le") + b"e"
    (tmp_path / "keys.txt").write_bytes(lines)
    chunk = everything(reading(tmp_path))
    assert chunk.keys == ["one", "two"]
    assert [(refused.line, refused.reason) for refused in chunk.refused] == [
        (2, "is not valid UTF-8"),
        (4, "is not valid UTF-8"),
    ]


def test_xz_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.xz").write_bytes(lzma.compress(b"one\n"))
    with mock.patch.object(pieces_module, "_XZ_MEMORY_BYTES", 1024), pytest.raises(SourceError, match="emory usage"):
        everything(reading(tmp_path, "keys.xz"))


@settings(max_examples=60)
@given(
    lines=st.lists(st.text(st.sampled_from("aé😀 \u2028#"), max_size=6), min_size=1, max_size=10),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    codec=st.sampled_from(["utf-16-le", "utf-16-be"]),
    limit=st.integers(1, 4),
    piece=st.sampled_from([4, 12, 1 << 18]),
    packed=st.booleans(),
)
def test_utf_16_resumes_at_every_chunk(
    lines: list[str], end: str, codec: str, limit: int, piece: int, packed: bool
) -> None:
    content = ("\ufeff" + end.join(lines)).encode(codec)
    with tempfile.TemporaryDirectory() as name, mock.patch.object(pieces_module, "PIECE_BYTES", piece):
        (Path(name) / "keys.txt").write_bytes(lzma.compress(content) if packed else content)
        whole = everything(reading(Path(name)))
        keys, cursor, exhausted = [], START, False
        while not exhausted:
            with closing(reading(Path(name), cursor=Cursor.parse(str(cursor)))) as source:
                chunk = source.read(limit, 60)
            keys += chunk.keys
            cursor, exhausted = chunk.end, chunk.exhausted
        assert keys == whole.keys == [line.strip(" ") for line in lines if line.strip()]
        assert cursor == whole.end


def test_an_estimate_of_several_compressed_files_is_scaled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.source.input.line_count._SAMPLE_BYTES", 100_000)
    for number in range(4):
        lines = "".join(f"{os.urandom(20).hex()}\n" for _ in range(5_000))
        (tmp_path / f"{number}.xz").write_bytes(lzma.compress(lines.encode()))
    with closing(reading(tmp_path, "*.xz")) as source:
        assert source.estimate() == pytest.approx(20_000, rel=0.05)
