"""The readers of the corpus: what is a key, what is refused, and that every cursor resumes exactly."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import coordinator.source.input.pieces as pieces_module
from coordinator.errors import SourceError
from coordinator.source import Chunk, Cursor, KeyRule, Refused, Source, open_source
from coordinator.source.input.formats import compression_of, require_lines, wide_encoding_of
from coordinator.source.key_rule import BLANKS
from coordinator.user_code import load_module

URLS = KeyRule(absolute_url=True, separator=None)
IDS = KeyRule(absolute_url=False, separator="|")
START = Cursor(0, 0)
CHECKED = zstandard.ZstdCompressor(write_checksum=True)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda text: text,
    ".gz": lambda text: gzip.compress(text[: len(text) // 2]) + gzip.compress(text[len(text) // 2 :]),
    ".zst": lambda text: b"".join(CHECKED.compress(half) for half in (text[: len(text) // 2], text[len(text) // 2 :])),
    ".xz": lambda text: lzma.compress(text[: len(text) // 2]) + bytes(8) + lzma.compress(text[len(text) // 2 :]),
    ".bz2": lambda text: bz2.compress(text[: len(text) // 2]) + bz2.compress(text[len(text) // 2 :]),
}
COMPRESSED = [suffix for suffix in PACK if suffix]


def reading(folder: Path, path: str = "keys.txt", rule: KeyRule = IDS, cursor: Cursor = START) -> Source:
    return open_source(path, None, cursor=cursor, key_rule=rule, folder=folder)


def yielding(folder: Path, python: str, rule: KeyRule = IDS, cursor: Cursor = START) -> Source:
    return open_source(None, python, cursor=cursor, key_rule=rule, folder=folder)


def everything(source: Source, limit: int = 1_000) -> Chunk:
    """Read to the end and add the chunks up."""
    keys: list[str] = []
    refused: list[Refused] = []
    with closing(source):
        while True:
            chunk = source.read(limit, 60)
            assert len(chunk.keys) + len(chunk.refused) <= limit
            keys += chunk.keys
            refused += chunk.refused
            if chunk.exhausted:
                return Chunk(keys, refused, chunk.end, True)


def read_text(folder: Path, text: bytes, rule: KeyRule = IDS) -> Chunk:
    (folder / "keys.txt").write_bytes(text)
    return everything(reading(folder, rule=rule))


# -- lines


def test_lines_end_in_lf_crlf_or_cr_and_the_last_one_in_nothing(tmp_path: Path) -> None:
    chunk = read_text(tmp_path, b"one\ntwo\r\nthree\rfour\r\rfive")
    assert chunk == Chunk(["one", "two", "three", "four", "five"], [], Cursor(25, 6), True)
    assert read_text(tmp_path, b"one\rtwo\r") == Chunk(["one", "two"], [], Cursor(8, 2), True)


def test_nothing_else_ends_a_line(tmp_path: Path) -> None:
    """Neither the separators of Unicode, which are a part of the key, nor the controls of ASCII, which no key has."""
    chunk = read_text(tmp_path, "a\u2028b\na\u2029b\na\x0bb\na\x0cb\na\x85b\na\x1eb\n".encode())
    assert chunk.keys == ["a\u2028b", "a\u2029b"]
    assert [refused.line for refused in chunk.refused] == [3, 4, 5, 6]


def test_blanks_and_byte_order_marks_around_a_key_are_dropped(tmp_path: Path) -> None:
    """Spaces, tabs, and the blanks that come along when a list is copied from a page or a sheet."""
    lines = [" one", "two  ", "\t three \t", "\u00a0four\u00a0", "\ufefffive", "\u3000 six\u2009", "seven\u200b"]
    assert read_text(tmp_path, "\r\n".join(lines).encode()).keys == [
        *("one", "two", "three", "four", "five", "six", "seven\u200b")
    ]
    assert read_text(tmp_path, b"  https://host.example/a \t\n", URLS).keys == ["https://host.example/a"]


def test_a_byte_order_mark_between_files_that_were_joined_is_dropped(tmp_path: Path) -> None:
    chunk = read_text(tmp_path, b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert chunk.keys == ["one", "two"]
    assert everything(reading(tmp_path), limit=1).keys == chunk.keys


def test_keys_are_kept_byte_for_byte(tmp_path: Path) -> None:
    keys = ["a  b", "US", "Us", "é", "e\u0301", "\u200cزن", "😀", "100%", "%E9", "a\u2028b"]
    assert read_text(tmp_path, "\n".join(keys).encode()).keys == keys


def test_blank_lines_and_comments_are_skipped_but_counted_as_lines(tmp_path: Path) -> None:
    chunk = read_text(tmp_path, b"\n  \t \r\n# note\n \t# note\twith tab\nhttp://h/#1\n\n\nbad\n", URLS)
    assert chunk.keys == ["http://h/#1"]
    assert [refused.line for refused in chunk.refused] == [8]
    assert chunk.end.line == 8


def test_a_hash_begins_a_comment_only_where_keys_are_urls(tmp_path: Path) -> None:
    assert read_text(tmp_path, b"#tag\n # other\nkey#1\n", IDS).keys == ["#tag", "# other", "key#1"]


def test_an_empty_file_is_exhausted_at_once(tmp_path: Path) -> None:
    assert read_text(tmp_path, b"") == Chunk([], [], START, True)


# -- refused lines


def test_bad_lines_are_refused_with_number_and_reason_and_reading_goes_on(tmp_path: Path) -> None:
    chunk = read_text(tmp_path, b"good\nb\xffd\nnu\x00l\nta\tb\ndel\x7f\nc1\xc2\x85\na|b\n\xe2\x80\ngood too\n")
    assert chunk.keys == ["good", "good too"]
    assert chunk.refused == [
        Refused(r"b\xffd (line 2)", 2, "is not valid UTF-8"),
        Refused(r"nu\x00l (line 3)", 3, "contains a control character (U+0000)"),
        Refused(r"ta\x09b (line 4)", 4, "contains a control character (U+0009)"),
        Refused(r"del\x7f (line 5)", 5, "contains a control character (U+007F)"),
        Refused(r"c1\x85 (line 6)", 6, "contains a control character (U+0085)"),
        Refused("a|b", 7, "contains the separator '|', which joins the keys of one request"),
        Refused(r"\xe2\x80 (line 8)", 8, "is not valid UTF-8"),
    ]


def test_a_key_may_have_8192_bytes_and_not_one_more(tmp_path: Path) -> None:
    fits, wide, long, wider = "a" * 8192, "é" * 4096, "a" * 8193, "é" * 4096 + "a"
    chunk = read_text(tmp_path, f"{fits}\r\n{wide}\r\n{long}\r\n{wider}\r\n{fits}".encode())
    assert chunk.keys == [fits, wide, fits]
    assert [(refused.line, refused.reason) for refused in chunk.refused] == [
        (3, "is longer than 8192 bytes"),
        (4, "is longer than 8192 bytes"),
    ]


def test_cut_lines_that_look_the_same_stay_apart(tmp_path: Path) -> None:
    first, second = read_text(tmp_path, b"x" * 9_000 + b"1\n" + b"x" * 9_000 + b"2\n").refused
    assert first.key == "x" * 200 + " (line 1)"
    assert second.key == "x" * 200 + " (line 2)"


@pytest.mark.parametrize("begin", ["x", " "])
def test_a_line_without_end_costs_one_bounded_buffer(tmp_path: Path, begin: str) -> None:
    (tmp_path / "keys.txt").write_bytes(b"one\n" + begin.encode() * 10_000_000 + b"\ntwo\n")
    source = reading(tmp_path)
    tracemalloc.start()
    chunk = everything(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunk.keys == ["one", "two"]
    assert [(refused.line, refused.reason) for refused in chunk.refused] == [(2, "is longer than 8192 bytes")]
    assert chunk.end == Cursor(10_000_009, 3)
    assert peak < 4 * pieces_module.PIECE_BYTES


def test_a_comment_without_end_is_still_a_comment(tmp_path: Path) -> None:
    text = b"#" * 3_000_000 + b"\nhttp://h/"
    assert read_text(tmp_path, text, URLS) == Chunk(["http://h/"], [], Cursor(3_000_010, 2), True)


# -- the key rule


@pytest.mark.parametrize(
    "key",
    [
        "https://en.wikipedia.org/wiki/US",
        "http://localhost:8080",
        "HTTPS://EXAMPLE.ORG/?q=a|b#c",
        "http://127.0.0.1:65535/",
        "http://[2001:db8::1]:80/x",
        "https://bücher.example/é",
        "https://medium.example/@user/post",
        "https://host.example/?mail=a@b.example",
        "https://host.example/" + "a" * 8_000,
        # As browsers read them: spaces are encoded, tabs and line ends are removed, slashes may be missing.
        "https://host/a b",
        "https://host/a\u3000b",
        " https://host/\n",
        "https://ho\tst/\r\na",
        "\x1fhttps://host/\x0c",
        "https:\\\\host\\a",
        "https:host",
        "https:///path",
        "https://@host/",
        "http://0x7f.1/",
    ],
)
def test_an_absolute_url_is_a_key(key: str) -> None:
    assert URLS.reason(key) is None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("ftp://host/", "does not start with http:// or https://"),
        ("en.wikipedia.org/wiki/US", "does not start with http:// or https://"),
        ("https://", "has no valid host"),
        ("https:///", "has no valid host"),
        ("https://:80/", "has no valid host"),
        ("https://host:port/", "has no valid port"),
        ("https://[::1/", "has no valid host"),
        ("https://host%2f.example/", "has no valid host"),
        ("https://host:65536/", "has no valid port"),
        ("https://host:0/", "has no valid port"),
        ("https://ho st/", "has no valid host"),
        ("https://256.1.1.1/", "has no valid host"),
        ("https://1.2.3.4.5/", "has no valid host"),
        ("https://[::1%25eth0]/", "has no valid host"),
        ("https://host/a\x01b", "contains a control character (U+0001)"),
        ("https://host/a\x7f", "contains a control character (U+007F)"),
        ("https://host/\0", "contains a control character (U+0000)"),
        ("https:/user@host/", "contains user information before the host"),
        ("https://user:word@host/", "contains user information before the host"),
        ("", "is empty"),
        ("https://host/\ud800", "is not valid UTF-8"),
    ],
)
def test_other_texts_are_no_urls(key: str, reason: str) -> None:
    assert URLS.reason(key) == reason
    assert not URLS.surely_key(key)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("https://user:s3cret@host/a", "https://***@host/a (line 1)"),
        ("https://user:s3/cr@et@host/a", "https://***@host/a (line 1)"),
        ("https://user:s3cret pass@host/a", "https://***@host/a (line 1)"),
        ("ftp://user:s3cret@host/a", "ftp://***@host/a (line 1)"),
        ("user:s3cret@host/a", "***@host/a (line 1)"),
        ("https:/user:s3cret@host/a", "***@host/a (line 1)"),
    ],
)
def test_a_refused_url_never_shows_its_password(tmp_path: Path, line: str, shown: str) -> None:
    (refused,) = read_text(tmp_path, line.encode(), URLS).refused
    assert refused.key == shown


@pytest.mark.parametrize("separator", ["|", ",", "a", ".", "%7C", "::"])
@given(text=st.text(st.sampled_from("a|,.:%7C/?#@ \x00\x85\ud800é\u3000h0-n\\"), max_size=12), url=st.booleans())
def test_the_fast_pattern_never_accepts_what_the_reason_refuses(separator: str, text: str, url: bool) -> None:
    rule = KeyRule(url, separator)
    for key in (text, "https://" + text, "http://xn--" + text, "http://1.2.3.4" + text, "http://h/" + text):
        if rule.surely_key(key):
            assert rule.reason(key) is None
            assert key == key.strip(BLANKS)
            assert key
            assert not (url and key.startswith("#"))


def test_plain_keys_take_the_fast_path() -> None:
    assert IDS.surely_key("New York")
    assert URLS.surely_key("https://en.wikipedia.org/wiki/Zürich?x=1#y")
    assert URLS.surely_key("http://127.0.0.1:8080")


# -- cursors

CONTENT = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=8).map(lambda line: line.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b" ", b"# note", b"key", b"\xef\xbb\xbf", b"a\rb", b" key\t"]),
    st.integers(8_188, 8_210).map(lambda size: b"x" * size),
    st.integers(4_094, 4_098).map(lambda size: "é".encode() * size),
)
TEXT = st.builds(
    lambda lines, last: b"".join(line + end for line, end in lines) + last,
    st.lists(st.tuples(CONTENT, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=12),
    CONTENT,
)


def by_hand(text: bytes) -> list[str]:
    """The good keys of a text, by a slow and simple reading of the rules."""
    keys = []
    for line in text.splitlines():
        try:
            key = line.decode().strip(BLANKS)
        except UnicodeDecodeError:
            continue
        control = any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in key)
        if key.strip() and not control and "|" not in key and len(key.encode()) <= 8192:
            keys.append(key)
    return keys


def looks_like_text(text: bytes) -> bool:
    """Whether the bytes would not be taken for UTF-16 or another format."""
    if compression_of(text) or wide_encoding_of(text):
        return False
    try:
        require_lines(text, "")
    except SourceError:
        return False
    return True


@settings(max_examples=60)
@given(text=TEXT, limit=st.integers(1, 5), piece=st.sampled_from([4, 64, 1 << 18]), suffix=st.sampled_from(list(PACK)))
def test_resuming_at_every_chunk_reads_what_one_pass_reads(text: bytes, limit: int, piece: int, suffix: str) -> None:
    assume(looks_like_text(text))
    with tempfile.TemporaryDirectory() as name, mock.patch.object(pieces_module, "PIECE_BYTES", piece):
        path = f"keys{suffix}"
        (Path(name) / path).write_bytes(PACK[suffix](text))
        whole = everything(reading(Path(name), path))
        keys: list[str] = []
        refused: list[Refused] = []
        cursor, exhausted = START, False
        while not exhausted:
            source = reading(Path(name), path, cursor=Cursor.parse(str(cursor)))
            chunk = source.read(limit, 60)
            source.close()
            keys += chunk.keys
            refused += chunk.refused
            cursor, exhausted = chunk.end, chunk.exhausted
        assert Chunk(keys, refused, cursor, True) == whole
        assert whole.keys == by_hand(text)
        assert whole.end.offset == len(text)
        assert len({entry.key for entry in refused if "(line" in entry.key}) == sum("(line" in e.key for e in refused)


def test_a_cursor_that_is_none_is_an_error() -> None:
    assert Cursor.parse("17:3") == Cursor(17, 3)
    for text in ("", "17", "17:", ":3", "-1:3", "a:b"):
        with pytest.raises(SourceError, match="offset:line"):
            Cursor.parse(text)


@pytest.mark.parametrize("suffix", list(PACK))
def test_a_file_that_became_shorter_than_its_cursor_is_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"keys{suffix}").write_bytes(PACK[suffix](b"one\ntwo\n"))
    with pytest.raises(SourceError, match="shorter than it was"):
        everything(reading(tmp_path, f"keys{suffix}", cursor=Cursor(9, 3)))


# -- compressed files


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compression_is_known_by_the_content_whatever_the_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "keys.txt").write_bytes(PACK[suffix](b"one\ntwo\nthree\n"))
    assert everything(reading(tmp_path)).keys == ["one", "two", "three"]


def test_a_zstd_file_may_begin_with_a_skippable_frame(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert read_text(tmp_path, skippable + zstandard.compress(b"one\n") + skippable).keys == ["one"]


def test_zeros_after_a_gzip_member_are_padding(tmp_path: Path) -> None:
    assert read_text(tmp_path, gzip.compress(b"one\n") + bytes(512) + gzip.compress(b"two\n") + bytes(512)).keys == [
        "one",
        "two",
    ]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_name_that_promises_compression_which_is_not_there_is_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"keys{suffix}").write_bytes(b"plain\n")
    with pytest.raises(SourceError, match=f"keys{suffix} is not .* data; .* rename it"):
        everything(reading(tmp_path, f"keys{suffix}"))


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("garbage", [b"x", b"garbage" * 100, b"\r\n", b"PK\x03\x04"])
def test_garbage_after_compressed_data_is_warned_about_and_the_keys_before_it_are_read(
    tmp_path: Path, suffix: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys").write_bytes(PACK[suffix](b"one\ntwo\n") + garbage)
    with closing(reading(tmp_path, "keys")) as source:
        assert source.estimate() == 2
    assert everything(reading(tmp_path, "keys")).keys == ["one", "two"]
    (warning,) = caplog.messages
    assert f"{tmp_path}/keys has trailing garbage after its " in warning


def test_members_may_have_different_compressions(tmp_path: Path) -> None:
    packed = b"".join(PACK[suffix](suffix.encode() + b"\n") for suffix in COMPRESSED)
    assert read_text(tmp_path, packed).keys == COMPRESSED


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_file_gives_what_is_whole_and_then_names_path_and_line(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    digits = os.urandom(300_000).hex()
    packed = PACK[suffix]("".join(f"{digits[at : at + 40]}\n" for at in range(0, len(digits), 40)).encode())
    cut = len(packed) * 3 // 4
    packed = packed[:cut] if damage == "truncated" else packed[:cut] + bytes(999) + packed[cut + 999 :]
    (tmp_path / f"keys{suffix}").write_bytes(packed)
    source = reading(tmp_path, f"keys{suffix}")
    chunks: list[Chunk] = []

    def read_on() -> None:
        for _ in range(200):
            chunks.append(source.read(100, 60))

    with pytest.raises(SourceError, match=rf"keys{suffix} cannot be read beyond line \d+: \S+") as caught:
        read_on()
    assert chunks[-1].end.line > 5_000
    assert f"line {chunks[-1].end.line}:" in str(caught.value)
    if damage == "truncated":
        keys = "".join(key for chunk in chunks for key in chunk.keys)
        assert keys == digits[: len(keys)]
    with pytest.raises(SourceError, match="cannot be read beyond line"):
        everything(source)


def test_a_zstd_file_that_unpacks_to_very_much_costs_a_bounded_buffer(tmp_path: Path) -> None:
    (tmp_path / "keys.zst").write_bytes(zstandard.compress(b"one\n" + b"x" * 100_000_000 + b"\ntwo\n"))
    source = reading(tmp_path, "keys.zst")
    tracemalloc.start()
    chunk = everything(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (chunk.keys, len(chunk.refused)) == (["one", "two"], 1)
    assert peak < 30_000_000


@pytest.mark.parametrize("suffix", list(PACK))
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, suffix: str) -> None:
    peaks = []
    for lines in (20_000, 60_000):
        text = b"".join(b"https://host.example/page/%07d\n" % number for number in range(lines))
        (tmp_path / f"keys{suffix}").write_bytes(PACK[suffix](text))
        del text
        source = reading(tmp_path, f"keys{suffix}", URLS)
        tracemalloc.start()
        count, exhausted = 0, False
        while not exhausted:
            chunk = source.read(5_000, 60)
            count, exhausted = count + len(chunk.keys), chunk.exhausted
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        source.close()
        assert count == lines
    assert peaks[1] < peaks[0] * 1.5


# -- files


def test_a_source_that_cannot_be_opened_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, words in (
        ("absent.txt", "does not exist; check"),
        ("folder", "is a folder without files; check"),
        ("*.gz", "matches no file; check"),
        ("file/below", "cannot be read: Not a directory; check"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            reading(tmp_path, path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / path) in str(caught.value)
    with pytest.raises(SourceError, match="one of path, keys, python and query"):
        open_source(None, None, cursor=START, key_rule=IDS, folder=tmp_path)
    with pytest.raises(SourceError, match="one of path, keys, python and query"):
        open_source("a", "b:c", cursor=START, key_rule=IDS, folder=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_the_right_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").touch(mode=0)
    with pytest.raises(SourceError, match="Permission denied; check the file and its rights"):
        reading(tmp_path)


@pytest.mark.parametrize("suffix", list(PACK))
def test_an_estimate_counts_lines_and_does_not_move_the_reader(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"keys{suffix}").write_bytes(PACK[suffix](b"one\ntwo\n\nthree"))
    source = reading(tmp_path, f"keys{suffix}")
    assert source.read(1, 60).keys == ["one"]
    assert source.estimate() == 4
    assert everything(source).keys == ["two", "three"]


def test_an_estimate_of_a_large_packed_file_is_scaled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.source.input.line_count._SAMPLE_BYTES", 100_000)
    (tmp_path / "keys.gz").write_bytes(
        gzip.compress("".join(f"{os.urandom(20).hex()}\n" for _ in range(20_000)).encode())
    )
    with closing(reading(tmp_path, "keys.gz")) as source:
        assert source.estimate() == pytest.approx(20_000, rel=0.05)


def test_a_fingerprint_changes_with_either_end_and_the_size(tmp_path: Path) -> None:
    text = b"".join(b"%07d\n" % number for number in range(40_000))
    marks = set()
    for changed in (text, b"x" + text[1:], text[:-2] + b"x\n", text + b"y\n"):
        (tmp_path / "keys.txt").write_bytes(changed)
        with closing(reading(tmp_path)) as source:
            mark = source.fingerprint()
            assert source.read(1, 60).end.line == 1  # the reader did not move
        with closing(reading(tmp_path)) as source:
            assert source.fingerprint() == mark
        marks.add(mark)
    assert len(marks) == 4


# -- pipes

READ_ALL = """
import sys
from pathlib import Path
from coordinator.source import Cursor, KeyRule, open_source
source = open_source("-", None, cursor=Cursor.parse(sys.argv[1]), key_rule=KeyRule(False, None), folder=Path("."))
assert source.estimate() is None and source.fingerprint() == ""
exhausted = False
while not exhausted:
    chunk = source.read(2, 60)
    exhausted = chunk.exhausted
    print(chunk.end, *chunk.keys)
