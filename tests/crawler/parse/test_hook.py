from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.model import Outcome
from crawler.job.sections.parse import ParseSettings
from crawler.model import MAX_REASON_CHARACTERS, HttpResponse, Page
from crawler.parse import hook
from crawler.parse.columns import Table
from crawler.parse.hook import Hook
from crawler.parse.response import Response
from tests.crawler.examples import a_job, a_page, a_table

TABLES = [Table(a_table("facts", n="smallint")), Table(a_table("notes", text="text"))]


class Sent(dict[str, str]):
    """Headers of a response."""

    def joined(self, name: str) -> str | None:
        return self.get(name)

    def has(self, names: Iterable[str]) -> bool:
        return not self.keys().isdisjoint(names)

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return list(super().items())


def applied(parse: Callable[[Response], Any], *keys: str, body: bytes = b"{}", status: int = 200) -> list[Page]:
    pages = [a_page(key, body=None) for key in keys]
    headers = Sent({"content-type": "text/plain; charset=latin1"})
    Hook(parse, TABLES, __name__).apply(pages, "https://upstream.example/api", HttpResponse(status, headers, body))
    return pages


def results(pages: list[Page]) -> list[tuple[Outcome, str | None, list[Any]]]:
    return [(page.outcome, page.reason, page.records) for page in pages]


STORED = Outcome.STORED
NO_RECORD = (Outcome.FAILED, "no record", [])


def test_the_records_of_a_single_key_need_no_key_field() -> None:
    pages = applied(lambda response: {"facts": [{"n": 1}, (2,)], "notes": ({"text": t} for t in "ab")}, "a")
    assert results(pages) == [(STORED, None, [(0, (1,)), (0, (2,)), (1, ("a",)), (1, ("b",))])]


def test_the_records_of_several_keys_have_a_key_field() -> None:
    pages = applied(lambda response: {"facts": [{"_key": "b", "n": 2}, {"_key": "a", "n": 1}]}, "a", "b", "c")
    assert results(pages) == [(STORED, None, [(0, (1,))]), (STORED, None, [(0, (2,))]), NO_RECORD]


def test_a_parser_sees_the_whole_response() -> None:
    read: list[Any] = []

    def parse(response: Response) -> None:
        read.append((response.keys, response.url, response.status, response.headers.get("content-type")))
        read.append((response.json(), response.text()))

    applied(parse, "a", "b", body='"é"'.encode(), status=201)
    assert read == [
        (("a", "b"), "https://upstream.example/api", 201, "text/plain; charset=latin1"),
        ("é", '"Ã©"'),
    ]


@pytest.mark.parametrize(
    ("content_type", "body", "value", "encoding"),
    [
        ("application/json", '{"a":"é"}'.encode(), {"a": "é"}, "utf-8"),
        ("application/json", b'{"a":1}', {"a": 1}, "utf-8"),
        ("application/json", '\ufeff{"a":"é"}'.encode(), {"a": "é"}, "utf-8"),
        ("application/json", '{"a":"é"}'.encode("utf-16"), {"a": "é"}, "utf-16le"),
        ("application/json", b'\0{\0"\0a\0"\0:\x001\0}', {"a": 1}, "utf-16be"),
        ("application/json; charset=latin1", b'{"a":"\xe9"}', {"a": "é"}, "windows-1252"),
        ("application/json; charset=shift_jis", '{"a":"あ"}'.encode("cp932"), {"a": "あ"}, "shift_jis"),
        ("application/json", b'{"a":"\xe9"}', {"a": "é"}, "windows-1252"),
        ("application/json; charset=utf-8", b'{"a":"\xe9"}', {"a": "\ufffd"}, "utf-8, 1 replaced"),
        ("application/json; charset=utf8mb4", '{"a":"é"}'.encode(), {"a": "é"}, "utf-8"),
        (
            None,
            '{"n":123456789012345678901,"a":"é"}'.encode("utf-16-le"),
            {"n": 123456789012345678901, "a": "é"},
            "utf-16le",
        ),
    ],
)
def test_json_is_read_in_every_encoding(content_type: str | None, body: bytes, value: Any, encoding: str) -> None:
    read: list[Any] = []
    page = a_page("a", body=None)
    sent = Sent({} if content_type is None else {"content-type": content_type})
    parse = Hook(lambda response: read.append(response.json()) or {}, TABLES, __name__)
    parse.apply([page], "", HttpResponse(200, sent, body))
    assert read == [value]
    assert page.encoding == encoding


