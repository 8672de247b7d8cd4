from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.model import MAX_REASON_CHARACTERS, HttpResponse, Page
from crawler.parse import hook
from crawler.parse.columns import Table
from crawler.parse.hook import Hook
from crawler.parse.response import Response
from tests.crawler.examples import a_job, a_page, a_table

TABLES = [Table(a_table("facts", n="smallint")), Table(a_table("notes", text="text"))]


class Sent(dict[str, str]):
    """Headers of a response."""

    def has(self, names: Iterable[str]) -> bool:
        return not self.keys().isdisjoint(names)

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return list(super().items())


def applied(parse: Callable[[Response], Any], *keys: str, body: bytes = b"{}", status: int = 200) -> list[Page]:
    pages = [a_page(key, body=None) for key in keys]
    headers = Sent({"content-type": "text/plain; charset=latin-1"})
    Hook(parse, TABLES, __name__).apply(pages, "https://upstream.example/api", HttpResponse(status, headers, body))
    return pages


def results(pages: list[Page]) -> list[tuple[Outcome, str | None, list[Any]]]:
    return [(page.outcome, page.reason, page.records) for page in pages]


STORED = Outcome.STORED


def test_the_records_of_a_single_key_need_no_key_field() -> None:
    pages = applied(lambda response: {"facts": [{"n": 1}, (2,)], "notes": ({"text": t} for t in "ab")}, "a")
    assert results(pages) == [(STORED, None, [(0, (1,)), (0, (2,)), (1, ("a",)), (1, ("b",))])]


def test_the_records_of_several_keys_have_a_key_field() -> None:
    pages = applied(lambda response: {"facts": [{"_key": "b", "n": 2}, {"_key": "a", "n": 1}]}, "a", "b", "c")
    assert results(pages) == [(STORED, None, [(0, (1,))]), (STORED, None, [(0, (2,))]), (STORED, None, [])]


def test_a_parser_sees_the_whole_response() -> None:
    read: list[Any] = []

    def parse(response: Response) -> None:
        read.append((response.keys, response.url, response.status, response.headers.get("content-type")))
        read.append((response.json(), response.text()))

    applied(parse, "a", "b", body='"é"'.encode(), status=201)
    assert read == [
        (("a", "b"), "https://upstream.example/api", 201, "text/plain; charset=latin-1"),
        ("é", '"Ã©"'),
    ]


def test_the_key_of_a_response_for_several_is_an_error() -> None:
    assert results(applied(lambda response: {"facts": [{"n": len(response.key)}]}, "abc")) == [
        (STORED, None, [(0, (3,))])
    ]
    for outcome, reason, _ in results(applied(lambda response: {"facts": [{"n": len(response.key)}]}, "a", "b")):
        assert (outcome, reason) == (
            Outcome.FAILED,
            "parse: ValueError: this response is for 2 keys; use response.keys",
        )


def test_a_parser_says_which_keys_are_gone_or_failed_and_their_records_are_dropped() -> None:
    def parse(response: Response) -> dict[str, Any]:
        response.gone("a")
        response.failed("b", "no revisions")
        return {"facts": [{"_key": key, "n": 1} for key in response.keys]}

    assert results(applied(parse, "a", "b", "c")) == [
        (Outcome.GONE, "the response says that it does not exist", []),
        (Outcome.FAILED, "no revisions", []),
        (STORED, None, [(0, (1,))]),
    ]


def test_a_reason_becomes_bounded_text_whatever_the_parser_gives() -> None:
    def parse(response: Response) -> None:
        response.failed("a", 404)  # type: ignore[arg-type]
        response.gone("b", "x" * 10_000)

    pages = applied(parse, "a", "b")
    assert pages[0].reason == "404"
    assert pages[1].reason == "x" * MAX_REASON_CHARACTERS