"""


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("through", ["pipe", "file"])
def test_standard_input_is_read_and_resumed_by_lines(tmp_path: Path, suffix: str, through: str) -> None:
    packed = PACK[suffix](b"one\ntwo\nthree\nfour")
    (tmp_path / "keys").write_bytes(packed)

    def run(cursor: str) -> list[str]:
        command = [sys.executable, "-c", READ_ALL, cursor]
        if through == "pipe":
            done = subprocess.run(command, input=packed, capture_output=True, timeout=60, check=True)
        else:
            with (tmp_path / "keys").open("rb") as file:
                done = subprocess.run(command, stdin=file, capture_output=True, timeout=60, check=True)
        return done.stdout.decode().split("\n")

    assert run("0:0") == ["8:2 one two", "18:4 three four", ""]
    assert run("8:2") == ["18:4 three four", ""]
    assert run("18:4") == ["18:4", ""]


def test_a_pipe_that_has_fewer_lines_than_the_cursor_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(b"one\ntwo",)).start()
    with pytest.raises(SourceError, match="fewer than the 3 lines"):
        everything(reading(tmp_path, "fifo", cursor=Cursor(12, 3)))


def test_a_stalled_pipe_gives_what_it_has_when_the_time_is_up_and_goes_on_after_that(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    keep = os.open(tmp_path / "fifo", os.O_RDWR)
    source = reading(tmp_path, "fifo")
    os.write(keep, b"one\ntwo\nthr")
    assert source.read(10, 0.05) == Chunk(["one", "two"], [], Cursor(8, 2), False)
    os.write(keep, b"ee\n")
    assert source.read(10, 0.05) == Chunk(["three"], [], Cursor(14, 3), False)
    source.close()
    os.close(keep)


def test_closing_frees_a_read_that_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    keep = os.open(tmp_path / "fifo", os.O_RDWR)
    source = reading(tmp_path, "fifo")
    chunks: list[Chunk] = []
    reader = threading.Thread(target=lambda: chunks.append(source.read(10, 60)))
    reader.start()
    source.close()
    reader.join(timeout=30)
    os.close(keep)
    assert chunks == [Chunk([], [], START, False)]


# -- generators


def module(folder: Path, name: str, body: str) -> str:
    """Write a module of the user; every test needs a name of its own, as modules stay imported."""
    (folder / f"{name}.py").write_text(body)
    return f"{name}:keys"


def test_a_generator_yields_keys_and_resumes_by_count(tmp_path: Path) -> None:
    python = module(tmp_path, "corpus_plain", "def keys():\n    for n in range(10):\n        yield f'k{n}'\n")
    whole = everything(yielding(tmp_path, python), limit=3)
    assert whole.keys == [f"k{n}" for n in range(10)]
    for done in range(11):
        assert everything(yielding(tmp_path, python, cursor=Cursor(done, done))).keys == whole.keys[done:]
    with pytest.raises(SourceError, match=r"yielded 10 keys, but this run has read 11 before; .* same order"):
        yielding(tmp_path, python, cursor=Cursor(11, 11)).read(1, 60)


def test_a_generator_may_yield_bytes_and_its_bad_items_are_refused(tmp_path: Path) -> None:
    body = "def keys():\n    return ['a', 'é'.encode(), b'\\xff', 7, None, 'x\\ny', '', '#a', 'a|b', 'z' * 9000]\n"
    chunk = everything(yielding(tmp_path, module(tmp_path, "corpus_mixed", body)))
    assert chunk.keys == ["a", "é", "#a"]
    assert [(entry.key[:12], entry.line, entry.reason) for entry in chunk.refused] == [
        (r"\xff (line 3", 3, "is not valid UTF-8"),
        ("7", 4, "is no text but int"),
        ("None", 5, "is no text but NoneType"),
        (r"x\x0ay (line", 6, "contains a control character (U+000A)"),
        ("", 7, "is empty"),
        ("a|b", 9, "contains the separator '|', which joins the keys of one request"),
        ("z" * 12, 10, "is longer than 8192 bytes"),
    ]


BLOCKING = """
import threading

