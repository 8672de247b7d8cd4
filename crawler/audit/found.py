"""What the audit knows of found keys: they are keys of the run like those of its source."""

from __future__ import annotations

from collections.abc import Mapping

from crawler.audit.checks import Finding
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.rows.found import FOUND
from crawler.store.tables import part_name, quoted


async def add_found_digests(connection: PostgresConnection, run_id: int, most: Mapping[int, int]) -> int:
    """Add the found keys to the digests of the source; returns how many. Keys beyond `most` of their rule are none."""
    found, part = quoted(part_name(FOUND, run_id)), quoted(part_name("pages", run_id))
    fetched = {
        row["rule"]: row["keys"] for row in await connection.fetch(query("fetched-by-rule", found=found, part=part))
    }
    full = [rule for rule, bound in most.items() if fetched.get(rule, 0) >= bound]
    return int(await connection.fetchval(query("add-found-digests", found=found, part=part), full))


async def check_origins(connection: PostgresConnection, run_id: int) -> Finding:
    """Every page that was found must have the page that named it."""
    part = quoted(part_name("pages", run_id))
    without = int(await connection.fetchval(query("pages-without-origin", part=part)))
    return Finding("found pages without the page that named them", without, 0, without == 0)
