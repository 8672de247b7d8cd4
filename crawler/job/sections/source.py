"""Where the keys come from, as `[source]` says it."""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import date
from typing import Annotated

from coordinator.errors import UsageError
from coordinator.source.key_rule import KeyRule, refuse
from crawler.job.fields import FUNCTION, Section, text, value

# The whole address is a secret, so that a job cannot send one secret to a server that another part of it names.
DATABASE = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}"
KINDS = ("path", "keys", "python", "query", "sitemap")
# The kind of the keys that are sitemaps, beside those in [kinds].
SITEMAP = "sitemap"

_COLUMNS_RULE = 'write a column like "sku", or a list of columns'
_QUOTED = re.compile(r"(?s)'[^']*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/")
_IN_PARENTHESES = re.compile(r"\([^()]*\)")
_ORDER_BY = re.compile(r"(?i)\border\s+by\b")


# fmt: off
class SourceSettings(Section, frozen=True, kw_only=True):
    """Where the keys come from: exactly one of `path`, `keys`, `python`, `query` and `sitemap`.

    A source of rows has columns: a csv, tsv, jsonl (or ndjson) or parquet file, dicts of a function, or a query. `key`
    names those that make the key, and `carry` those that travel with it; all of these are the key's fields.
    """

    path: Annotated[str, text(
        "A text with one key a line: a file, a folder, a glob (`titles/*.gz`; sorted by name), a named pipe, or `-` "
        "for standard input. UTF-8 or UTF-16, also gzip, xz, bzip2 or zstd. Blank lines, blanks around a key, and, "
        "where keys are URLs, lines that begin with # are skipped. A relative path begins at the job file's folder. "
        "Files that end in .csv, .tsv, .jsonl, .ndjson (or one of these and .gz, .zst, .xz, .bz2) or .parquet have "
        "rows.",
        "titles.txt.gz")] | None = None
    keys: Annotated[tuple[str, ...], value(
        "The keys themselves, where there are few.",
        ["https://api.example.org/works?page=1"])] = ()
    python: Annotated[str, text(
        "A function of yours, module:function, that yields the keys as texts, or with `key` rows as dicts. The module "
        "is looked up in the job file's folder. It must yield the same keys in the same order each time: resuming "
        "calls it again.",
        "corpus:keys", f"^{FUNCTION}$")] | None = None
    query: Annotated[str, text(
        "A SELECT with an ORDER BY, whose rows are read in a read-only transaction. It must return the same rows in "
        "the same order each time: resuming skips as many as were read.",
        "select sku, caption from products order by sku")] | None = None
    database: Annotated[str, text(
        "The Postgres of `query`, as the name of an environment variable with its address.",
        "${SHOP_URL}", f"^{DATABASE}$", absent="the Postgres of the run")] | None = None
    sitemap: Annotated[str | tuple[str, ...], value(
        "The URL of a sitemap, or several: XML, an index of sitemaps, a text, or a robots.txt with `Sitemap:` lines; "
        "also as gzip. The pages that they name are the keys, with depth 0. Each sitemap has a row in `pages` too, of "
        "kind `sitemap` and without a body.",
        "https://www.example.org/sitemap.xml", write="write a URL, or a list of URLs")] = ()
    since: Annotated[str, text(
        "Of a sitemap, leave out pages and sitemaps whose `lastmod` is a day before this one. What has none is kept. "
        "`{since}` is the day of `[run] since`.",
        "2026-01-01", r"^(?:\d{4}-\d{2}-\d{2}|\{since\})$", absent="no bound")] | None = None
    key: Annotated[str | tuple[str, ...], value(
        'The column that has the key. Of several the key is the JSON array of their texts: `["A-1","de"]`. Of rows '
        "with the same key the first one counts.",
        ["sku", "country"], write=_COLUMNS_RULE)] = ()
    carry: Annotated[str | tuple[str, ...], value(
        "Other columns that travel with the key. A key and its fields may have 12,000 bytes; they are in Redis until "
        "the key is done, so carry little.",
        ["caption"], write=_COLUMNS_RULE)] = ()

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns in `key`; none where the source has no rows."""
        return _listed(self.key)

    @property
    def carried_columns(self) -> tuple[str, ...]:
        """The columns in `carry`."""
        return _listed(self.carry)

    @property
    def sitemaps(self) -> tuple[str, ...]:
        """The URLs in `sitemap`."""
        return _listed(self.sitemap)

    @property
    def name(self) -> str:
        """The source in a few words, for people."""
        if self.keys:
            return f"{len(self.keys):,} in the job file"
        if self.sitemap:
            return f"sitemap {', '.join(self.sitemaps)}"
        return self.path or self.python or " ".join((self.query or "").split())
# fmt: on


def check_source(source: SourceSettings, kinds: Container[str] = (), *, keys_are_urls: bool) -> None:
    """Raise UsageError when the section is not what it must be."""
    given = [kind for kind in KINDS if getattr(source, kind)]
    if not given:
        raise UsageError(
            "job: [source] needs one of path (a file, or - for standard input), keys, python (module:function), "
            "query, sitemap"
        )
    if len(given) > 1:
        raise UsageError(f"job: [source] has {' and '.join(given)}; leave out all but one")
    kind = given[0]
    if source.python is not None and not re.fullmatch(FUNCTION, source.python):
        raise UsageError(f"job: [source] python is {source.python!r}; write module:function")
    if "" in (*source.key_columns, *source.carried_columns):
        raise UsageError("job: [source] key and carry are names of columns, and one of them is empty")
    if kind in ("keys", "sitemap") and (source.key or source.carry):
        what = "keys" if kind == "keys" else "pages of a sitemap"
        raise UsageError(f"job: [source] {what} have no columns; leave out key and carry")
    if source.carry and not source.key:
        raise UsageError("job: [source] carry needs key: the column (or columns) of the key")
    if keys_are_urls and len(source.key_columns) > 1:
        raise UsageError("job: [source] key has several columns, which are no URL; give [request] url")
    _check_query(source)
    if source.sitemap and SITEMAP in kinds:
        raise UsageError(f"job: [kinds.{SITEMAP}] is built in with [source] sitemap; give yours another name")
    _check_sitemap(source, keys_are_urls=keys_are_urls)


def _check_sitemap(source: SourceSettings, *, keys_are_urls: bool) -> None:
    if source.since is not None:
        if not source.sitemap:
            raise UsageError("job: [source] since is for sitemap; leave it out")
        try:
            date.fromisoformat(source.since)
        except ValueError:
            raise UsageError(
                f"job: [source] since is {source.since!r}; write a day like 2026-01-01, or {{since}} with [run] since"
            ) from None
    if source.sitemap and not keys_are_urls:
        raise UsageError("job: [source] sitemap: the keys are the URLs that it names; leave [request] url out")
    rule = KeyRule(absolute_url=True)
    for url in source.sitemaps:
        if (reason := rule.reason(url)) is not None:
            raise UsageError(f"job: [source] sitemap: {refuse(url, 1, reason).key!r} {reason}")


def _check_query(source: SourceSettings) -> None:
    if source.query is None:
        if source.database is not None:
            raise UsageError("job: [source] database is for query; leave it out")
        return
    if not source.key:
        raise UsageError("job: [source] query needs key: the column (or columns) of the key")
    if source.database is not None and not re.fullmatch(DATABASE, source.database):
        raise UsageError('job: [source] database must be the name of an environment variable, as "${SHOP_URL}"')
    bare, found = _QUOTED.sub(" ", source.query), 1
    while found:
        bare, found = _IN_PARENTHESES.subn(" ", bare)
    if not _ORDER_BY.search(bare):
        raise UsageError(
            "job: [source] query has no ORDER BY: a run that goes on skips the rows that it has read; order by the key"
        )


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
