"""The sections of the job file as msgspec models: the only source of its checks, its reference and its JSON Schema.

Each key has its bounds, a description and an example. `Meta(extra=...)` has texts for messages and the reference:
`absent` is the default in words, `write` says how to write a value of several types, `each` says what every entry of a
table must be, `not_yet` is the message for a value that this version does not have.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

RATE_FORMS = 'write requests a second like 50, or "50/s", "5000/h", ["50/s", "5000/h"], "auto", "none"'
HEADER_RULE = "must be a header name with a text in one line"
COOKIE_RULE = "must be a cookie's name with a text that has no space, ;"

# Patterns for `re.fullmatch`; the JSON Schema has them too, so they mean the same in Python and in ECMA-262.
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
UPSTREAM_HOST = r"(?:\[[0-9a-fA-F:.]+\]|[^\s:@/?#\[\]]+)(?::(?:\d{1,5}|\*))?"
UPSTREAM_PATH = r"[^\s#]+"
RATE = r"(\d+(?:\.\d+)?)(?:\s*/\s*(s|min|m|h|d))?"
IDENTIFIER = r"[a-z_][a-z0-9_]{0,39}"

_NUMBER_RATE = Meta(gt=0, le=1_000_000)
_TEXT_RATE = Meta(extra_json_schema={"pattern": rf"^(?:none|auto|\s*{RATE}\s*(?:,\s*{RATE}\s*)*)$"})
_PART_RATE = Meta(extra_json_schema={"pattern": rf"^\s*{RATE}\s*$"})
Rate: TypeAlias = (
    Annotated[float, _NUMBER_RATE]
    | Annotated[str, _TEXT_RATE]
    | Annotated[tuple[Annotated[float, _NUMBER_RATE] | Annotated[str, _PART_RATE], ...], Meta(min_length=1)]
)


def _text(description: str, example: str, pattern: str | None = None, **extra: str) -> Meta:
    """The Meta of a key with a text, which must not be empty."""
    schema = None if pattern is None else {"pattern": pattern}
    return Meta(min_length=1, description=description, examples=[example], extra_json_schema=schema, extra=extra)


def _value(description: str, example: Any, **extra: str) -> Meta:
    """The Meta of a key without bounds."""
    return Meta(description=description, examples=[example], extra=extra)


def _number(description: str, example: float, least: float, most: float, **extra: str) -> Meta:
    """The Meta of a key with a number from `least` to `most`."""
    return Meta(description=description, examples=[example], ge=least, le=most, extra=extra)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One section of the job file."""


# The formatter would give each argument a line of its own, and the ten lines of a key would hide the next one.
# fmt: off
class RunSettings(Section, frozen=True, kw_only=True):
    """The name of the run, and how large it is on each machine."""

    name: Annotated[str, _text(
        "The run's name: 1 to 100 letters, digits, '.', '_' or '-'. A run of the same name is resumed. "
        "Needed here or as --name.",
        "revisions-2026q4", f"^{RUN_NAME}$", absent="none")] = ""
    workers: Annotated[int, _number(
        "Worker processes on this machine. 0 means the default.",
        4, 0, 1024, absent="one for each core")] | None = None
    concurrency: Annotated[int, _number(
        "Requests in flight in each worker, over all upstreams.",
        128, 1, 100_000)] = 64
    shards: Annotated[int, _number(
        "Parts of the key space that workers claim one by one; a power of two. 0 means the default. "
        "It is fixed when the run begins: a resumed run keeps what it has.",
        256, 0, 65_536, absent="by the size of the corpus, at most 256")] | None = None
    high_water: Annotated[int, _number(
        "Keys that are queued in Redis at most. Reading the source stops there and goes on when workers have taken "
        "keys, which bounds Redis' memory.",
        100_000, 1000, 2**31)] = 300_000
    max_failed: Annotated[float, _number(
        "The share of keys that may end as failed: 0.01 is 1 %. A run with more of them is still complete and "
        "published, but its command ends with exit code 3.",
        0.001, 0.0, 1.0)] = 0.01
    grace: Annotated[float, _number(
        "Seconds in which a worker that is told to stop may finish and commit what it has in flight. "
        "Kubernetes kills after 30.",
        20, 0.0, 3600.0)] = 25.0
    publish: Annotated[Literal["auto"], _value(
        "When the run's rows become visible in the `*_current` views: by itself, when the run is complete.",
        "auto", not_yet="a complete run is published by itself in this version; leave it out")] = "auto"

    def __post_init__(self) -> None:
        """Take 0 as the default."""
        for name in ("workers", "shards"):
            if getattr(self, name) == 0:
                force_setattr(self, name, None)


