"""Pure: what a robots.txt means (RFC 9309), and which part of it is kept.

protego matches paths against rules. The group of rules is chosen here, because protego would also apply a group for
"shard" to "shardcrawl".
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import msgpack

from crawler.job.models import RetrySettings

# RFC 9309 (2.5) wants at least 500 KiB read.
MAX_ROBOTS_BYTES = 512 * 1024
# Of the rules that are kept of one: three characters for each byte, and the words of the lines.
MAX_RULES_BYTES = 4 * MAX_ROBOTS_BYTES
# RFC 9309 (2.4): not longer than a day, unless the origin does not respond.
VALID_SECONDS = 86_400.0
# More in a row than there can be: another program has written them.
MAX_FAILURES = 1_000_000
# While rules that were read before are valid, no key waits for the next attempt to read them again.
FIRST_REFETCH_SECONDS = 60.0
MAX_REFETCH_SECONDS = 3600.0
TOO_MANY_REQUESTS = "status 429"

_FIRST_TOKEN = re.compile(r"[^\s/;()*]+")
_PLAIN_NUMBER = re.compile(rb"\d+(?:\.\d*)?|\.\d+")
_COMPATIBLE_TOKEN = re.compile(r"\(compatible;\s*([^\s/;()*]+)")
# A product token has no other characters (RFC 9309, 2.2.1), and what follows it is ignored.
_LETTERS = re.compile(rb"[A-Za-z_-]+")
_NOT_PRINTABLE = re.compile(rb"[^\t -~]")
# Lines as Google's parser and protego take them: a field may be misspelt in these ways, may have more behind its name
# before the colon, and the colon may be missing. Any other line is skipped (RFC 9309, 2.2.4).
_LINE = re.compile(
    rb"(?P<agent>user[- ]?agent)|(?P<allow>allow)|(?P<disallow>diss?all?ow|diasllow|disallaw)"
    rb"|(?P<delay>crawl[- ]delay)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(rb"[^\s:]*\s*:\s*|\s+|$")


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
        """Return the record in bytes that `encode` made. Raises ValueError for what is not one of ours."""
        try:
            rules, fault, failures = msgpack.unpackb(packed)
            text = None if rules is None else zlib.decompressobj().decompress(rules, MAX_RULES_BYTES).decode()
        except (msgpack.UnpackException, ValueError, TypeError, zlib.error) as error:
            raise ValueError(f"not what was found in a robots.txt: {error}") from error
        if not isinstance(fault, str | None) or type(failures) is not int or not 0 <= failures <= MAX_FAILURES:
            raise ValueError("not what was found in a robots.txt")
        return cls(text, fault, failures)

    def valid_seconds(self, retry: RetrySettings, pause: float | None) -> float:
        """Return for how many seconds the record is valid: a day, or until the next attempt after a failure.

        `pause` is the seconds that the origin asked to wait, or None; the next attempt is made after them. While
        nothing is allowed, keys wait for it: then the backoff is that of the job, and not longer than the longest that
        one key has. Else the keys that come last would wait longer than the first.
        """
        if self.fault is None:
            return VALID_SECONDS
        first, most, doublings = FIRST_REFETCH_SECONDS, MAX_REFETCH_SECONDS, self.failures - 1
        if self.rules is None:
            first, most = retry.backoff, retry.max_delay
            if self.fault != TOO_MANY_REQUESTS:
                doublings = min(doublings, retry.attempts - 2)
        return max(min(first * 2.0 ** min(max(doublings, 0), 30), most), pause or 0.0)


def failed_record(fault: str, previous: RobotsRecord | None, without_rules: str | None = None) -> RobotsRecord:
    """Return the record for a robots.txt that could not be read: the previous rules stay valid (RFC 9309, 2.4).

    `without_rules` are the rules when there were none before: None when the origin did not respond, so that nothing is
    allowed, and "" when it did.
    """
    rules = without_rules if previous is None or previous.rules is None else previous.rules
    return RobotsRecord(rules, fault, previous.failures + 1 if previous else 1)


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
    agents: list[str] = []  # those of the group
    slowed: list[str] = []  # those that a crawl-delay here is for: of the lines directly before it
    has_rules = False
    before: str | None = None
    for line in body.removeprefix(b"\xef\xbb\xbf").splitlines():
        line = line.partition(b"#")[0].strip()
        field, value = _field_and_value(line)
        if field is None:
            continue
        if field == "agent":
            # Only a rule of the standard ends the list of a group's agents (RFC 9309, 2.1).
            if has_rules:
                agents, has_rules = [], False
            if before != "agent":
                slowed = []
            agent = _agent(value, token)
            if agent and agent in (token, "*"):
                # Each once: a rule is added for each of them.
                agents = [*dict.fromkeys((*agents, agent))]
                slowed = [*dict.fromkeys((*slowed, agent))]
                groups.setdefault(agent, {})
        elif field == "delay":
            for agent in slowed if _PLAIN_NUMBER.fullmatch(value) else ():
                groups[agent][b"crawl-delay: " + _NOT_PRINTABLE.sub(_percent_encoded, value)] = None
        else:
            has_rules = True
            for agent in agents:
                groups[agent][f"{field}: ".encode() + _NOT_PRINTABLE.sub(_percent_encoded, value)] = None
        before = field
    return b"\n".join(groups.get(token, groups.get("*", {}))).decode()


def _field_and_value(line: bytes) -> tuple[str | None, bytes]:
    """The field of a line as a group of _LINE, None when it has none, and its value.

    Without a colon a line is one only if it has two words.
    """
    name = _LINE.match(line)
    separator = _SEPARATOR.match(line, name.end()) if name else None
    if name is None or separator is None or (b":" not in separator[0] and len(line[name.end() :].split()) != 1):
        return None, b""
    return name.lastgroup, line[separator.end() :]


def _agent(value: bytes, token: str) -> str:
    """The product token that a line of user-agent names; `token` is our own."""
    if value.split()[:1] == [b"*"]:
        return "*"
    letters = _LETTERS.match(value)
    if letters is not None and letters[0].decode().lower() == token:
        return token
    return "" if value.startswith(b"*") else product_token(value.decode("latin-1"))


def _percent_encoded(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]