def test_an_outcome_for_a_key_of_another_request_fails_all_keys() -> None:
    pages = applied(lambda response: response.gone("z"), "a", "b")
    assert [page.reason for page in pages] == ["parse: ValueError: key 'z' is not one of this request's"] * 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("query"), "parse: KeyError: 'query'"),
        (RuntimeError("first\nsecond"), "parse: RuntimeError: first"),
        (AssertionError(), "parse: AssertionError: AssertionError"),
        (RecursionError("deep"), "parse: RecursionError: deep"),
        (SystemExit("bye"), "parse: SystemExit: bye"),
    ],
)
def test_a_parser_that_raises_fails_its_keys_alone(error: BaseException, reason: str) -> None:
    def parse(response: Response) -> None:
        response.gone("a")
        raise error

    assert results(applied(parse, "a", "b")) == [(Outcome.FAILED, reason, [])] * 2


def test_the_message_of_a_parsers_error_is_bounded() -> None:
    def parse(response: Response) -> None:
        raise ValueError("x" * 100_000)

    (page,) = applied(parse, "a")
    assert page.reason is not None
    assert len(page.reason) == MAX_REASON_CHARACTERS


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_an_exception_that_ends_the_process_is_not_caught(error: type[BaseException]) -> None:
    def parse(response: Response) -> None:
        raise error

    with pytest.raises(error):
        applied(parse, "a")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({"pages": [{"n": 1}]}, "no table 'pages' in the job; it has facts, notes"),
        ({"facts": [{"n": 1}]}, 'facts: with several keys in a request a record says whose it is: "_key"'),
        ({"facts": [(1,)]}, 'facts: with several keys in a request a record says whose it is: "_key"'),
        ({"facts": [{"_key": "z", "n": 1}]}, "facts: key 'z' is not one of this request's"),
        ({"facts": [{"_key": ["a"], "n": 1}]}, "unhashable"),
        ({"facts": None}, "not iterable"),
        ([{"n": 1}], "items"),
    ],
)
def test_records_that_belong_to_no_table_or_key_fail_the_request(records: Any, words: str) -> None:
    for outcome, reason, kept in results(applied(lambda response: records, "a", "b")):
        assert outcome is Outcome.FAILED
        assert reason is not None
        assert reason.startswith("parse: ")
        assert words in reason
        assert kept == []


def test_a_bad_record_costs_only_its_key() -> None:
    records = [
        {"_key": "a", "n": 1},
        {"_key": "b", "n": 1},
        {"_key": "b", "n": 99_999},
        {"_key": "b", "n": 2},
        {"_key": "c", "n": 3},
    ]
    assert results(applied(lambda response: {"facts": records}, "a", "b", "c")) == [
        (STORED, None, [(0, (1,))]),
        (Outcome.FAILED, "parse: facts.n: 99999 does not fit into 16 bits", []),
        (STORED, None, [(0, (3,))]),
    ]


def test_a_key_that_failed_by_its_record_is_not_made_gone() -> None:
    def parse(response: Response) -> dict[str, Any]:
        response.gone("a")
        return {"facts": [{"n": 1.5}]}

    assert results(applied(parse, "a")) == [(Outcome.FAILED, "parse: facts.n: 1.5 is no whole number", [])]


