"""Pure: what a robots.txt means (RFC 9309), and which part of it is kept.

protego matches paths against rules. The group of rules is chosen here, because protego would also apply a group for
"shard" to "shardcrawl".
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import msgpack

# RFC 9309 (2.5) wants at least 500 KiB read.
MAX_ROBOTS_BYTES = 512 * 1024
# RFC 9309 (2.4): not longer than a day, unless the origin does not respond.
VALID_SECONDS = 86_400.0
FIRST_REFETCH_SECONDS = 60.0
MAX_REFETCH_SECONDS = 3600.0

_CONTROL_AND_SPACE = "".join(map(chr, range(33)))
_SCHEME_AND_HOST = re.compile(r"(https?):[/\\]*([^/\\?#]*)", re.IGNORECASE)
_NEEDS_RESOLVING = re.compile(r"[\t\n\r\\]|/\.|%2e", re.IGNORECASE)
_FIRST_TOKEN = re.compile(r"[^\s/;()*]+")
_COMPATIBLE_TOKEN = re.compile(r"\(compatible;\s*([^\s/;()*]+)")
_NOT_PRINTABLE = re.compile(rb"[^\t -~]")
_RULE_FIELDS = frozenset({b"allow", b"disallow", b"crawl-delay"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class RobotsRecord:
    """What a request for a robots.txt brought: the `rules` that apply to us, as `rules_for` returns them.

    `fault` says why it could not be read. Then `rules` are those that were read before; None means that nothing is
    allowed. `failures` counts the requests in a row that had a fault.
    """

    rules: str | None
    fault: str | None = None
    failures: int = 0

    def encode(self) -> bytes:
        """Return the record as bytes, for `decode`."""
        rules = None if self.rules is None else zlib.compress(self.rules.encode())
        return bytes(msgpack.packb((rules, self.fault, self.failures)))

    @classmethod
    def decode(cls, packed: bytes) -> RobotsRecord:
        """Return the record in bytes that `encode` made."""
        rules, fault, failures = msgpack.unpackb(packed)
        return cls(None if rules is None else zlib.decompress(rules).decode(), fault, failures)

    def valid_seconds(self, pause: float | None) -> float:
        """Return for how many seconds the record is valid: a day, or until the next attempt after a failure.

        `pause` is the seconds that the origin asked to wait, or None; the next attempt is made after them.
        """
        if self.fault is None:
            return VALID_SECONDS
        backoff = FIRST_REFETCH_SECONDS * 2.0 ** min(self.failures - 1, 30)
        return max(min(backoff, MAX_REFETCH_SECONDS), pause or 0.0)


def failed_record(fault: str, previous: RobotsRecord | None) -> RobotsRecord:
    """Return the record for a robots.txt that could not be read: the previous rules stay valid (RFC 9309, 2.4)."""
    return RobotsRecord(previous.rules, fault, previous.failures + 1) if previous else RobotsRecord(None, fault, 1)


def origin_and_path(url: str) -> tuple[str, str]:
    """Split a URL into (origin, path with query) as engines send it: they resolve dots, and read \\ as /.

    The origin is scheme://host, with :port unless it is the scheme's default. It is empty if the URL is not http(s).
    """
    url = url.strip(_CONTROL_AND_SPACE)
    start = _SCHEME_AND_HOST.match(url)
    if start is None:
        return "", ""
    scheme = start[1].lower()
    host = start[2].rpartition("@")[2].lower().removesuffix(_DEFAULT_PORTS[scheme]).removesuffix(":")
    path = url[start.end() :].partition("#")[0]
    if _NEEDS_RESOLVING.search(path):
        path = _resolve_path(path)
    return f"{scheme}://{host}", path if path.startswith("/") else f"/{path}"


def _resolve_path(path: str) -> str:
    path, question_mark, query = re.sub(r"[\t\n\r]", "", path).partition("?")
    segments: list[str] = []
    dots = ""
    for segment in path.replace("\\", "/").split("/")[1:]:
        dots = segment.lower().replace("%2e", ".")
        if dots == "..":
            del segments[-1:]
        elif dots != ".":
            segments.append(segment)
    end = "/" if dots in (".", "..") and segments else ""
    return "/" + "/".join(segments) + end + question_mark + query


def product_token(user_agent: str) -> str:
    """Return our name in a robots.txt: the user agent before its version, or what follows "(compatible;" in it."""
    found = _COMPATIBLE_TOKEN.search(user_agent) or _FIRST_TOKEN.search(user_agent)
    return found[found.lastindex or 0].lower() if found else ""


def rules_for(token: str, body: bytes) -> str:
    """Return the lines "allow: …", "disallow: …" and "crawl-delay: …" that apply to a product token; "" allows all.

    They are those of its own groups together, or else of the groups of "*". Bytes that are not printable ASCII are
    percent-encoded, so that a path matches in any encoding of the site.
    """
    if len(body) > MAX_ROBOTS_BYTES:  # without the last line: half of a rule may be another rule
        body = body[: max(body.rfind(b"\n", 0, MAX_ROBOTS_BYTES), body.rfind(b"\r", 0, MAX_ROBOTS_BYTES)) + 1]
    groups: dict[str, dict[bytes, None]] = {}
    agents: list[str] = []
    in_agent_lines = False
    for line in body.removeprefix(b"\xef\xbb\xbf").splitlines():
        field, _, value = line.partition(b"#")[0].partition(b":")
        field, value = field.strip().lower(), value.strip()
        if field == b"user-agent":
            if not in_agent_lines:
                agents = []
            in_agent_lines = True
            agent = "*" if value == b"*" else product_token(value.decode("latin-1"))
            if agent and agent in (token, "*"):
                agents.append(agent)
                groups.setdefault(agent, {})
        elif field in _RULE_FIELDS:
            in_agent_lines = False
            for agent in agents:
                groups[agent][field + b": " + _NOT_PRINTABLE.sub(_percent_encoded, value)] = None
    return b"\n".join(groups.get(token, groups.get("*", {}))).decode()


def _percent_encoded(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]
