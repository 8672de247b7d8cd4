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
from crawler.parse.follow.finder import MOST_FOUND_CHARACTERS, may_be_page
from crawler.parse.received import Received
from crawler.parse.select.path import SelectorError
from crawler.text.charset import UTF8, UTF16, decode, encoding_of

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
_DAY = re.compile(r"\d{4}(?!\d)(-\d\d(-\d\d)?)?")
# No page of the web is older. Programs write 0001-01-01 or 1970-01-01 where they know no date.
_FIRST_YEAR = "1991"
_ENCODING = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]+)""")
_SITEMAP_LINE = re.compile(r"(?im)(?:^|\r)[ \t]*sitemap[ \t]*:[ \t]*([^\s#]+)")


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
        return day is not None and _FIRST_YEAR <= day[0] < self._since[: len(day[0])]

    def _found(self, page: Page, entry: Entry, base: Target) -> Iterator[FoundKey]:
        """The key that an entry stands for; none when it is no http or https URL."""
        key, reason, context = entry.url, None, KeyContext(origin=page.item.digest)
        try:
            key = parse(key, base).href
        except InvalidUrl as error:
            if not may_be_page(key):
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
    is_robots = url.path.partition("?")[0].endswith("/robots.txt")
    try:
        text = body.decode(errors="replace" if is_robots else "strict").removeprefix(_BOM)
    except UnicodeDecodeError:
        raise SelectorError("sitemap: it is neither XML nor a text in UTF-8") from None
    if is_robots:
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
        if lastmod < _FIRST_YEAR:
            return math.inf
        moment = datetime.fromisoformat(lastmod)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC) + timedelta(hours=_DAY_HOURS)).timestamp()
    except (ValueError, OverflowError):  # it is no date, or the last day of all
        return math.inf


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

    def __init__(self, encoding: str | None) -> None:
        self._depth = 0
        self._entry = ""  # the name of the elements that are entries
        self._prefix = ""  # that of an entry, and of what belongs to it: an image's <image:loc> does not
        self._has_entries = False
        self._other = ""  # the name of an element that stands where entries do
        self._texts: dict[str, list[str]] = {}
        self._into: list[str] | None = None
        self._entries: list[Entry] = []
        parser = expat.ParserCreate(encoding)
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
        if is_last and self._other and not self._has_entries:
            raise SelectorError(f"sitemap: it has <{self._other[:40]}> where <{self._entry}> should be")
        read, self._entries = self._entries, []
        return read

    def _start(self, name: str, _: dict[str, str]) -> None:
        self._depth += 1
        prefix, _colon, local = name.rpartition(":")
        if self._depth == 1:
            if local not in _ROOTS:
                raise SelectorError(f"sitemap: it is no sitemap but XML or HTML that begins with <{local[:40]}>")
            self._entry = _ROOTS[local]
        elif self._depth == 2 and local == self._entry:
            self._has_entries = True
            self._prefix = prefix
            self._texts = {"loc": [], "lastmod": []}
        elif self._depth == 2:
            self._other = local
        elif self._depth == 3 and prefix == self._prefix and not self._texts.get(local):
            self._into = self._texts.get(local)  # of several the first one counts

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
    body = body.removeprefix(_BOM.encode()).lstrip()  # some begin with an empty line
    declared, encoding = _ENCODING.match(body), None
    if declared and encoding_of(declared[1].decode()) not in (None, UTF8, *UTF16):  # expat has few others
        body, encoding = decode(body, declares="xml").text.encode(), UTF8
    reader = _XmlReader(encoding)
    for start in range(0, len(body), _PIECE_BYTES):
        yield from reader.read(body[start : start + _PIECE_BYTES])
    yield from reader.read(b"", is_last=True)


def _refuse_doctype(*_: object) -> None:
    raise SelectorError("sitemap: it has a DOCTYPE, whose entities may be endless, so it is not read")
