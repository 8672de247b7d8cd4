"""Decoding: a body is complete or an error, however its bytes are cut."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import FetchError
from crawler.fetch.engines.response.content_encoding import BodyDecoder
from tests.servers.encoded_bodies import MIB, raw_deflate, zstd_bomb
from tests.servers.misbehaving import BODY

GZIP_MEMBER, ZSTD_FRAME = gzip.compress(BODY[:500]), zstandard.compress(BODY[:500])
ENCODED = {
    "gzip": gzip.compress(BODY),
    "gzip in two members": GZIP_MEMBER + gzip.compress(BODY[500:]),
    "deflate": zlib.compress(BODY),
    "deflate without its header": raw_deflate(BODY),
    "br": brotli.compress(BODY),
    "zstd": zstandard.compress(BODY),
    "zstd in two frames": ZSTD_FRAME + zstandard.compress(BODY[500:]),
}


def decoded(pieces: list[bytes], encoding: str | None, cap: int = 100_000) -> bytes:
    decoder = BodyDecoder(encoding, cap)
    for piece in pieces:
        decoder.add(piece)
    return decoder.finish()


def failure(pieces: list[bytes], encoding: str, cap: int = 100_000) -> str:
    with pytest.raises(FetchError) as caught:
        decoded(pieces, encoding, cap)
    return caught.value.kind


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_pieces_of_any_size_make_the_same_body(name: str, size: int) -> None:
    encoded = ENCODED[name]
    pieces = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    assert decoded(pieces, name.split()[0]) == BODY


@pytest.mark.parametrize("name", ENCODED)
def test_a_body_that_was_cut_anywhere_is_an_error(name: str) -> None:
    """Except between two members, where nothing shows that another one was missing."""
    encoded = ENCODED[name]
    for length in range(1, len(encoded)):
        if encoded[:length] not in (GZIP_MEMBER, ZSTD_FRAME):
            assert failure([encoded[:length]], name.split()[0]) == "decode"


@given(st.binary(max_size=3000), st.lists(st.integers(1, 400), max_size=20))
def test_encoded_content_is_decoded_to_itself(content: bytes, sizes: list[int]) -> None:
    for encode, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate"), (brotli.compress, "br")):
        encoded, pieces = encode(content), []
        for size in sizes:
            pieces.append(encoded[:size])
            encoded = encoded[size:]
        assert decoded([*pieces, encoded], encoding) == content
    assert decoded([zstandard.compress(content)], "zstd") == content


@given(st.binary(min_size=1, max_size=500), st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, br", "x"]))
def test_random_bytes_are_a_body_or_a_failure_of_a_known_kind(content_bytes: bytes, encoding: str) -> None:
    kind = ""
    try:
        decoded([content_bytes], encoding, 10_000)
    except FetchError as error:
        kind = error.kind
    assert kind in ("", "decode", "too-large")


@pytest.mark.parametrize(
    "encoding",
    [None, "", " ", ",", "identity", " Identity ", "identity, identity", "none", "None", "null", "binary", "8bit"]
    + [
        "chunked",
        "aws-chunked",
        "utf-8",
        "UTF-8",
        "utf8",
        "utf-16le",
        "ISO-8859-1",
        "windows-1252",
        "us-ascii",
        "x-sjis",
    ]
    + ["shift_jis", "euc-jp", "gb2312", "big5", "koi8-r", "text/html", "charset=utf-8", "text/html; charset=utf-8"],
)
def test_what_names_no_coding_says_nothing_about_the_body(encoding: str | None) -> None:
    assert decoded([b"as ", b"", b"it is"], encoding) == b"as it is"
    assert BodyDecoder(encoding, 10).coding is None


GZIP = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("gzip, gzip", gzip.compress(GZIP)),
        ("gzip,gzip,gzip", gzip.compress(gzip.compress(GZIP))),
        ("gzip, br", brotli.compress(GZIP)),
        ("br, gzip", gzip.compress(brotli.compress(BODY))),
        ("deflate, zstd", zstandard.compress(raw_deflate(BODY))),
        ("X-GZIP , Deflate", zlib.compress(GZIP)),
        ("gzip, identity", GZIP),
        ("utf-8, gzip", GZIP),
        ("aws-chunked,gzip", GZIP),
        ("gzip,, none,", GZIP),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_coding_that_was_applied_last_is_undone_first(encoding: str, sent: bytes, size: int) -> None:
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert decoded(pieces, encoding) == BODY
    assert failure([sent[:-9]], encoding) == "decode"
    assert failure([sent], encoding, cap=1399) == "too-large"


@pytest.mark.parametrize(
    ("encoding", "coding", "sent", "body"),
    [
        ("compress", "compress", BODY, BODY),
        ("SDCH", "sdch", BODY, BODY),
        ("x-unknown, utf-8", "x-unknown", BODY, BODY),
        ("compress, gzip", "compress", GZIP, BODY),
        ("gzip, compress", "compress", GZIP, GZIP),
        ("z" * 1000, "z" * 40, BODY, BODY),
    ],
)
def test_a_coding_that_nobody_knows_is_named_and_what_it_encodes_is_left(
    encoding: str, coding: str, sent: bytes, body: bytes
) -> None:
    decoder = BodyDecoder(encoding, 10_000)
    decoder.add(sent)
    assert (decoder.finish(), decoder.coding) == (body, coding)
    assert failure([sent], encoding, cap=len(body) - 1) == "too-large"


def test_codings_are_bounded() -> None:
    body = BODY
    for _ in range(5):
        body = gzip.compress(body)
    assert decoded([body], ", ".join(["gzip"] * 5)) == BODY
    assert failure([gzip.compress(body)], ", ".join(["gzip"] * 6)) == "decode"


def test_what_lies_between_two_codings_is_bounded_too() -> None:
    """A gzip body of empty gzip members, which decodes to nothing, from a few bytes on the way."""
    members = gzip.compress(gzip.compress(b"") * 200_000)
    assert len(members) < 2 * 10_000
    assert failure([members], "gzip, gzip", cap=10_000) == "too-large"


@pytest.mark.parametrize("name", ENCODED)
def test_the_cap_counts_decoded_bytes(name: str) -> None:
    encoding = name.split()[0]
    assert decoded([ENCODED[name]], encoding, cap=1400) == BODY
    assert failure([ENCODED[name]], encoding, cap=1399) == "too-large"


def test_encoded_bytes_without_content_are_counted_too() -> None:
    assert failure([gzip.compress(b"")] * 200, "gzip", cap=1000) == "too-large"


def test_a_zstd_frame_that_wants_a_window_of_a_gigabyte_is_refused() -> None:
    wide = bytes.fromhex("28b52ffd00a0") + zstd_bomb(1)[6:]
    assert failure([wide], "zstd", cap=2 * MIB) == "decode"


def test_a_content_length_over_the_cap_fails_before_the_body_comes() -> None:
    with pytest.raises(FetchError):
        BodyDecoder(None, 1000).check_length("1001")
    for fine in (None, "1000", "nonsense", "-1", ""):
        BodyDecoder(None, 1000).check_length(fine)
    BodyDecoder("gzip", 1000).check_length("1001")
