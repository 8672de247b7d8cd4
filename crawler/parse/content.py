"""Pure: the digest of a page's content, by which the runs of a corpus are compared."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from msgspec.msgpack import Encoder
from xxhash import xxh3_128_digest

from coordinator.errors import UsageError
from crawler.job.job import Job
from crawler.parse.received import Received
from crawler.parse.select.formats import language_of

Reduced: TypeAlias = Callable[[Received], bytes]

# A tenth of a microsecond for a usual record (November 2026). What it does not know of itself, which only a transform's
# records can have, is a pickle: a `repr` may leave a part out.
_ENCODE = Encoder(enc_hook=pickle.dumps).encode


def digest_of_records(records: Sequence[tuple[int, tuple[Any, ...]]]) -> bytes:
    """The XXH3-128 of a key's records as its parser made them, in their order: before any transform."""
    try:
        encoded = _ENCODE(records)
    except Exception:  # noqa: BLE001 - more than 64 bits, a lone surrogate, or what the user's own types raise
        encoded = repr(records).encode("utf-8", "backslashreplace")
    return xxh3_128_digest(encoded)


def digest_of_reduced(reduced: Reduced, response: Received) -> bytes | None:
    """The XXH3-128 of what counts of a body; None when it is of another format: then all of it counts."""
    try:
        return xxh3_128_digest(reduced(response))
    except (ValueError, RecursionError):
        return None


def compile_ignored(job: Job) -> Reduced:
    """The function to a body without what `[parse] ignore` names. Raises UsageError for a wrong selector."""
    language = language_of(job.parse.format)
    try:
        without = language.compile_without(job.parse.ignore)
    except ValueError as error:
        raise UsageError(f"job: [parse] ignore: {error}") from error
    return lambda response: without(language.read(response))
