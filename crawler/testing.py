"""The test kit for parsers: a parser's tests need no network, no Redis and no Postgres. See docs/parsers.md.

`parse` calls the job's parser through the code of a worker, so outcomes and values are those of a run.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from coordinator.errors import ShardcrawlError, UsageError, first_line
from coordinator.model import NO_ATTEMPTS, KeyContext, Outcome
from coordinator.queue.sharding import digest
from coordinator.url import InvalidUrl
from coordinator.url import parse as parse_url
from coordinator.user_code import TimeLimit
from crawler.fetch.retry import End, after_response
from crawler.fetch.template import Template
from crawler.job.document import JobOverrides, load_document
from crawler.job.job import Job, read_job
from crawler.job.tables import TableSettings, column_type
from crawler.model import HttpResponse, Item, Page
from crawler.parse import hook
from crawler.parse.remote import NO_BLOCK, ListedHeaders, apply_within
from crawler.parse.response import Response
from crawler.parse.values import exact_json
from crawler.transform.here import transform_here

__all__ = ["Parsed", "parse", "parse_file", "response"]

GivenHeaders: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
Tables: TypeAlias = dict[str, list[dict[str, Any]]]
ResponseFormat: TypeAlias = Literal["json", "ndjson", "csv", "html", "xml"]
# The key of a response whose test does not say another one.
SOME_KEY = "key"
MAX_NAME_CHARACTERS = 80
# What stands in the place of an outcome where a run would request the key again.
AGAIN_WORDS = ("retry", "wait")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a run would store of one response: `tables` has the records of each table, by column name.

    `outcomes` has (outcome, reason or None) of each key; the outcome is "retry" or "wait" where a run would request it
    again. A value is what its column takes: a `Decimal` for numeric, a `datetime` in UTC for timestamptz; of json and
    jsonb it is what the JSON says. `traceback` shows an error of the parser, with the lines of your files only; None
    without one. `found` are the keys that the response names, each with its kind.
    """

    tables: Tables
    outcomes: dict[str, tuple[str, str | None]]
    by_key: dict[str, Tables]
    traceback: str | None = field(default=None, compare=False)
    found: tuple[tuple[str, str], ...] = ()

    def records_of(self, key: str) -> Tables:
        """The records of one key: `tables` without those of other keys."""
        return self.by_key[key]


class SavedResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands in PATH.json, beside a body that `shardcrawl fetch --save` has saved as PATH."""

    key: str
    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    source: Mapping[str, str] = {}
    kind: str = ""


def response(
    body: Any,
    *,
    key: str | None = None,
    keys: Sequence[str] | None = None,
    url: str | None = None,
    status: int = 200,
    headers: GivenHeaders | None = None,
    source: Mapping[str, str] | None = None,
    format: ResponseFormat = "json",  # noqa: A002 - it is called so in the job file
) -> Response:
    """A response as a parser gets it. The body is bytes, text (sent as UTF-8), or any other value, sent as JSON.

    Without a key it is the URL, or "key". Without a URL, `parse` takes the one that the job would request. `source` is
    what the source carries with the key, `format` that of `response.select`; `parse` takes the job's.
    Raises UsageError, and TypeError or ValueError for a body that JSON cannot say.
    """
    if key is not None and keys is not None:
        raise UsageError("response: give it a key or keys, not both")
    sent = [(name.lower(), text) for name, text in _pairs(headers)]
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        body = exact_json.dumps(body).encode()
        if "content-type" not in dict(sent):
            sent.append(("content-type", "application/json"))
    found = (key or url or SOME_KEY,) if keys is None else tuple(keys)
    if not found or not all(isinstance(one, str) for one in found):
        raise UsageError(f"response: keys are texts, at least one; these are {list(found)!r}")
    if format not in get_args(ResponseFormat):
        raise UsageError(f"response: format is {format!r}; write one of {', '.join(get_args(ResponseFormat))}")
    return Response(found, url or "", status, ListedHeaders(sent), body, source=source or {}, language=format)


def parse(job: str | Path | Job, response: Response, *, kind: str = "") -> Parsed:
    """What a run of the job (its file, or a Job) would store of the response, also behind its transforms.

    An error of the parser, or of a transform, is an outcome.

    `kind` is that of the keys, one of the job's [kinds]. Raises UsageError for a job or a parser that cannot be read,
    and for a response that decides no key: a redirect that is followed, a 503.
    """
    if not isinstance(job, Job):
        document, folder, _ = load_document(str(job), JobOverrides())
        job = read_job(document, folder)
    own = job.of_kind(kind)
    with _alarm_kept():
        parser = hook.load(job, kind=kind)
        if parser is None:
            raise UsageError("job: it has no parser to test; name one in [parse] python, or add [[tables]]")
        errors: list[BaseException] = []
        parser.on_error = errors.append
        url = response.url or _requested_url(own, response.keys)
        end = _end_of(own, url, response)
        context = KeyContext(kind, fields=response.source)
        pages = [Page(Item(key, b"", NO_BLOCK, context), url, end.outcome, end.reason) for key in response.keys]
        if end.outcome is Outcome.STORED:
            http_response = HttpResponse(response.status, response.headers, response.body)
            apply_within(TimeLimit(own.parse.timeout, " ([parse] timeout)"), parser, pages, url, http_response)
            transform_here(job, pages, errors.append)
    by_key = {page.item.key: _tables_of(page, job.tables) for page in pages}
    tables = {table.name: [row for rows in by_key.values() for row in rows[table.name]] for table in job.tables}
    outcomes = {page.item.key: _ended(page) for page in pages}
    found = tuple((one.key, one.context.kind) for page in pages for one in page.found)
    return Parsed(tables, outcomes, by_key, parser.traceback_of(errors[0], job.folder) if errors else None, found)


def parse_file(
    job: str | Path | Job,
    path: str | Path,
    *,
    key: str | None = None,
    url: str | None = None,
    status: int | None = None,
    headers: GivenHeaders | None = None,
    source: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> Parsed:
    """What `parse` makes of a body in a file.

    What is not given stands in PATH.json beside it, if there is one; else it is as for `response`, with status 200.
    Raises UsageError, also for a file that cannot be read.
    """
    body, beside = Path(path), Path(f"{path}.json")
    try:
        content = body.read_bytes()
        saved = msgspec.json.decode(beside.read_bytes(), type=SavedResponse) if beside.exists() else None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; name the file of a saved body") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{beside}: {first_line(error)}; save the response again with `shardcrawl fetch`") from error
    if saved is not None:
        key, url, status = key or saved.key, url or saved.url, status or saved.status
        headers = saved.headers if headers is None else headers
        source, kind = saved.source if source is None else source, saved.kind if kind is None else kind
    made = response(content, key=key, url=url, status=status or 200, headers=headers, source=source)
    return parse(job, made, kind=kind or "")


def write_response(folder: Path, saved: SavedResponse, body: bytes) -> Path:
    """Write a body and what `parse_file` reads beside it; returns the body's path. Raises ShardcrawlError."""
    path = folder / _file_name(saved.key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        Path(f"{path}.json").write_bytes(msgspec.json.format(msgspec.json.encode(saved)) + b"\n")
    except OSError as error:
        raise ShardcrawlError(f"--save {folder}: {error.strerror}; name a folder that can be written") from error
    return path


def _file_name(key: str) -> str:
    """A file's name for the key: the key itself where it is one, and no other key's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.")[:MAX_NAME_CHARACTERS]
    if name and name == key and not name.endswith(".json"):
        return name
    return f"{name}-{digest(key).hex()[:8]}".strip("-")


def _ended(page: Page) -> tuple[str, str | None]:
    if page.again is None:
        return page.outcome.value, page.reason
    return AGAIN_WORDS[page.again.waits], page.again.reason


def _pairs(headers: GivenHeaders | None) -> Sequence[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers or ()


def _requested_url(job: Job, keys: Sequence[str]) -> str:
    try:
        return Template(job.request).target(keys).href
    except InvalidUrl as error:
        raise UsageError(f"response: key {keys[0]!r} {error}; give it a key that the job can request") from error


def _end_of(job: Job, url: str, response: Response) -> End:
    """How the keys end by status and headers alone. Raises UsageError when these do not decide it."""
    try:
        target = parse_url(url)
    except InvalidUrl as error:
        raise UsageError(f"response: url {url!r} {error}") from error
    status, hops, now = response.status, job.request.redirects, time.time()
    arguments = status, response.headers, target, NO_ATTEMPTS, job.retry, hops
    step = after_response(*arguments, body=response.body, reads_accepted=job.reads_accepted, now=now, jitter=0.0).step
    if not isinstance(step, End):
        raise UsageError(f"response: status {status} decides no key: a run sends another request, and calls no parser")
    return step


def _tables_of(page: Page, tables: Sequence[TableSettings]) -> Tables:
    found: Tables = {table.name: [] for table in tables}
    for number, row in page.records:
        table = tables[number]
        values = zip(table.columns, row, strict=True)
        found[table.name].append({name: _value(kind, value) for (name, kind), value in values})
    return found


def _value(kind: str, value: Any) -> Any:
    """The value of a column, for people: one of JSON without its quotes."""
    if value is None or column_type(kind).name not in ("json", "jsonb"):
        return value
    texts = value if isinstance(value, list) else [value]
    values = [None if text is None else exact_json.loads(text.encode()) for text in texts]
    return values if isinstance(value, list) else values[0]


@contextmanager
def _alarm_kept() -> Iterator[None]:
    """Give SIGALRM and its timer back to whoever had them, like pytest-timeout: TimeLimit takes them."""
    handler, (seconds, interval) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        if handler is not None and signal.getsignal(signal.SIGALRM) is not handler:
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, seconds, interval)