@pytest.mark.parametrize("records", [None, {}, {"facts": []}])
def test_a_parser_may_return_no_records(records: Any) -> None:
    assert results(applied(lambda response: records, "a")) == [(STORED, None, [])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for jobs; modules that are imported meanwhile are removed afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def loaded(folder: Path, source: str, python: str = "its_parser:parse") -> Hook | None:
    folder.mkdir(exist_ok=True)
    (folder / "its_parser.py").write_text(source)
    job = a_job(parse={"python": python}, tables=[{"name": "facts", "columns": {"n": "bigint"}}])
    return hook.load(replace(job, folder=str(folder)))


def records_of(parser: Hook | None) -> list[Any]:
    assert parser is not None
    page = a_page("four")
    parser.apply([page], "", HttpResponse(200, Sent(), b""))
    assert page.outcome is Outcome.STORED, page.reason
    return page.records


def test_the_parser_is_imported_from_the_jobs_folder(folder: Path) -> None:
    parser = loaded(folder, "def parse(response):\n    return {'facts': [{'n': len(response.key)}]}\n")
    assert records_of(parser) == [(0, (4,))]


def test_two_jobs_whose_parsers_have_one_name_run_their_own_code(folder: Path) -> None:
    source = "def parse(response):\n    return {{'facts': [{{'n': {}}}]}}\n"
    first, second = (loaded(folder / str(number), source.format(number)) for number in (1, 2))
    assert (records_of(first), records_of(second)) == ([(0, (1,))], [(0, (2,))])


def test_a_parser_imports_its_neighbours_and_parts_of_its_package(folder: Path) -> None:
    package = folder / "ours" / "inner"
    package.mkdir(parents=True)
    (folder / "neighbour.py").write_text("ONE = 1\n")
    (package.parent / "__init__.py").write_text("")
    (package.parent / "sibling.py").write_text("TWO = 2\n")
    (package / "module.py").write_text(
        "from neighbour import ONE\nfrom ..sibling import TWO\nfrom ours.sibling import TWO as AGAIN\n"
        "def parse(response):\n    return {'facts': [{'n': ONE + TWO + AGAIN}]}\n"
    )
    assert records_of(loaded(folder, "", "ours.inner.module:parse")) == [(0, (5,))]


def test_a_neighbour_that_imports_the_parser_sees_the_same_module(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "neighbour.py").write_text("from its_parser import found\nfound.append(1)\ndef add(): found.append(2)\n")
    parser = loaded(
        folder,
        "found = []\nfrom neighbour import add\n"
        "def parse(response):\n    add()\n    return {'facts': [{'n': n} for n in found]}\n",
    )
    assert records_of(parser) == [(0, (1,)), (0, (2,))]


def test_a_package_that_imports_itself_by_its_name_is_imported_once(folder: Path) -> None:
    (folder / "ours").mkdir()
    (folder / "ours" / "__init__.py").write_text("found = []\n")
    (folder / "ours" / "module.py").write_text(
        "import ours\nours.found.append(1)\nfrom . import found\n"
        "def parse(response):\n    return {'facts': [{'n': n} for n in found]}\n"
    )
    assert records_of(loaded(folder, "", "ours.module:parse")) == [(0, (1,))]


def test_a_parser_may_have_the_name_of_an_installed_module(folder: Path) -> None:
    (folder / "json.py").write_text(
        "from json import loads\ndef parse(response): return {'facts': [{'n': loads('7')}]}\n"
    )
    assert records_of(loaded(folder, "", "json:parse")) == [(0, (7,))]


def test_an_installed_parser_needs_no_folder_that_can_be_read(tmp_path: Path) -> None:
    unreadable = str(tmp_path / ("x" * 300))  # its name is too long, which root may not look into either
    assert hook.load(replace(a_job(parse={"python": "crawler.parse.hook:load"}), folder=unreadable)) is not None


def test_an_installed_parser_is_imported_by_its_name(folder: Path) -> None:
    parser = loaded(folder, "", "crawler.parse.hook:load")
    assert parser is not None
    assert parser._parse is hook.load


def test_a_job_without_a_parser_has_no_hook() -> None:
    assert hook.load(a_job()) is None


@pytest.mark.parametrize(
    ("source", "python", "words"),
    [
        ("", "no_such_parser:parse", "cannot import no_such_parser: ModuleNotFoundError: No module named"),
        ("def parse(", "its_parser:parse", "cannot import its_parser: SyntaxError"),
        ("1 / 0", "its_parser:parse", "cannot import its_parser: ZeroDivisionError: division by zero"),
        ("raise RuntimeError('one\\ntwo')", "its_parser:parse", "cannot import its_parser: RuntimeError: one"),
        ("import sys; sys.exit(0)", "its_parser:parse", "cannot import its_parser: SystemExit: 0"),
        ("", "its_parser:parse", "module its_parser has no function 'parse'"),
        ("parse = 5", "its_parser:parse", "module its_parser has no function 'parse'"),
    ],
)
def test_a_parser_that_cannot_be_imported_is_a_usage_error_in_one_line(
    folder: Path, source: str, python: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(folder, source, python)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_whole_number_too_large_for_orjson_keeps_its_digits() -> None:
    """orjson reads 2^64 + 1 as a float; an id that was rounded would be another id."""
    body = b'{"id": 18446744073709551617, "small": 7, "real": 1.5}'
    response = Response(["a"], "http://host/a", 200, Sent(), body)
    assert response.json() == {"id": 2**64 + 1, "small": 7, "real": 1.5}
    assert isinstance(response.json()["id"], int)
