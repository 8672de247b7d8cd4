"""What a sitemap names (https://www.sitemaps.org/protocol.html): the pages that are keys, and other sitemaps.

It is read in pieces, so the tree of a large one is never in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from xml.parsers import expat

from coordinator.errors import FetchError
from coordinator.model import FoundKey, KeyContext, Outcome
from coordinator.queue.sharding import digest
from coordinator.source.key_rule import KeyRule, refuse
from coordinator.url import InvalidUrl, Target, parse
from crawler.fetch.engines.response.content_encoding import BodyDecoder
from crawler.job.job import Job
from crawler.job.sections.source import SITEMAP
from crawler.model import Page
from crawler.parse.follow.finder import MOST_FOUND_CHARACTERS
from crawler.parse.received import Received
from crawler.parse.select.path import SelectorError

MOST_URLS = 50_000  # by the protocol
# An index may name sitemaps only, but some name other indexes. A server that makes them up would never end.
MAX_LEVELS = 5
_PIECE_BYTES = 65_536
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = "\ufeff"
_LEVEL = "level"  # a field of a sitemap that an index names
LASTMOD = "lastmod"  # a field of a page
MAX_LASTMOD_CHARACTERS = 40
# A day has ended everywhere on Earth so many hours after it began in UTC.
_DAY_HOURS = 36
_ROOTS = {"urlset": "url", "sitemapindex": "sitemap"}
_DAY = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")
_SITEMAP_LINE = re.compile(r"(?im)^\s*sitemap\s*:\s*([^\s#]+)")


class Entry(NamedTuple):
    """A URL in a sitemap, and its date as it stands there; empty when it has none."""

    url: str
    modified: str
    is_sitemap: bool = False


class SitemapFinder:
    """Finds the keys that sitemaps name: pages of the source's kind, and sitemaps that an index or a robots.txt names.

    All of them have depth 0: the pages are the corpus.
    """

    def __init__(self, job: Job) -> None:
        self._since = job.source.since or ""
        self._most_bytes = job.request.max_body
        self._rule = KeyRule(absolute_url=True)

    def find(self, pages: Sequence[Page], response: Received) -> None:
        """Give the page of a sitemap what it names. Raises ValueError when it is none."""
        (page,) = pages
        if page.outcome is not Outcome.STORED:
            return
        base = parse(response.url)
        found: dict[bytes, FoundKey] = {}
        characters = 0
        for entry in entries(response.body, base, self._most_bytes):
            if not self._is_older(entry.modified):
                for one in self._found(page, entry, base):
                    found[one.digest] = one
                    characters += len(one.key)
            if characters > MOST_FOUND_CHARACTERS:
                raise SelectorError(f"sitemap: it names URLs of more than {MOST_FOUND_CHARACTERS // 1_000_000} MB")
            if len(found) > MOST_URLS:
                raise SelectorError(
                    f"sitemap: it names more than {MOST_URLS:,} URLs, which its protocol does not allow"
                )
        page.found = list(found.values())

    def _is_older(self, modified: str) -> bool:
        day = _DAY.match(modified)  # a year or a month, when there is no more
        return day is not None and day[0] < self._since[: len(day[0])]

    def _found(self, page: Page, entry: Entry, base: Target) -> Iterator[FoundKey]:
        """The key that an entry stands for; none when it is no http or https URL."""
        key, reason, context = entry.url, None, KeyContext(origin=page.item.digest)
        try:
            key = parse(key, base).href
        except InvalidUrl as error:
            if not key.startswith(("http:", "https:")):
                return
            reason = str(error)
        reason = reason or self._rule.reason(key)
        if reason is not None:
            key = refuse(key, 0, reason).key.removesuffix(" (line 0)")
        if entry.is_sitemap:
            level = int(page.item.context.fields.get(_LEVEL, "1")) + 1
            if level > MAX_LEVELS:
                raise SelectorError(f"sitemap: an index in an index, {MAX_LEVELS} deep: the others are not followed")
            context = KeyContext(SITEMAP, origin=page.item.digest, fields={_LEVEL: str(level)})
        elif entry.modified:
            context = KeyContext(origin=page.item.digest, fields={LASTMOD: entry.modified[:MAX_LASTMOD_CHARACTERS]})
        yield FoundKey(digest(key, context), key, context, refusal="" if reason is None else f"it {reason}")


def entries(body: bytes, url: Target, most_bytes: int) -> Iterable[Entry]:
    """What the sitemap in a body names, also one in gzip. Raises SelectorError when it is none, or a larger one."""
    if body.startswith(_GZIP_MAGIC):
        body = _unpacked(body, most_bytes)
    if _is_markup(body[:1000]):
        return _xml_entries(body)
    try:
        text = body.decode().removeprefix(_BOM)
    except UnicodeDecodeError:
        raise SelectorError("sitemap: it is neither XML nor a text in UTF-8") from None
    if url.path.partition("?")[0].endswith("/robots.txt"):
        if not (named := _SITEMAP_LINE.findall(text)):
            raise SelectorError("sitemap: the robots.txt has no line that begins with Sitemap:")
        return [Entry(one, "", is_sitemap=True) for one in named]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].lower().startswith(("http://", "https://")):
        raise SelectorError(f"sitemap: it is neither XML nor a list of URLs, but {text[:40].strip()!r}")
    return [Entry(line, "") for line in lines]


def modified_by(lastmod: str) -> float:
    """When a page with this `lastmod` was changed last, at the latest: seconds since 1970, infinite for no date."""
    try:
        moment = datetime.fromisoformat(lastmod)
    except ValueError:
        return math.inf
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC) + timedelta(hours=_DAY_HOURS)).timestamp()


def _unpacked(body: bytes, most_bytes: int) -> bytes:
    """What is in a gzip. Raises SelectorError when it is damaged, or has more than `most_bytes` bytes."""
    decoder = BodyDecoder("gzip", most_bytes)
    try:
        decoder.add(body)
        return decoder.finish()
    except FetchError as error:
        raise SelectorError(f"sitemap: its gzip cannot be read: {error} (see [request] max_body)") from None


def _is_markup(start: bytes) -> bool:
    """Whether it begins as XML does: in UTF-8, or in UTF-16 with its mark."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<") or start[:2] in (b"\xff\xfe", b"\xfe\xff")


