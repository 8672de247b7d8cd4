"""Pure: one URL, parsed once, as browsers do it (WHATWG URL Standard). Everything that needs a part of it takes this.

It stands here, below both packages, because the rule for keys, the limits, the job file and the engines all need it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv6Address
from types import ModuleType
from typing import NamedTuple

DEFAULT_PORTS = {"http": 80, "https": 443}
HAS_USER = "contains user information before the host"
# A corpus can have millions of origins.
MAX_CACHED_ORIGINS = 65_536

# URLs that the standard leaves as they are, which are almost all: for these the library is not even imported. A host
# that ends in a number is an IPv4 address, "xn--" must be valid punycode, and a segment may not be "." or "..".
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
CANONICAL_ORIGIN = (
    rf"https?://(?:(?:{_OCTET}\.){{3}}{_OCTET}|(?![a-z0-9._-]*xn--)(?:[a-z0-9._-]{{1,253}}\.)?[a-z][a-z0-9_-]{{0,62}}+)"
    r"(?::(?!(?:80|443)(?![0-9]))(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?"
)
_CANONICAL_PATH = (
    r"(?:/(?!\.|%2[Ee])[!$%&'()*+,\-.0-9:;=@A-Z\[\]_a-z|~]*+)++(?:\?[!$%&()*+,\-./0-9:;=?@A-Z\[\]\\^_`a-z{|}~]*+)?"
)
_CANONICAL = re.compile(rf"({CANONICAL_ORIGIN})({_CANONICAL_PATH})?")
# A link to a path of the same host, which the standard only appends to the origin.
_CANONICAL_LINK = re.compile(rf"(?!//){_CANONICAL_PATH}")
# What plain paths are made of, which are most links: to find that nothing else is there takes a sixth of a search.
_PLAIN = (string.ascii_letters + string.digits + "/-._~\n").encode()
# Lines of such links, and of URLs: one search for a whole page.
_CANONICAL_LINKS = re.compile(rf"(?:(?:(?!//)|{CANONICAL_ORIGIN}){_CANONICAL_PATH}(?:\n(?!\Z)|\Z))+")
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:]+\]|[^:/@\[\]]+)(?::([0-9]+))?")
_SCHEME = re.compile(r"[\0- ]*(?:h\s*t\s*t\s*p\s*s?\s*:)", re.IGNORECASE)
_PORT = re.compile(r"(?<=//)([^/\\?#]+):[^:/\\?#@\]]*(?=[/\\?#]|$)")


class InvalidUrl(ValueError):
    """A text that is no http(s) URL, or one that is not asked for; the message says why, as "it …" goes on."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a URL leads: `text` is scheme://host, with :port unless it is the scheme's default.

    `host` is as the standard writes it: lower case, punycode, IPv6 in brackets. `upstream_host` is the same for all of
    a host's spellings: without a dot at its end, and an IPv4-mapped IPv6 address as IPv4. `upstream` has the port, too,
    unless it is the default.
    """

    text: str
    scheme: str
    host: str
    port: int
    upstream_host: str
    upstream: str


class Target(NamedTuple):
    """What a URL asks for: at its origin, `path`, which is the request target: the path with the query.

    A tuple, because one is made for each request.
    """

    origin: Origin
    path: str

    @property
    def href(self) -> str:
        """The whole URL, as the standard writes it, without its fragment."""
        return self.origin.text + self.path


def parse(text: str, base: Target | None = None) -> Target:
    """The target of an absolute URL, or of one that is relative to `base`. Raises InvalidUrl."""
    canonical = _CANONICAL.fullmatch(text) if text.isascii() else None
    if canonical is not None:
        return Target(_origin(canonical[1]), canonical[2] or "/")
    href = _parse(text, base).partition("#")[0]
    scheme, _, rest = href.partition("://")
    if scheme not in DEFAULT_PORTS:
        raise InvalidUrl("does not start with http:// or https://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise InvalidUrl(HAS_USER)
    return Target(_origin(f"{scheme}://{authority}"), slash + path)


def join(base: str, link: str) -> str:
    """The URL to which a link leads from `base`, both as the standard writes them. Raises ValueError for no URL."""
    if link.isascii():
        if base.startswith("http") and _CANONICAL_LINK.fullmatch(link):
            return _origin_text(base) + link
        if (canonical := _CANONICAL.fullmatch(link)) is not None:
            return link if canonical[2] else f"{link}/"
    return str(_library().join_url(base, link))


def join_all(base: str, links: Sequence[str]) -> list[str]:
    """The URLs to which links lead from `base`, as browsers resolve them; one that is no URL as it stands."""
    lines = "\n".join(links)
    are_links = lines.count("\n") == len(links) - 1 and base.startswith("http")
    if are_links and (_are_plain_paths(lines, len(links)) or _CANONICAL_LINKS.fullmatch(lines)):
        origin = _origin_text(base)
        return [origin + link if link[0] == "/" else link for link in links]
    return [_join_or_not(base, link.strip()) for link in links]


def _are_plain_paths(lines: str, count: int) -> bool:
    """Whether each of the lines is a path from the root that the standard only appends to the origin."""
    if not lines.startswith("/") or lines.count("\n/") != count - 1 or "//" in lines or "/." in lines:
        return False
    return lines.isascii() and not lines.encode().translate(None, _PLAIN)


def _join_or_not(base: str, link: str) -> str:
    try:
        return join(base, link)
    except ValueError:
        return link


def _origin_text(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _parse(text: str, base: Target | None) -> str:
    """The URL that the standard makes of a text. Raises InvalidUrl."""
    try:
        return _standard(text, base)
    except ValueError:
        pass
    if base is None and not _SCHEME.match(text):
        raise InvalidUrl("does not start with http:// or https://")
    try:
        _standard(_PORT.sub(r"\1", text), base)
    except ValueError:
        raise InvalidUrl("has no valid host") from None
    raise InvalidUrl("has no valid port")


def _standard(text: str, base: Target | None) -> str:
    library = _library()
    return str(library.normalize_url(text)) if base is None else join(base.href, text)


@cache
def _library() -> ModuleType:
    """The library is imported when it is needed, because it costs a process 30 ms and 4 MB."""
    import ada_url

    return ada_url


@lru_cache(MAX_CACHED_ORIGINS)
def _origin(text: str) -> Origin:
    """The origin that the standard writes like this."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise InvalidUrl("has no valid host")
    scheme, host, port = found[1], found[2], int(found[3] or DEFAULT_PORTS[found[1]])
    if not port:
        raise InvalidUrl("has no valid port")
    upstream_host = host.rstrip(".") or host
    if host.startswith("[") and (mapped := IPv6Address(host[1:-1]).ipv4_mapped) is not None:
        upstream_host = str(mapped)
    return Origin(text, scheme, host, port, upstream_host, upstream_host + (f":{port}" if found[3] else ""))