go_on = threading.Event()

def keys():
    yield "one"
    yield "two"
    go_on.wait()
    yield "three"
"""


def test_a_generator_that_blocks_does_not_withhold_what_it_has_yielded(tmp_path: Path) -> None:
    python = module(tmp_path, "corpus_blocks", BLOCKING)
    with closing(yielding(tmp_path, python)) as source:
        assert source.read(10, 0.05) == Chunk(["one", "two"], [], Cursor(2, 2), False)
        load_module("corpus_blocks", tmp_path).go_on.set()
        assert everything(source) == Chunk(["three"], [], Cursor(3, 3), True)


def test_closing_frees_a_read_that_waits_for_a_generator(tmp_path: Path) -> None:
    source = yielding(tmp_path, module(tmp_path, "corpus_waits", BLOCKING), cursor=Cursor(2, 2))
    chunks: list[Chunk] = []
    reader = threading.Thread(target=lambda: chunks.append(source.read(10, 60)))
    reader.start()
    source.close()
    reader.join(timeout=30)
    assert chunks == [Chunk([], [], Cursor(2, 2), False)]
    load_module("corpus_waits", tmp_path).go_on.set()


def test_keys_are_taken_from_a_generator_one_read_ahead_at_most(tmp_path: Path) -> None:
    body = "taken = []\ndef keys():\n    for n in range(1_000):\n        taken.append(n)\n        yield f'k{n}'\n"
    python = module(tmp_path, "corpus_ahead", body)
    with closing(yielding(tmp_path, python)) as source:
        assert len(source.read(10, 60).keys) == 10
        assert len(load_module("corpus_ahead", tmp_path).taken) <= 20


def test_a_slow_generator_returns_early(tmp_path: Path) -> None:
    python = module(tmp_path, "corpus_slow", "def keys():\n    while True:\n        yield 'k'\n")
    with closing(yielding(tmp_path, python)) as source:  # its thread would yield until the memory is full
        chunk = source.read(1_000_000_000, 0.05)
    assert chunk.keys
    assert not chunk.exhausted


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("corpus_syntax", "def keys(:", "cannot be imported from .*: SyntaxError: "),
        ("corpus_import", "import no_such_module_x", "ModuleNotFoundError: No module named 'no_such_module_x'"),
        ("corpus_nothing", "", "has no function keys"),
        ("corpus_arguments", "def keys(a): pass", "called without arguments .*: TypeError: .*argument"),
        ("corpus_none", "def keys(): pass", "iterable of keys: TypeError: "),
        ("corpus_text", "def keys(): return 'abc'", "iterable of keys: TypeError: it returned one str"),
        ("corpus_async", "async def keys():\n    yield 'k'", "iterable of keys: TypeError: "),
        ("corpus_exits", "def keys():\n    yield 'k'\n    raise SystemExit", "after 1 keys: SystemExit"),
        (
            "corpus_raises",
            "def keys():\n    yield 'k'\n    raise ValueError('one\\ntwo')",
            "after 1 keys: ValueError: one two",
        ),
    ],
)
def test_an_error_in_the_users_module_is_one_line_with_its_type(
    tmp_path: Path, name: str, body: str, words: str
) -> None:
    python = module(tmp_path, name, body)
    with pytest.raises(SourceError, match=words) as caught:
        everything(yielding(tmp_path, python))
    assert "\n" not in str(caught.value)


def test_a_generator_is_named_by_module_and_function(tmp_path: Path) -> None:
    for python in ("corpus", "corpus:", ":keys"):
        with pytest.raises(SourceError, match='is not "module:function"'):
            yielding(tmp_path, python)
    with pytest.raises(SourceError, match=r"cannot be imported from .*: ModuleNotFoundError"):
        yielding(tmp_path, "no_such_module_y:keys")