class SourceSettings(Section, frozen=True, kw_only=True):
    """Where the keys come from: exactly one of the two."""

    path: Annotated[str, _text(
        "A text file with one key a line, plain, `.gz` or `.zst`; `-` is standard input. Blank lines and lines that "
        "begin with # are skipped. A relative path begins at the job file's folder.",
        "titles.txt.gz")] | None = None
    python: Annotated[str, _text(
        "A function of yours, module:function, that yields the keys as texts. The module is looked up in the job "
        "file's folder. It must yield the same keys in the same order each time: resuming calls it again.",
        "corpus:keys", f"^{FUNCTION}$")] | None = None


class RequestSettings(Section, frozen=True, kw_only=True):
    """How keys become HTTP requests.

    A text `${NAME}` in `headers`, `cookies`, `auth` and `proxy` stands for an environment variable of the worker; the
    secret itself is never stored. Secrets, cookies and `auth` stay behind when a redirect leads to another origin.
    """

    url: Annotated[str, _text(
        "The URL of a request, with {key} or {keys} in it once, which the percent-encoded keys replace. "
        "Without it every key is an absolute URL.",
        "https://api.example.org/works/{key}", r"\{keys?\}", absent="each key is a URL")] | None = None
    keys_per_request: Annotated[int, _number(
        "Keys that one request asks for. More than 1 needs a `url`.",
        50, 1, 500)] = 1
    separator: Annotated[str, _text(
        "What stands between the keys of one request; it is percent-encoded too.",
        ",")] = "|"
    headers: Annotated[dict[str, str], _value(
        "Headers of every request.",
        {"Authorization": "Bearer ${TOKEN}"}, each=HEADER_RULE)] = field(default_factory=dict)
    cookies: Annotated[dict[str, str], _value(
        "Cookies of every request.",
        {"session": "${SESSION}"}, each=COOKIE_RULE)] = field(default_factory=dict)
    auth: Annotated[str, _text(
        "An Authorization header: basic:USER:PASSWORD or bearer:TOKEN, with the password or token as ${NAME}.",
        "bearer:${TOKEN}", "^(?:basic|bearer):")] | None = None
    user_agent: Annotated[str, _text(
        "Who asks. Name a contact here; `shardcrawl check` reminds you.",
        "my-crawl (me@example.org)")] = "shardcrawl (+https://pypi.org/project/shardcrawl/)"
    timeout: Annotated[float, _number(
        "Seconds for one attempt, from connecting to the last byte of the body. Connecting may take half of it, and "
        "at most 10. An attempt that takes longer has failed, and `[retry]` decides.",
        60, 0.1, 3600)] = 30.0
    redirects: Annotated[int, _number(
        "Redirects that are followed in a row; 0 follows none.",
        0, 0, 20)] = 5
    http2: Annotated[bool | Literal["prior-knowledge"], _value(
        'true uses HTTP/2 where a server offers it in TLS; "prior-knowledge" speaks nothing else to any server, also '
        "without TLS.",
        True, write='write true, false or "prior-knowledge"')] = False
    engine: Annotated[Literal["pyreqwest", "httpx"], _value(
        "The HTTP client.",
        "httpx", write="known are pyreqwest and httpx")] = "pyreqwest"
    allow_private: Annotated[tuple[str, ...], _value(
        "Networks that are not public (loopback, 10.0.0.0/8, a cloud's metadata) and may still be fetched from. "
        "--allow-private adds to them.",
        ["10.0.0.0/8"])] = ()
    proxy: Annotated[str, _text(
        "An http, https or socks5 URL through which every request goes, with its password as ${NAME}. The proxy looks "
        "up names, so a private address is refused only where it stands in the URL itself.",
        "http://me:${PASSWORD}@proxy.example.org:3128")] | None = None
    ca: Annotated[str, _text(
        "A PEM file with certificates to trust beside the system's. A relative path begins at the job file's folder; "
        "the file must lie there on every machine with workers.",
        "ca.pem", absent="the system's certificates")] | None = None
    client_cert: Annotated[str, _text(
        "A PEM file with a client certificate and its key, not encrypted; looked up like `ca`.",
        "client.pem")] | None = None
    max_body: Annotated[int, _number(
        "Bytes of a body after decompression. A key with a larger one fails at once, without another attempt. "
        "Each request in flight may hold as much memory.",
        1_048_576, 1, 256 * 1024 * 1024)] = 16 * 1024 * 1024
    robots: Annotated[bool, _value(
        "Whether each host's robots.txt is obeyed, Crawl-delay included.",
        False, absent="true where keys are URLs; false with a `url`, an API whose terms you know")] | None = None

    @property
    def obeys_robots(self) -> bool:
        """Whether robots.txt is obeyed. By default it is where each key is a URL, not with a template."""
        return self.url is None if self.robots is None else self.robots


