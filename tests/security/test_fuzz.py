"""Inputs made at random for each reader of what others write: it returns a value, or raises the error that it promises.

Each target takes FUZZ_SECONDS (half a one in the tests, a minute in `make security`) of new examples each time.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from coordinator.errors import FetchError, UsageError
from coordinator.model import Attempts, Block, Outcome, ShardId
from coordinator.queue.sharding import digest
from coordinator.queue.wire import MAX_ATTEMPTS, Deferral, decode_block, decode_deferral, encode_block, encode_deferral
from coordinator.url import InvalidUrl, parse
from crawler.fetch.engines.response.content_encoding import BodyDecoder
from crawler.fetch.engines.response.head import HeadReader
from crawler.fetch.ratelimit_headers import MAX_PAUSE_SECONDS, requested_pause
from crawler.fetch.robots.rules import RobotsRecord, rules_for
from crawler.job.job import read_job
from crawler.store.rows.copyformat import COLUMNS, SIGNATURE, TRAILER, encode_pages
from crawler.text.body import kept
from crawler.text.media_type import media_type
from tests.crawler.examples import a_page
from tests.servers.scripted import headers

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.5"))
EXAMPLES_EACH_ROUND = 200

Target = Callable[[Any], None]
TARGETS: dict[str, tuple[Target, st.SearchStrategy[Any]]] = {}

ANY_TEXT = st.text(max_size=60)
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def target(strategy: st.SearchStrategy[Any]) -> Callable[[Target], Target]:
    """Name a target of the fuzzer by its function, with what it is given."""

    def named(function: Target) -> Target:
        TARGETS[function.__name__] = function, strategy
        return function

    return named


def words(*choices: str) -> st.SearchStrategy[str]:
    """Texts of these words and of others."""
    return st.lists(st.one_of(st.sampled_from(choices), st.text(max_size=5)), max_size=12).map("".join)


def spliced(*choices: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of these words and of others."""
    return st.lists(st.one_of(st.sampled_from(choices), st.binary(max_size=5)), max_size=20).map(b"".join)


@target(
    words("http://", "https:", "//", "\\", "@", "[::1]", "127.1", "0x7f", "%2e", "..", "xn--", "é", ":80", "?", "#")
)
def url(text: str) -> None:
    """What was parsed is parsed again to the same, and holds nothing that could end a request line."""
    try:
        found = parse(text)
    except InvalidUrl:
        return
    assert parse(found.href) == found
    assert re.fullmatch("[!-~]+", found.href)
    assert urlsplit(found.href).hostname == found.origin.host.strip("[]")
    assert "@" not in found.origin.text


@target(
    st.lists(
        spliced(b"HTTP/1.1 ", b"200", b"\r\n", b"\n", b": ", b"X-A", b"Content-Length:", b"chunked", b"103 ", b" ")
    )
)
def head(chunks: list[bytes]) -> None:
    """A head comes out the same however it was cut, and without a line that a strict reader takes for two."""

    def read(parts: list[bytes]) -> bytes | None:
        reader = HeadReader()
        try:
            return b"".join([reader.feed(part) for part in parts if part] + [reader.feed(b"")])
        except FetchError:
            return None

    whole = b"".join(chunks)
    assert read([whole]) == read(chunks) == read([whole[at : at + 1] for at in range(len(whole))])


@target(
    st.tuples(
        st.integers(100, 599),
        st.dictionaries(
            st.sampled_from(["retry_after", "ratelimit", "x_ratelimit_reset", "x_ratelimit_remaining", "date"]),
            words("0", "1760000000", ";r=0", ";t=", "30", '"a"', "1m", "PT", ",", "Thu, 09 Oct 2025 08:53:20 GMT", "."),
        ),
    )
)
def rate_limit_headers(sent: tuple[int, dict[str, str]]) -> None:
    pause = requested_pause(sent[0], headers(**sent[1]), 1_760_000_000.0)
    assert pause is None or 0 < pause <= MAX_PAUSE_SECONDS


@target(st.tuples(words("gzip", ",", "br", "deflate", "zstd", "identity", ";q=1"), st.lists(st.binary(max_size=300))))
def content_encoding(sent: tuple[str, list[bytes]]) -> None:
    try:
        decoder = BodyDecoder(sent[0], 10_000)
        for chunk in sent[1]:
            decoder.add(chunk)
        assert len(decoder.finish()) <= 10_000
    except FetchError as error:
        assert error.kind in ("decode", "too-large")  # noqa: PT017 - some bodies are whole


