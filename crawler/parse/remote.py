"""Parsing in a child process: the task that goes there, the handler that runs there, and the result that comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

from coordinator.errors import first_line
from coordinator.model import EntryId, FoundKey, KeyContext, Outcome, ShardId
from coordinator.user_code import OutOfTime, TimeLimit
from crawler.job.job import Job
from crawler.model import Again, HttpResponse, Item, OpenBlock, Page
from crawler.parse import hook
from crawler.parse.code import check_parser
from crawler.pool.protocol import pickled, unpickled

# A page outside of a worker needs some block, which nothing reads.
NO_BLOCK = OpenBlock(ShardId(0), EntryId(""), 0, 0)
# A page in the child has this ETag, and Page.fail removes it: so it shows whether Page.fail was called.
_ETAG_UNTIL_FAIL = "set"


class ParserSetup(NamedTuple):
    """What the child imports: the job's parser, under the name that its module has in the worker.

    `files` are the digests of the worker's own files: others are not imported.
    """

    job: Job
    module_name: str
    files: Mapping[str, str] | None = None
    kind: str = ""


class ParseTask(NamedTuple):
    """One response to parse; `keys` with their digests and contexts, `headers` as Headers.items gives them.

    A tuple, which pickle handles in C.
    """

    keys: Sequence[tuple[str, bytes, KeyContext]]
    url: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class ParseResult(NamedTuple):
    """How one key ended. A tuple, which pickle handles in C.

    `is_error`: the parser raised, or a record of the key was bad, so the page keeps the reason only. It is False when
    the parser said the outcome itself, with Response.failed too. `encoding` is Response.encoding. `records` are a
    pickle of their own: when it cannot be read, its key fails and no other. `found`, `again` and `content_digest` are
    those of the page.
    """

    outcome: Outcome
    reason: str | None
    is_error: bool
    encoding: str | None
    records: bytes
    found: Sequence[FoundKey] = ()
    again: Again | None = None
    content_digest: bytes | None = None


class ParsedResponse(NamedTuple):
    """What became of the keys of one response, in their order, what the parser has shown beside that, and how long it
    took.
    """

    keys: Sequence[ParseResult]
    remarks: hook.Remarks | None
    seconds: float


class ListedHeaders:
    """Headers of a response that was received elsewhere; the names in `items` are in lower case."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        self._items = items

    def get(self, name: str) -> str | None:
        """Do what Headers.get does."""
        wanted = name.lower()
        return next((value for key, value in self._items if key == wanted), None)

    def joined(self, name: str) -> str | None:
        """Do what Headers.joined does."""
        wanted = name.lower()
        return ", ".join(value for key, value in self._items if key == wanted) or None

    def has(self, names: Iterable[str]) -> bool:
        """Do what Headers.has does."""
        wanted = set(names)
        return any(key in wanted for key, _ in self._items)

    def items(self) -> list[tuple[str, str]]:
        """Do what Headers.items does."""
        return list(self._items)


def parse_task(pages: Sequence[Page], url: str, response: HttpResponse) -> ParseTask:
    """The task to parse this response for these pages."""
    keys = [(page.item.key, page.item.digest, page.item.context) for page in pages]
    return ParseTask(keys, url, response.status, response.headers.items(), response.body)


def parse_handler(setup: ParserSetup) -> Callable[[ParseTask], ParsedResponse]:
    """The function that applies the job's parser in the child.

    Raises UsageError when the parser cannot be imported, or is another one than the worker's by now.
    """
    check_parser(setup.job, setup.files or {})
    parser = hook.load(setup.job, setup.module_name, setup.kind)
    assert parser is not None
    limit = TimeLimit(setup.job.parse.timeout, " ([parse] timeout)")

    def handle(task: ParseTask) -> ParsedResponse:
        items = (Item(key, digest, NO_BLOCK, context) for key, digest, context in task.keys)
        pages = [Page(item, None, Outcome.STORED, etag=_ETAG_UNTIL_FAIL) for item in items]
        response = HttpResponse(task.status, ListedHeaders(task.headers), task.body)
        began = perf_counter()
        remarks = apply_within(limit, parser, pages, task.url, response)
        return ParsedResponse([_result_of(page) for page in pages], remarks, perf_counter() - began)

    return handle


def apply_within(
    limit: TimeLimit, parser: hook.Hook, pages: Sequence[Page], url: str, response: HttpResponse
) -> hook.Remarks | None:
    """Do what Hook.apply does; a parser that is out of time fails its pages."""
    try:
        with limit:
            return parser.apply(pages, url, response)
    except OutOfTime as error:
        return parser.fail(pages, error)


def assign_results(pages: Sequence[Page], results: Sequence[ParseResult]) -> None:
    """Give each page what the child made of its key."""
    for page, result in zip(pages, results, strict=True):
        try:
            records = unpickled(result.records)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
            page.fail(_not_picklable(error))
            continue
        if result.is_error:
            page.fail(result.reason or "")
        else:
            page.outcome, page.reason, page.records = result.outcome, result.reason, records
            page.encoding, page.found, page.again = result.encoding, list(result.found), result.again
            page.content_digest = result.content_digest


def _result_of(page: Page) -> ParseResult:
    try:
        records = pickled(page.records)
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
        page.fail(_not_picklable(error))
        records = pickled([])
    is_error, digest = page.etag is None, page.content_digest
    return ParseResult(page.outcome, page.reason, is_error, page.encoding, records, page.found, page.again, digest)


def _not_picklable(error: Exception) -> str:
    return f"parse: a record that cannot leave the parser's process: {type(error).__name__}: {first_line(error)}"