class LimitEntry(Section, frozen=True, kw_only=True):
    """The budget of one upstream for the whole run, all workers on all machines together.

    NAME is a host (`en.wikipedia.org`), a host with a port, a pattern over hosts that share one budget
    (`*.wikipedia.org`), a part of a host (`api.example.org/v2/*`), or `*`: every other host, each for itself.
    """

    rate: Annotated[Rate, _value(
        'Requests a second, or a text with its unit: s, min (or m), h or d. Several in a list hold at once. '
        '"none" is no bound. "auto" finds the rate: up to the first refusal, then just below it.',
        ["50/s", "5000/h"], write=RATE_FORMS, absent="no bound")] | None = None
    ceiling: Annotated[Rate, _value(
        'What an "auto" rate never exceeds.',
        "200/s", write=RATE_FORMS, absent="no bound")] | None = None
    concurrency: Annotated[int, _number(
        "Requests in flight at this upstream. 0 means no bound.",
        8, 0, 100_000, absent="no bound")] | None = None


class RetrySettings(Section, frozen=True, kw_only=True):
    """What follows an attempt that failed: a pause that grows, and another attempt."""

    attempts: Annotated[int, _number(
        "Attempts of a key before it fails. Responses like 429 count apart: ten times as many are allowed.",
        3, 1, 100)] = 5
    backoff: Annotated[float, _number(
        "Seconds that the first pause takes at most. Each pause is random, and may be twice as long as the one before.",
        1, 0.0, 3600.0)] = 0.5
    max_delay: Annotated[float, _number(
        "Seconds that such a pause takes at most. How long an upstream asks to wait is another thing, and obeyed.",
        300, 0.0, 86_400.0)] = 60.0


class ParseSettings(Section, frozen=True, kw_only=True):
    """What makes rows of a response."""

    python: Annotated[str, _text(
        "A function of yours, module:function, that is called with each response and returns rows. The module is "
        "looked up in the job file's folder.",
        "parse:revisions", f"^{FUNCTION}$", absent="the whole body is stored in `pages.body`")] | None = None


class StoreSettings(Section, frozen=True, kw_only=True):
    """How much a worker holds before it commits. A worker that is killed leaves at most that to be fetched again."""

    batch_rows: Annotated[int, _number(
        "Pages that wait for one commit at most.",
        500, 1, 100_000)] = 1000
    batch_bytes: Annotated[int, _number(
        "Bytes that wait for one commit at most.",
        67_108_864, 1024, 2**30)] = 16 * 1024 * 1024
    batch_age: Annotated[float, _number(
        "Seconds that a page waits for its commit at most.",
        0.5, 0.01, 60.0)] = 1.0


class TableSettings(Section, frozen=True, kw_only=True):
    """A table of your own that the parser fills, once for each table. It gets `run_id`, `digest` and your columns."""

    name: Annotated[str, _text(
        "Lower-case letters, digits and _, at most 40; not `pages` or `runs`, and not ending in `_current` or `_r1`.",
        "revisions", f"^{IDENTIFIER}$", absent="none, it is needed")] = ""
    column_types: Annotated[dict[str, str], Meta(
        description="The columns in their order, each with its Postgres type. Names are written like the table's.",
        examples=[{"rev_id": "bigint", "user_name": "text", "at": "timestamptz"}],
        extra_json_schema={"propertyNames": {"pattern": f"^{IDENTIFIER}$"}, "minProperties": 1},
        extra={"each": "has a type that is no text; give the type as text", "absent": "none, they are needed"},
    )] = field(default_factory=dict, name="columns")

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The columns in their order as (name, Postgres type)."""
        return tuple(self.column_types.items())


class JobFile(Section, frozen=True, kw_only=True):
    """A job of shardcrawl: https://pypi.org/project/shardcrawl/."""

    run: RunSettings = field(default_factory=RunSettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: Annotated[dict[str, LimitEntry], Meta(extra_json_schema={
        "propertyNames": {"pattern": f"^{UPSTREAM_HOST}(?:/{UPSTREAM_PATH})?$"}})] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tables: tuple[TableSettings, ...] = ()
# fmt: on
