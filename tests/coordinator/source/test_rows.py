"""Sources of rows: the columns that make the key, those that travel with it, and that every cursor resumes exactly."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from arro3.core import Array, DataType, Table
from arro3.io import write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import SourceError
from coordinator.model import Block, KeyContext, ShardId
from coordinator.queue.sharding import BLOCK_KEYS
from coordinator.queue.wire import decode_block, encode_block
from coordinator.source import Columns, Cursor, KeyRule, Refused, Source, open_source
from coordinator.source.input.cut_lines import MAX_ROW_BYTES
from coordinator.source.rows.columns import MAX_ITEM_BYTES, BadRow
from tests.coordinator.source.test_source import COMPRESSED, PACK

START = Cursor()
IDS = KeyRule(absolute_url=False, separator="|")
SKU = Columns(("sku",), ("caption",))
TEXTS = ["Q1", "", 'a "b"', "two\nlines", "cr\rlf\r\n", "käse, 日本", " blank ", "'"]


@dataclass
class All:
    """What a source has, read to its end."""

    keys: list[str] = field(default_factory=list)
    fields: dict[str, Mapping[str, str]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    def add(self, source: Source, limit: int) -> tuple[Cursor, bool]:
        """Read once."""
        chunk = source.read(limit, 60)
        assert len(chunk.keys) + len(chunk.refused) <= limit
        self.keys += chunk.keys
        self.fields = {**chunk.fields, **self.fields}
        self.refused += chunk.refused
        return chunk.end, chunk.exhausted


def source_of(folder: Path, path: str, columns: Columns | None = SKU, cursor: Cursor = START) -> Source:
    return open_source(path, None, columns=columns, cursor=cursor, key_rule=IDS, folder=folder)


def whole(source: Source, limit: int = 1_000) -> All:
    found, exhausted = All(), False
    with closing(source):
        while not exhausted:
            _, exhausted = found.add(source, limit)
    return found


def resumed(folder: Path, path: str, columns: Columns, limit: int) -> All:
    """Read with a new source for each chunk, as a coordinator that dies after each."""
    found, cursor, exhausted = All(), Cursor(), False
    while not exhausted:
        with closing(source_of(folder, path, columns, Cursor.parse(str(cursor)))) as source:
            cursor, exhausted = found.add(source, limit)
    return found


def csv_text(rows: Sequence[Sequence[str]], line_end: str = "\r\n", delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    # csv writes a cell with another line end than this one without quotes.
    csv.writer(text, lineterminator=line_end, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue()


ROWS = [["sku", "caption", "rest"], ["a1", "Mug", "x"], ["b2", 'say "hi",\nthere', "y\r\n"], ["a1", "second", ""]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_a_csv_names_its_columns_and_the_first_row_of_a_key_counts(
    tmp_path: Path, ending: str, delimiter: str, line_end: str, encoding: str
) -> None:
    (tmp_path / f"t.{ending}").write_bytes(csv_text(ROWS, line_end, delimiter).encode(encoding))
    found = whole(source_of(tmp_path, f"t.{ending}"))
    assert (found.keys, found.refused) == (["a1", "b2", "a1"], [])
    assert found.fields == {
        "a1": {"sku": "a1", "caption": "Mug"},
        "b2": {"sku": "b2", "caption": 'say "hi",\nthere'},
    }


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_a_csv_resumes_at_every_row(tmp_path: Path, suffix: str, limit: int, encoding: str) -> None:
    path = f"t.csv{suffix}"
    (tmp_path / path).write_bytes(PACK[suffix](csv_text([*ROWS, ["short"], ["c3", "é", ""]]).encode(encoding)))
    found = resumed(tmp_path, path, SKU, limit)
    assert found == whole(source_of(tmp_path, path))
    assert found.keys == ["a1", "b2", "a1", "c3"]
    assert [bad.place for bad in found.refused] == ["line 7"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 5),
)
def test_what_csv_writes_is_read_back_in_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], line_end: str, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    numbered = [[f"k{number}", *row] for number, row in enumerate(rows)]
    (folder / "t.csv").write_text(csv_text([["sku", "caption", "rest"], *numbered], line_end), newline="")
    found = resumed(folder, "t.csv", SKU, limit)
    assert found.keys == [row[0] for row in numbered]
    assert [found.fields[row[0]]["caption"] for row in numbered] == [row[1] for row in numbered]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("short", "has 1 columns, and the header 2"),
        ("a,b,c", "has 3 columns, and the header 2"),
        (",caption", "its sku is empty"),
        ("x|y,caption", "contains the separator '|', which joins the keys of one request"),
        (f"big,{'x' * 12_000}", "its key and fields have 12,016 bytes, and 12,000 may travel"),
        (
            'huge,"' + "line\n".rjust(100) * (MAX_ROW_BYTES // 5) + '"',
            "is a row of more than 1,048,576 bytes; is a quote not closed?",
        ),
        (f"huge,{'x' * (16 * MAX_ROW_BYTES)}", "is a row of more than 1,048,576 bytes; is a quote not closed?"),
    ],
    ids=["short", "long", "empty", "separator", "big", "huge quoted", "huge"],
)
def test_a_bad_row_of_a_csv_is_refused_with_its_line_and_the_next_one_is_read(
    tmp_path: Path, row: str, reason: str
) -> None:
    (tmp_path / "t.csv").write_text(f'sku,caption\n"first","\n"\n{row}\nlast,1\n')
    found = whole(source_of(tmp_path, "t.csv"))
    assert found.keys == ["first", "last"]
    assert [(bad.line, bad.reason) for bad in found.refused] == [(4, reason)]
    assert len(found.refused[0].key) < 250
    assert resumed(tmp_path, "t.csv", SKU, 1) == found


@pytest.mark.parametrize("text", ['"a, b, c";sku;caption\n1;k;2\n', "\r\n\nsku|caption\nk|2\n"])
def test_the_header_says_what_stands_between_the_cells(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text + text.split("\n")[-2], newline="")
    found = resumed(tmp_path, "t.csv", SKU, 1)
    assert (found.keys, found.fields, found.refused) == (["k", "k"], {"k": {"sku": "k", "caption": "2"}}, [])


def test_a_refused_row_is_never_taken_for_a_key_of_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sku,caption\nQ1\nQ1,x\n")
    found = whole(source_of(tmp_path, "t.csv"))
    assert (found.keys, [bad.key for bad in found.refused]) == (["Q1"], ["Q1 (line 2)"])


def test_a_quote_that_is_not_closed_is_refused_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('sku,caption\na,1\nb,"2\nc,3\n')
    found = whole(source_of(tmp_path, "t.csv"))
    assert (found.keys, [(bad.line, bad.reason) for bad in found.refused]) == (
        ["a"],
        [(3, "has a quote that is not closed")],
    )


@pytest.mark.parametrize(
    ("rows", "keys", "reason"),
    [
        # The quote of the next quoted cell would close it, and the rows between would be a part of its cell.
        (
            'b,"2\nc,"3"\n',
            ["a", "z"],
            "is no row of a CSV: ',' expected after '\"' in line 4; is a quote of line 3 not",
        ),
        (
            'b,"2\nc,3\nd,"4"\n',
            ["a", "z"],
            "is no row of a CSV: ',' expected after '\"' in line 5; is a quote of line 3",
        ),
        ('"b"x,2\n', ["a", "z"], "is no row of a CSV: ',' expected after '\"'"),
        ('"b" ,2\n', ["a", "z"], "is no row of a CSV: ',' expected after '\"'"),
    ],
)
def test_a_quote_that_is_not_closed_takes_no_rows_without_a_word(
    tmp_path: Path, rows: str, keys: list[str], reason: str
) -> None:
    (tmp_path / "t.csv").write_text(f"sku,caption\na,1\n{rows}z,9\n")
    found = whole(source_of(tmp_path, "t.csv"))
    assert (found.keys, [bad.line for bad in found.refused]) == (keys, [3])
    assert found.refused[0].reason.startswith(reason)
    assert resumed(tmp_path, "t.csv", SKU, 1) == found


def test_memory_does_not_grow_with_a_cell(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w") as file:
        file.write('sku,caption\na,"')
        for _ in range(24):
            file.write("many words\n".rjust(100) * 10_000)
        file.write('"\nb,1\n')
    tracemalloc.start()
    try:
        assert whole(source_of(tmp_path, "t.csv")).keys == ["b"]
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_ROW_BYTES
    finally:
        tracemalloc.stop()


# -- JSON Lines


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", *(f"jsonl{suffix}" for suffix in COMPRESSED)])
def test_json_lines_take_numbers_as_they_are_written(tmp_path: Path, ending: str) -> None:
    literals = ["1", "1.50", "12345678901234567890", "-0", "1e400", '"text"', '"\\u00e9"']
    text = "".join(f'{{"caption": {{"a": 1}}, "sku": {literal}}}\n\n' for literal in literals)
    suffix = ending.removeprefix("jsonl") if ending != "ndjson" else ""
    (tmp_path / f"t.{ending}").write_bytes(PACK[suffix](text.encode()))
    found = resumed(tmp_path, f"t.{ending}", Columns(("sku",)), 2)
    assert found.keys == ["1", "1.50", "12345678901234567890", "-0", "1e400", "text", "é"]
    assert found.refused == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"sku": true, "caption": ""}', "its sku is true; it must be a text or a number"),
        ('{"sku": null, "caption": ""}', "its sku is null; it must be a text or a number"),
        ('{"sku": [1], "caption": ""}', "its sku is a list; it must be a text or a number"),
        ('{"sku": "a", "caption": {}}', "its caption is a dict; it must be a text or a number"),
        ('{"sku": "a", "kaption": ""}', "has no caption; it has sku, kaption"),
        ('{"sku": "\\ud800", "caption": ""}', "is not valid UTF-8"),
        ("[1]", "is no JSON object"),
        ('{"sku": NaN}', "is no JSON: NaN is no JSON"),
        ("{", "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[" * 100_000, "is no JSON: maximum recursion depth exceeded"),
        ('{"sku": "' + "x" * (16 * MAX_ROW_BYTES) + '"}', "is a row of more than 1,048,576 bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_line_of_json_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"sku": "a", "caption": null}}\n{line}\n{{"sku": "z", "caption": false}}\n')
    found = whole(source_of(tmp_path, "t.jsonl"))
    assert found.keys == ["a", "z"]
    assert found.fields == {"a": {"sku": "a"}, "z": {"sku": "z", "caption": "false"}}
    assert len(found.refused) == 1
    assert found.refused[0].line == 2
    assert found.refused[0].reason.startswith(reason)


# -- Parquet


def parquet(path: Path, skus: Sequence[object], kind: DataType, captions: Sequence[str | None]) -> None:
    table = Table.from_pydict({"sku": Array(skus, type=kind), "caption": Array(captions, type=DataType.string())})
    write_parquet(table, path, max_row_group_size=300)


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_parquet_resumes_at_every_row(tmp_path: Path, limit: int) -> None:
    count = 40 if limit == 1 else 1000
    skus, captions = [*range(count)], [None if n % 3 else f"caption {n}" for n in range(count)]
    parquet(tmp_path / "t.parquet", skus, DataType.int64(), captions)
    found = resumed(tmp_path, "t.parquet", SKU, limit)
    assert found.keys == [str(number) for number in range(count)]
    assert found.fields["0"] == {"sku": "0", "caption": "caption 0"}
    assert found.fields["1"] == {"sku": "1"}


def test_a_large_cell_and_a_null_of_parquet_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet", ["a", None, "c"], DataType.string(), ["x" * 16 * MAX_ROW_BYTES, "", "z"])
    found = whole(source_of(tmp_path, "t.parquet"))
    assert found.keys == ["c"]
    assert [(bad.line, bad.reason.partition(";")[0]) for bad in found.refused] == [
        (1, "its key and fields have 16,777,228 bytes, and 12,000 may travel"),
        (2, "its sku is null"),
    ]


def test_bytes_of_parquet_that_are_no_text_are_refused_and_not_null(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet", [b"a", b"\xff", b"c"], DataType.binary(), ["", "", ""])
    found = whole(source_of(tmp_path, "t.parquet"))
    assert (found.keys, [(bad.line, bad.reason) for bad in found.refused]) == (["a", "c"], [(2, "is not valid UTF-8")])
    parquet(tmp_path / "n.parquet", [1.5, float("nan")], DataType.float64(), ["", ""])
    found = whole(source_of(tmp_path, "n.parquet"))
    assert (found.keys, [bad.reason[:11] for bad in found.refused]) == (["1.5"], ["its sku is "])
    parquet(tmp_path / "u.parquet", [b"0123456789abcdef"], DataType.binary(16), [""])
    assert whole(source_of(tmp_path, "u.parquet")).keys == ["0123456789abcdef"]


def test_what_is_no_parquet_and_a_missing_extra_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_text("sku\n1\n")
    with pytest.raises(SourceError, match=r"t\.parquet is no whole Parquet file; check it$"):
        whole(source_of(tmp_path, "t.parquet"))
    monkeypatch.setitem(__import__("sys").modules, "arro3.io", None)
    with pytest.raises(SourceError, match=r"needs an extra: pip install 'shardcrawl\[parquet\]'"):
        whole(source_of(tmp_path, "t.parquet"))


# -- any rows


def test_a_block_of_the_largest_keys_with_fields_is_taken() -> None:
    columns = Columns(("sku",), ("x",))
    rest = MAX_ITEM_BYTES - 2 * 4_000 - len("skux")
    items = [columns.item({"sku": f"{n:04000}", "x": "v" * rest}) for n in range(BLOCK_KEYS)]
    with pytest.raises(BadRow):
        columns.item({"sku": f"{0:04000}", "x": "v" * (rest + 1)})
    keys = tuple(key for key, _ in items)
    block = Block(ShardId(0), keys, contexts={at: KeyContext(fields=fields) for at, (_, fields) in enumerate(items)})
    assert decode_block(ShardId(0), encode_block(block)) == block


def test_several_columns_make_one_key_and_each_is_a_field(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('sku,land\n"a ""1""",dé\nb,\n')
    found = whole(source_of(tmp_path, "t.csv", Columns(("sku", "land"))))
    assert found.keys == ['["a \\"1\\"","dé"]']
    assert found.fields[found.keys[0]] == {"sku": 'a "1"', "land": "dé"}
    assert [bad.reason for bad in found.refused] == ["its land is empty"]