@pytest.mark.parametrize("body", [b"", b" ", b"{", b'{"a":"\xe9', b"\xff\xfe", b"\x89PNG", b"\0"])
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    response = Response(["a"], "", 200, Sent({}), body)
    with pytest.raises(ValueError):  # noqa: PT011 - each library has its own words
        response.json()


def test_a_page_says_how_its_text_was_decoded() -> None:
    def parse(response: Response) -> None:
        assert response.text() == "caf\ufffd \ufffd"
        assert response.encoding == "utf-8, 2 replaced"

    headers = Sent({"content-type": "text/html; charset=utf-8"})
    page = a_page("a", body=None)
    Hook(parse, TABLES, __name__).apply([page], "", HttpResponse(200, headers, b"caf\xe9 \0"))
    assert (page.outcome, page.reason, page.encoding) == (STORED, None, "utf-8, 2 replaced")


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


class PanicException(BaseException):
    """What Rust's libraries for Python raise: it is no Exception, and no module exports it."""


class WithoutText(Exception):
    def __str__(self) -> str:
        raise AttributeError("message")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("query"), "parse: KeyError: 'query'"),
        (RuntimeError("first\nsecond"), "parse: RuntimeError: first"),
        (AssertionError(), "parse: AssertionError"),
        (RecursionError("deep"), "parse: RecursionError: deep"),
        (SystemExit("bye"), "parse: SystemExit: bye"),
        (asyncio.CancelledError("x"), "parse: CancelledError: x"),
        (PanicException("out of bounds"), "parse: PanicException: out of bounds"),
        (WithoutText(), "parse: WithoutText"),
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
        ({"facts": [{"_key": ["a"], "n": 1}]}, "facts: _key is ['a']; give it a text"),
        ({"facts": None}, "facts: None is no list of records; return [] for none"),
        ({"facts": {"n": 1}}, "facts: {'n': 1} is no list of records"),
        ({"facts": 5}, "facts: 5 is no list of records"),
        ([{"n": 1}], "the parser returned a list; return the records of each table"),
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


def test_an_import_that_never_ends_is_a_usage_error_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "IMPORT_SECONDS", 0.1)
    with pytest.raises(UsageError, match=r"cannot import its_parser: OutOfTime: no result within 0\.1 s"):
        loaded(folder, "while True: pass")


def test_a_whole_number_too_large_for_orjson_keeps_its_digits() -> None:
    """orjson reads 2^64 + 1 as a float; an id that was rounded would be another id."""
    body = b'{"id": 18446744073709551617, "small": 7, "real": 1.5}'
    response = Response(["a"], "http://host/a", 200, Sent(), body)
    assert response.json() == {"id": 2**64 + 1, "small": 7, "real": 1.5}
    assert isinstance(response.json()["id"], int)


# -- keys without a record, names of no key


def remarked(
    parse: Callable[[Response], Any], *keys: str, body: str = "{}", tables: bool = True, **settings: Any
) -> tuple[list[tuple[Outcome, str | None, list[Any]]], hook.Remarks | None]:
    pages = [a_page(key, body=None) for key in keys]
    parser = Hook(parse, TABLES if tables else [], __name__, ParseSettings(**settings))
    remarks = parser.apply(pages, "https://upstream.example/api", HttpResponse(200, Sent(), body.encode()))
    return results(pages), remarks


EMPTY = (STORED, None, [])
GONE = (Outcome.GONE, "no record", [])


@pytest.mark.parametrize(
    ("keys", "settings", "expected"),
    [
        (["a"], {}, EMPTY),
        (["a", "b"], {}, NO_RECORD),
        (["a"], {"no_record": "failed"}, NO_RECORD),
        (["a", "b"], {"no_record": "failed"}, NO_RECORD),
        (["a"], {"no_record": "gone"}, GONE),
        (["a", "b"], {"no_record": "gone"}, GONE),
        (["a", "b"], {"no_record": "stored"}, EMPTY),
        (["a", "b"], {"tables": False}, EMPTY),
        (["a"], {"tables": False, "no_record": "failed"}, EMPTY),
    ],
)
def test_a_key_without_a_record(keys: list[str], settings: Any, expected: Any) -> None:
    assert remarked(lambda response: {}, *keys, **settings) == ([expected] * len(keys), None)