class _XmlReader:
    """Collects the entries of a sitemap or an index, whatever the prefixes of its names are."""

    def __init__(self) -> None:
        self._depth = 0
        self._entry = ""  # the name of the elements that are entries
        self._texts: dict[str, list[str]] = {}
        self._into: list[str] | None = None
        self._entries: list[Entry] = []
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add
        self._parse = parser.Parse

    def read(self, piece: bytes, *, is_last: bool = False) -> list[Entry]:
        """The entries that end in the next piece. Raises SelectorError."""
        try:
            self._parse(piece, is_last)
        except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that nobody knows
            raise SelectorError(f"sitemap: it is not well-formed XML: {error}") from None
        read, self._entries = self._entries, []
        return read

    def _start(self, name: str, _: dict[str, str]) -> None:
        self._depth += 1
        local = name.rpartition(":")[2]
        if self._depth == 1:
            if local not in _ROOTS:
                raise SelectorError(f"sitemap: it is no sitemap but XML or HTML that begins with <{local[:40]}>")
            self._entry = _ROOTS[local]
        elif self._depth == 2 and local == self._entry:
            self._texts = {"loc": [], "lastmod": []}
        elif self._depth == 3:
            self._into = self._texts.get(local)

    def _add(self, text: str) -> None:
        if self._into is not None and self._depth == 3:
            self._into.append(text)

    def _end(self, _: str) -> None:
        self._depth -= 1
        if self._depth == 2:
            self._into = None
        elif self._depth == 1 and self._texts:
            url, modified = ("".join(texts).strip() for texts in self._texts.values())
            self._texts = {}
            if url:
                self._entries.append(Entry(url, modified, is_sitemap=self._entry == "sitemap"))


def _xml_entries(body: bytes) -> Iterator[Entry]:
    reader = _XmlReader()
    begin = len(body) - len(body.lstrip())  # some begin with an empty line
    for start in range(begin, len(body), _PIECE_BYTES):
        yield from reader.read(body[start : start + _PIECE_BYTES])
    yield from reader.read(b"", is_last=True)


def _refuse_doctype(*_: object) -> None:
    raise SelectorError("sitemap: it has a DOCTYPE, whose entities may be endless, so it is not read")