def test_files_of_several_formats_are_one_corpus_that_resumes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption,sku\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("sku,caption\n")
    (tmp_path / "c.jsonl").write_text('{"sku": "c", "caption": 3}\n[]\n')
    parquet(tmp_path / "d.parquet", ["d"], DataType.string(), ["4"])
    for limit in (1, 2, 100):
        found = resumed(tmp_path, ".", SKU, limit)
        assert found.keys == ["a", "b", "c", "d"]
        assert [fields["caption"] for fields in found.fields.values()] == ["1", "2", "3", "4"] or limit < 100
        assert [bad.place for bad in found.refused] == ["c.jsonl line 2"]
    source = source_of(tmp_path, "*.csv")
    before = source.fingerprint()
    assert source.estimate() == 4
    (tmp_path / "b.csv").write_text("sku,caption\nx,y\n")
    assert source.fingerprint() != before
    source.close()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_missing_key_and_an_unknown_column_list_what_there_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text("sku,caption\n1,2\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"sku": 1, "caption": 2}) + "\n")
    parquet(tmp_path / "t.parquet", ["1"], DataType.string(), ["2"])
    with pytest.raises(SourceError, match=rf"{name} needs a job file with \[source\] key: .*; it has sku, caption$"):
        whole(source_of(tmp_path, name, None))
    if name != "t.jsonl":  # whose rows are refused, each with what it has
        with pytest.raises(SourceError, match=rf"{name} has no column skus; did you mean sku\? it has sku, caption$"):
            whole(source_of(tmp_path, name, Columns(("skus",))))


def test_a_csv_that_is_a_plain_list_needs_another_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("https://me:secret@host.example/1\n")
    with pytest.raises(SourceError, match=r"a plain list of keys has another ending, as \.txt") as caught:
        whole(source_of(tmp_path, "t.csv", None))
    assert "secret" not in str(caught.value)


def test_columns_of_a_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(SourceError, match=r"t\.txt has no columns for \[source\] key: its name must end in \.csv"):
        source_of(tmp_path, "t.txt")


def test_a_damaged_file_gives_its_whole_rows_and_then_names_the_line(tmp_path: Path) -> None:
    packed = PACK[".gz"](("sku,caption\n" + "".join(f"k{n},{n * 7919}\n" for n in range(50_000))).encode())
    (tmp_path / "t.csv.gz").write_bytes(packed[: len(packed) // 3])
    found = All()
    source = source_of(tmp_path, "t.csv.gz")
    found.add(source, 100_000)
    with pytest.raises(SourceError, match=r"t\.csv\.gz cannot be read beyond line \d+: the gzip data end too early"):
        found.add(source, 100_000)
    assert len(found.keys) > 1000


# -- keys in the job file, and dicts of a generator


def test_keys_of_the_job_file_are_read_and_resumed(tmp_path: Path) -> None:
    keys = ["a", "x|y", "b"]
    for start in range(4):
        source = open_source(
            None, None, keys=keys, cursor=Cursor(start, start), key_rule=IDS, folder=tmp_path, warn=lambda _: None
        )
        found = whole(source, 1)
        assert found.keys + [bad.key for bad in found.refused] == [key for key in keys[start:] if key != "x|y"] + (
            ["x|y"] if start < 2 else []
        )
        assert found.fields == {}
        assert source.estimate() == 3


def test_a_generator_yields_dicts(folder: Path) -> None:
    (folder / "rowsource.py").write_text(
        "def keys():\n"
        "    yield {'sku': 1, 'caption': 'Mug', 'tags': []}\n"
        "    yield 'text'\n"
        "    yield {'sku': 1, 'caption': 'second'}\n"
        "    yield {'caption': 'x'}\n"
        "    yield {'sku': float('nan'), 'caption': 'x'}\n"
    )
    source = open_source(None, "rowsource:keys", columns=SKU, cursor=Cursor(), key_rule=IDS, folder=folder)
    found = whole(source)
    assert (found.keys, found.fields) == (["1", "1"], {"1": {"sku": "1", "caption": "Mug"}})
    assert [(bad.line, bad.reason) for bad in found.refused] == [
        (2, "is no dict but str; [source] key names its fields"),
        (4, "has no sku; it has caption"),
        (5, "its sku is nan; it must be a text or a number"),
    ]


def test_a_generator_of_dicts_needs_a_key(folder: Path) -> None:
    (folder / "rowsource2.py").write_text("def keys():\n    yield {'sku': 1}\n    yield 'a'\n")
    source = open_source(None, "rowsource2:keys", cursor=Cursor(), key_rule=IDS, folder=folder)
    assert [bad.reason for bad in whole(source).refused] == ["is no text but dict; name its fields in [source] key"]
