"""The digests of a run's keys: those of its source, and of what its pages named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from coordinator.model import KeyContext
from coordinator.queue.sharding import digest
from coordinator.source import Chunk, Cursor, Source
from crawler.audit.checks import Finding
from crawler.corpus import open_corpus
from crawler.job.job import Job
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.tables import RunTables

AUDIT_CHUNK_KEYS = 50_000
AUDIT_CHUNK_SECONDS = 60.0


async def load_digests(connection: PostgresConnection, job: Job) -> tuple[int, str]:
    """Copy the digests of the whole source into a temporary table; returns how many, and the source's fingerprint."""
    await connection.execute(query("make-audit-source"))
    source = await asyncio.to_thread(open_corpus, job, Cursor())
    lines, exhausted = 0, False
    try:
        while not exhausted:
            digests, exhausted = await asyncio.to_thread(_read_digests, source)
            lines += len(digests)
            await connection.copy_records_to_table("audit_source_r0", records=digests, columns=["digest"])
        return lines, await asyncio.to_thread(source.fingerprint)
    finally:
        source.close()


def _read_digests(source: Source) -> tuple[list[tuple[bytes]], bool]:
    """The digests of the source's next chunk, as rows, and whether the source is exhausted."""
    chunk = source.read(AUDIT_CHUNK_KEYS, AUDIT_CHUNK_SECONDS)
    return [(digest(key, KeyContext(chunk.kind)),) for key in _keys_in_chunk(chunk)], chunk.exhausted


def _keys_in_chunk(chunk: Chunk) -> Iterator[str]:
    """A chunk's keys as the planner sees them: a refused line is a key too."""
    yield from chunk.keys
    for line in chunk.refused:
        yield line.key


def keys_with_digests(job: Job, wanted: set[bytes]) -> list[str]:
    """The keys that have these digests, found by reading the source from its beginning. Raises SourceError."""
    if not wanted:
        return []
    found: dict[bytes, str] = {}
    source, exhausted = open_corpus(job, Cursor()), False
    try:
        while len(found) < len(wanted) and not exhausted:
            chunk = source.read(AUDIT_CHUNK_KEYS, AUDIT_CHUNK_SECONDS)
            exhausted = chunk.exhausted
            found.update(
                (found_digest, key)
                for key in _keys_in_chunk(chunk)
                if (found_digest := digest(key, KeyContext(chunk.kind))) in wanted
            )
    finally:
        source.close()
    return sorted(found.values())


async def add_found_digests(connection: PostgresConnection, tables: RunTables, most: Mapping[int, int]) -> int:
    """Add the found keys to the digests of the source; returns how many. Keys beyond `most` of their rule are none."""
    found, part = tables.found, tables.pages
    fetched = {
        row["rule"]: row["keys"] for row in await connection.fetch(query("fetched-by-rule", found=found, part=part))
    }
    full = [rule for rule, bound in most.items() if fetched.get(rule, 0) >= bound]
    return int(await connection.fetchval(query("add-found-digests", found=found, part=part), full))


async def check_origins(connection: PostgresConnection, tables: RunTables) -> Finding:
    """Every page that was found must have the page that named it."""
    without = int(await connection.fetchval(query("pages-without-origin", part=tables.pages)))
    return Finding("found pages without the page that named them", without, 0, without == 0)