def test_what_the_parser_says_of_a_key_wins_over_no_record() -> None:
    def parse(response: Response) -> None:
        response.gone("a", "why")
        response.failed("b", "because")

    found, _ = remarked(parse, "a", "b", "c", no_record="gone")
    assert found == [(Outcome.GONE, "why", []), (Outcome.FAILED, "because", []), GONE]


def test_a_name_of_no_key_fails_nothing_and_is_remarked() -> None:
    rows = [{"_key": "a", "n": 1}, {"_key": "Berlin", "n": 2}, {"_key": None, "n": 3}]
    found, remarks = remarked(lambda response: {"facts": rows}, "a", "b")
    assert found == [(STORED, None, [(0, (1,))]), NO_RECORD]
    assert remarks == (None, ["Berlin", "None"])


def test_a_key_alone_whose_records_are_of_another_name_has_no_record() -> None:
    """It is stored when the list is empty; but here it is not, so something went wrong."""
    found, remarks = remarked(lambda response: {"facts": [{"_key": "Berlin", "n": 2}]}, "berlin")
    assert (found, remarks) == ([NO_RECORD], (None, ["Berlin"]))


def test_records_and_outcomes_are_also_those_of_keys_that_the_upstream_calls_by_another_name() -> None:
    """Two keys that are the same page for the upstream end alike, whichever of them the parser names."""
    body = """{"query": {
        "normalized": [{"from": "a_b", "to": "A b"}, {"from": "a b", "to": "A b"}, {"from": "x", "to": "X"}],
        "redirects": [{"from": "R", "to": "A b"}, {"from": "S", "to": "X"}]}}"""

    def parse(response: Response) -> dict[str, Any]:
        response.gone("X")
        return {"facts": [{"_key": "A b", "n": 1}, {"_key": response.key_for("A b"), "n": 2}]}

    found, remarks = remarked(parse, "a_b", "x", "a b", "R", "S", "z", body=body)
    both, gone = (STORED, None, [(0, (1,)), (0, (2,))]), (Outcome.GONE, "the response says that it does not exist", [])
    assert (found, remarks) == ([both, gone, both, both, gone, NO_RECORD], None)


def test_a_key_with_records_of_its_own_gets_none_of_its_namesake() -> None:
    body = '{"query": {"redirects": [{"from": "a", "to": "b"}]}}'
    rows = [{"_key": "a", "n": 1}, {"_key": "b", "n": 2}]
    found, _ = remarked(lambda response: {"facts": rows}, "a", "b", body=body)
    assert found == [(STORED, None, [(0, (1,))]), (STORED, None, [(0, (2,))])]


def test_an_error_is_remarked_with_the_reason_of_the_pages() -> None:
    found, remarks = remarked(lambda response: response.json()["query"], "a", "b")
    reason = "parse: KeyError: 'query'"
    assert (found, remarks) == ([(Outcome.FAILED, reason, [])] * 2, (reason, ()))


def test_a_parsers_error_names_the_innermost_line_of_the_users_own_files(folder: Path) -> None:
    (folder / "its_helper.py").write_text("import json\n\ndef title(page):\n    return json.loads(page['title'])\n")
    installed = folder / ".venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "its_library.py").write_text("def fail():\n    raise OSError('x' * 3000)\n")
    parser = loaded(
        folder,
        f"import sys\nsys.path.append({str(installed)!r})\n"
        "import its_helper, its_library\n\n"
        "def parse(response):\n"
        "    if response.key == 'library':\n"
        "        its_library.fail()\n"
        "    return {'facts': ({'n': its_helper.title({'title': response.key})} for _ in '1')}\n",
    )
    assert parser is not None
    reasons = []
    for key in ("{", "library", "1"):
        page = a_page(key)
        parser.apply([page], "", HttpResponse(200, Sent(), b""))
        reasons.append(page.reason)
    assert reasons[0] is not None
    assert reasons[0].startswith("parse: JSONDecodeError: Expecting property name")
    assert reasons[0].endswith(" (its_helper.py, line 4)")
    assert reasons[1] is not None
    assert reasons[1].startswith("parse: OSError: xxx")
    assert reasons[1].endswith("x (its_parser.py, line 7)")
    assert reasons[2] is None


def test_a_parser_that_cannot_be_imported_names_the_line(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"ZeroDivisionError: division by zero \(its_parser.py, line 2\)"):
        loaded(folder, "import json\n1 / 0\n")