@target(
    st.tuples(
        st.one_of(words("text/", "html", "json", "application/", ";", "charset=", "utf-16", '"'), st.none()),
        spliced(
            b"\xef\xbb\xbf", b"\xff\xfe", b"<meta charset=", b"koi8-r>", b'{"a":', b"1e400", b"}", b"\0", b"\x1b$B"
        ),
    )
)
def body(sent: tuple[str | None, bytes]) -> None:
    """A body is text that Postgres can hold, or bytes as they came; JSON is for Postgres to judge."""
    content_type, received = sent
    media_type(content_type)
    if not received:
        return
    try:
        found = kept(content_type, received)
    except ValueError as error:
        assert "is empty" in str(error)  # noqa: PT017 - most bodies raise nothing
        return
    assert found.content in (None, received)
    if found.content_type is None and found.body is not None and found.body[:1] == b'"':
        assert "\0" not in json.loads(found.body)


@target(
    spliced(b"User-agent:", b"*", b"shardcrawl", b"\n", b"\r", b"Disallow: /", b"Crawl-delay: 2", b"#", b"\xef\xbb\xbf")
)
def robots_txt(received: bytes) -> None:
    rules = rules_for("shardcrawl", received)
    assert rules.isascii()
    assert all(re.match("allow: |disallow: |crawl-delay: ", line) for line in rules.splitlines())
    record = RobotsRecord(rules)
    assert RobotsRecord.decode(record.encode()) == record


ATTEMPTS = st.builds(Attempts, st.integers(0, MAX_ATTEMPTS), st.integers(0, MAX_ATTEMPTS), st.tuples(ANY_TEXT))
KEYS_WITH_ATTEMPTS = st.lists(st.tuples(PLAIN, ATTEMPTS), max_size=5, unique_by=lambda pair: pair[0])


@target(st.one_of(st.binary(max_size=200), KEYS_WITH_ATTEMPTS))
def wire_format(sent: bytes | list[tuple[str, Attempts]]) -> None:
    shard = ShardId(3)
    if isinstance(sent, bytes):
        for decode in (lambda: decode_block(shard, sent), lambda: decode_deferral(b"", sent)):
            try:
                decode()
            except ValueError:
                continue
        return
    block = Block(shard, tuple(key for key, _ in sent), {}, {at: attempts for at, (_, attempts) in enumerate(sent)})
    packed = encode_block(block)
    assert decode_block(shard, packed) == block
    for cut in range(len(packed)):
        with pytest.raises(ValueError, match="block"):
            decode_block(shard, packed[:cut])
    for key, attempts in sent:
        deferral = Deferral(digest(key), key, attempts)
        assert decode_deferral(digest(key), encode_deferral(deferral)) == deferral


@target(
    st.tuples(ANY_TEXT, st.one_of(st.none(), ANY_TEXT), st.sampled_from(Outcome), st.one_of(st.none(), st.binary()))
)
def copy_format(sent: tuple[str, str | None, Outcome, bytes | None]) -> None:
    """The stream has as many fields as it says, each as long as it says, and ends with them."""
    key, reason, outcome, content = sent
    page = a_page(key)
    page.reason, page.outcome, page.content = reason, outcome, content
    stream = b"".join(encode_pages([page, page], 7))
    at = len(SIGNATURE)
    for _ in range(2):
        (fields,) = struct.unpack_from(">h", stream, at)
        assert fields == len(COLUMNS)
        at += 2
        for _ in range(fields):
            (size,) = struct.unpack_from(">i", stream, at)
            at += 4 + max(size, 0)
    assert stream[at:] == TRAILER


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY_TEXT, inner, max_size=3)),
    max_leaves=5,
)
SECTIONS = {
    "run": ("name", "workers", "concurrency", "max_failed"),
    "source": ("path", "python", "keys"),
    "request": ("url", "headers", "timeout", "engine", "allow_private", "keys_per_request"),
    "retry": ("attempts", "backoff", "refused_in_a_row"),
    "parse": ("python", "alias"),
    "limits": ("*", "example.org", "a b"),
}


def section(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(st.dictionaries(st.one_of(st.sampled_from(names), ANY_TEXT), VALUES, max_size=4), VALUES)


@target(
    st.fixed_dictionaries(
        {"source": st.just({"path": "keys.txt"})},
        optional={**{name: section(keys) for name, keys in SECTIONS.items() if name != "source"}, "tables": VALUES},
    )
)
def job_file(document: dict[str, Any]) -> None:
    try:
        read_job(document)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some documents are jobs


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_others_send_raises_what_was_not_promised(name: str) -> None:
    function, strategy = TARGETS[name]
    end, first = monotonic() + SECONDS, int.from_bytes(os.urandom(4))
    rounds = 0
    while rounds == 0 or monotonic() < end:
        fuzzed = settings(
            max_examples=EXAMPLES_EACH_ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )(seed(first + rounds)(given(strategy)(lambda sent: function(sent))))
        fuzzed()
        rounds += 1
