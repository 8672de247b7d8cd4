"""Pure: what a robots.txt means (RFC 9309), and what of it is worth keeping.

protego matches the rules; groups are chosen here, because it takes a group of "shard" for one of "shardcrawl".
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import msgpack

# RFC 9309 (2.5) wants at least 500 KiB read.
LARGEST = 512 * 1024
# RFC 9309 (2.4): not longer than a day, unless the origin does not answer.
HOLDS = 86_400.0
FIRST_RETRY, LAST_RETRY = 60.0, 3600.0

_BLANK = "".join(map(chr, range(33)))
_URL = re.compile(r"(https?):[/\\]*([^/\\?#]*)", re.IGNORECASE)
_ODD = re.compile(r"[\t\n\r\\]|/\.|%2e", re.IGNORECASE)
_TOKEN = re.compile(r"[^\s/;()*]+")
_COMPATIBLE = re.compile(r"\(compatible;\s*([^\s/;()*]+)")
_UNSAFE = re.compile(rb"[^\t -~]")
_RULES = frozenset({b"allow", b"disallow", b"crawl-delay"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class RobotsRecord:
    """What asking for a robots.txt brought: the `rules` that hold for us, as `rules_for` gives them.

    `fault` says why it could not be read; then `rules` are those of an earlier time, or None: nothing is allowed.
    `failures` counts how often that happened in a row.
    """

    rules: str | None
    fault: str | None = None
    failures: int = 0

    def pack(self) -> bytes:
        """As bytes for `unpack`."""
        rules = None if self.rules is None else zlib.compress(self.rules.encode())
        return bytes(msgpack.packb((rules, self.fault, self.failures)))

    @classmethod
    def unpack(cls, packed: bytes) -> RobotsRecord:
        """What was packed."""
        rules, fault, failures = msgpack.unpackb(packed)
        return cls(None if rules is None else zlib.decompress(rules).decode(), fault, failures)

    def holds(self, requested: float | None) -> float:
        """For how many seconds; after a failure not long, but as long as the origin itself `requested` for."""
        if self.fault is None:
            return HOLDS
        backoff = FIRST_RETRY * 2.0 ** min(self.failures - 1, 30)
        return max(min(backoff, LAST_RETRY), requested or 0.0)


def failed(fault: str, before: RobotsRecord | None) -> RobotsRecord:
    """The finding when robots.txt could not be read: what it said before goes on (RFC 9309, 2.4)."""
    return RobotsRecord(before.rules, fault, before.failures + 1) if before else RobotsRecord(None, fault, 1)


def place(url: str) -> tuple[str, str]:
    """(origin, path with query) of a URL as engines send it: they resolve dots and take a backslash for a slash.

    The origin is scheme://host, with :port unless it is the scheme's own; empty when the URL is not http or https.
    """
    url = url.strip(_BLANK)
    start = _URL.match(url)
    if start is None:
        return "", ""
    scheme = start[1].lower()
    host = start[2].rpartition("@")[2].lower().removesuffix(_DEFAULT_PORTS[scheme]).removesuffix(":")
    path = url[start.end() :].partition("#")[0]
    if _ODD.search(path):
        path = _resolved(path)
    return f"{scheme}://{host}", path if path.startswith("/") else f"/{path}"


def _resolved(path: str) -> str:
    path, mark, query = re.sub(r"[\t\n\r]", "", path).partition("?")
    segments: list[str] = []
    dots = ""
    for segment in path.replace("\\", "/").split("/")[1:]:
        dots = segment.lower().replace("%2e", ".")
        if dots == "..":
            del segments[-1:]
        elif dots != ".":
            segments.append(segment)
    ends = "/" if dots in (".", "..") and segments else ""
    return "/" + "/".join(segments) + ends + mark + query


def product_token(user_agent: str) -> str:
    """The name that a robots.txt calls us by: what stands before the version, of a browser's sort its "compatible"."""
    found = _COMPATIBLE.search(user_agent) or _TOKEN.search(user_agent)
    return found[found.lastindex or 0].lower() if found else ""


def rules_for(token: str, body: bytes) -> str:
    """The lines "allow: …", "disallow: …" and "crawl-delay: …" that hold for a product token; "" allows all.

    Its own groups together, else those of "*". What no ASCII letter stands for is percent-encoded byte by byte, so that
    a path matches in whatever encoding the site is.
    """
    if len(body) > LARGEST:  # and the line that is cut would say something else
        body = body[: max(body.rfind(b"\n", 0, LARGEST), body.rfind(b"\r", 0, LARGEST)) + 1]
    groups: dict[str, dict[bytes, None]] = {}
    agents: list[str] = []
    naming = False
    for line in body.removeprefix(b"\xef\xbb\xbf").splitlines():
        field, _, value = line.partition(b"#")[0].partition(b":")
        field, value = field.strip().lower(), value.strip()
        if field == b"user-agent":
            if not naming:
                agents = []
            naming = True
            agent = "*" if value == b"*" else product_token(value.decode("latin-1"))
            if agent and agent in (token, "*"):
                agents.append(agent)
                groups.setdefault(agent, {})
        elif field in _RULES:
            naming = False
            for agent in agents:
                groups[agent][field + b": " + _UNSAFE.sub(_percent_encoded, value)] = None
    return b"\n".join(groups.get(token, groups.get("*", {}))).decode()


def _percent_encoded(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]
