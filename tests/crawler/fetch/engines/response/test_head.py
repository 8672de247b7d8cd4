"""The heads of one response among the bytes of a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import FetchError
from crawler.fetch.engines.response.head import MAX_HEAD_BYTES, HeadReader, tidy_head

ODD = b"HTTP/1.1 103 Hints\r\nno colon\r\n\r\nHTTP/1.1 200 OK\r\nX-A : a\x00\r\n b\r\n\r\n"
TIDY = b"HTTP/1.1 103\r\n\r\nHTTP/1.1 200\r\nX-A: a  b\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 4\r\n\r\n"
BODY = b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"  # it looks like a head


def read(sent: bytes, size: int) -> tuple[bytes, bool]:
    """What a strict reader gets of bytes that come in pieces of that size, and whether they were mended."""
    reader = HeadReader()
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    return b"".join(map(reader.feed, [*pieces, b""])), reader.mended


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("sent", "readable", "mended"),
    [
        (PLAIN + BODY, PLAIN + BODY, False),
        (PLAIN.replace(b"\r", b"") + BODY, PLAIN.replace(b"\r", b"") + BODY, False),
        (ODD + BODY, TIDY + BODY, True),
        (b"\r\n\n" + PLAIN + BODY, PLAIN + BODY, True),
        (PLAIN[:-9], PLAIN[:-9], False),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", False),
        (b"\x05\x00\r\n\r\n\x05", b"\x05\x00\r\n\r\n\x05", False),
        (b"", b"", False),
    ],
)
def test_only_the_heads_of_the_response_are_mended(sent: bytes, readable: bytes, mended: bool, size: int) -> None:
    assert read(sent, size) == (readable, mended)


@pytest.mark.parametrize(
    "endless",
    [b"X-A: a\r\n", b"a" * 5000, b" folded\r\n", b"\r" * 100],
)
def test_a_head_without_an_end_is_bounded(endless: bytes) -> None:
    reader = HeadReader()
    reader.feed(b"HTTP/1.1 200 OK\r\n")

    def feed_much() -> None:
        for _ in range(2 * MAX_HEAD_BYTES // len(endless)):
            reader.feed(endless)

    with pytest.raises(FetchError) as failure:
        feed_much()
    assert failure.value.kind == "protocol"


LINES = st.one_of(
    st.sampled_from([b"X-A: a", b" folded", b"", b"\r", b"no colon", b"Content-Length: 4", b"X-B : \x00"]),
    st.binary(max_size=20),
)


@given(st.lists(LINES))
def test_a_tidy_head_has_one_end_and_is_not_changed_again(lines: list[bytes]) -> None:
    head = tidy_head(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""]))
    assert tidy_head(head) == head
    assert read(head + BODY, 1000)[0] == head + BODY


def test_informational_heads_without_end_are_refused() -> None:
    with pytest.raises(FetchError, match="more than 100 informational heads"):
        HeadReader().feed(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
