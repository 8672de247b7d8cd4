from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from rich.console import Console

from coordinator.limits.overrides import LimitOverride
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Epoch, Outcome, RunCounts, RunState
from coordinator.settings import LimitSettings, Window
from coordinator.status import RunSnapshot
from crawler.cli import screen
from crawler.local.run import RunEnd
from crawler.store.catalogue import StoredRun
from tests.crawler.examples import a_job

NOON = datetime(2026, 1, 1, 12, 0, 0, 123457, tzinfo=UTC)
COUNTS = RunCounts(
    total=20, published=15, resolved=5, outcomes={Outcome.STORED: 4, Outcome.FAILED: 1}, requests=1_234, received=5_600
)


def a_console(width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=None), out


def an_end(*, stored: bool, was_complete: bool = False, **outcomes: int) -> RunEnd:
    counts = {Outcome(name): keys for name, keys in outcomes.items()}
    run = StoredRun(7, "test", {}, Epoch("e"), True, counts, NOON, NOON)
    return RunEnd(a_job(), COUNTS, run if stored else None, 61.0, was_complete)


def summed(end: RunEnd) -> str:
    console, out = a_console()
    screen.print_summary(end, console, again="shardcrawl run data[/red].toml", at=" --data [a]")
    return out.getvalue()


def test_a_complete_run_is_summed_up_by_postgres_own_counts_and_the_rows_to_look_at() -> None:
    text = summed(an_end(stored=True, gone=3))
    assert "run test is complete: 3 keys" in text
    assert [line.split() for line in text.splitlines() if line.split()[1:2] in (["0"], ["3"])] == [
        ["stored", "0"],
        ["gone", "3"],
        ["failed", "0"],
    ]
    assert "0:01:01 in this session, 1,234 requests and 5.6 kB of bodies" in text
    assert "where run_id = 7 limit 5" in text
    assert "go on with" not in text


def test_a_run_with_failed_keys_tells_how_to_see_why() -> None:
    text = summed(an_end(stored=True, failed=2))
    assert "see why keys failed: shardcrawl sql --data [a] " in text
    assert "where run_id = 7 and outcome = 'failed'" in text


def test_an_interrupted_run_tells_how_to_go_on_with_the_command_as_it_is() -> None:
    text = summed(an_end(stored=False))
    assert "run test is interrupted: 5 of 20 keys are done, and stay done" in text
    assert "go on with: shardcrawl run data[/red].toml\n" in text


def test_a_run_that_was_complete_before_did_nothing() -> None:
    text = summed(an_end(stored=True, was_complete=True, gone=3))
    assert "run test is complete already: 3 keys, nothing fetched" in text
    assert "session" not in text


def test_an_end_as_json_names_every_outcome() -> None:
    assert screen.end_json(an_end(stored=True, gone=3)) == {
        "run": "test",
        "state": "complete",
        "outcomes": {"stored": 0, "unchanged": 0, "gone": 3, "refused": 0, "failed": 0},
        "requests": 1_234,
        "received_bytes": 5_600,
        "seconds": 61.0,
    }
    interrupted = screen.end_json(an_end(stored=False))
    assert interrupted["state"] == "interrupted"
    assert interrupted["outcomes"]["stored"] == 4
    assert screen.end_json(an_end(stored=True, was_complete=True))["requests"] == 0


def test_a_table_shows_values_without_markup_or_control_characters() -> None:
    console, out = a_console()
    records = [("[red]a[/red]", None, 5), ("[/]", b"\xff\0", NOON), ("esc\x1b[31m\nline", True, 1.5)]
    screen.print_table(["[bold]key", "b", "c"], records, console)
    text = out.getvalue()
    moment = "2026-01-01 12:00:00.123+00:00"
    for part in ("[bold]key", "[red]a[/red]", "[/]", "ff00", moment, "esc [31m line", "True", "3 rows"):
        assert part in text
    assert "\x1b" not in text


def test_long_values_are_cut_and_one_row_is_one() -> None:
    console, out = a_console()
    screen.print_table(["a"], [("x" * 100,)], console)
    text = out.getvalue()
    assert "x" * 59 + "…" in text
    assert "x" * 60 not in text
    assert text.endswith("1 row\n")


def test_many_columns_are_all_there_on_a_narrow_terminal() -> None:
    console, out = a_console(width=20)
    screen.print_table(
        [f"column{number}" for number in range(20)], [[f"value{number}" for number in range(20)]], console
    )
    assert all(f"column{number}" in out.getvalue() for number in range(20))
    assert all(f"value{number}" in out.getvalue() for number in range(20))


VALUES: list[Any] = [
    *(None, True, 5, 1.5, "text", NOON, b"\xff\0"),
    *(Decimal("1.10"), UUID(int=1), timedelta(days=1), ["a", Decimal(1)]),
]


def test_rows_as_json_keep_plain_values_and_write_the_others_as_text() -> None:
    columns = [f"c{number}" for number in range(len(VALUES))]
    listed = orjson.loads(screen.rows_json(columns, [VALUES, VALUES]))
    assert len(listed) == 2
    assert list(listed[0].values()) == [
        *(None, True, 5, 1.5, "text", NOON.isoformat(), "ff00"),
        *("1.10", str(UUID(int=1)), "1 day, 0:00:00", ["a", "1"]),
    ]


def test_no_rows_are_an_empty_list() -> None:
    assert orjson.loads(screen.rows_json(["a"], [])) == []


def fields(*record: Any) -> list[str]:
    text = screen.rows_csv([f"c{number}" for number in range(len(record))], [record])
    _, row = csv.reader(io.StringIO(text))
    return row


def test_rows_as_csv_survive_quotes_and_line_breaks() -> None:
    assert fields(None, 'a"b', "a\nb", "a,b", b"\xff", NOON) == ["", 'a"b', "a\nb", "a,b", "ff", NOON.isoformat()]


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-cmd|x", "@sum(a)", "\t=1", "\r=1", "-", "-1-1", "=HYPERLINK(1)", "+5"]
)
def test_a_text_that_a_spreadsheet_would_take_for_a_formula_is_quoted(text: str) -> None:
    assert fields(text) == [f"'{text}"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (-5, "-5"),
        (-1e-7, "-1e-07"),
        (Decimal("-1E-7"), "-1E-7"),
        (float("-inf"), "-inf"),
        ("-5", "-5"),
        ("-1.50", "-1.50"),
        ("", ""),
        ("a=1", "a=1"),
    ],
)
def test_a_number_is_never_quoted(value: Any, field: str) -> None:
    assert fields(value) == [field]


SNAPSHOT = RunSnapshot(
    "test",
    RunState.RUNNING,
    COUNTS,
    workers=2,
    leader=None,
    waits=("Postgres does not answer",),
    upstreams=(
        UpstreamHealth("[fe80::1]:80", paused=61.4),
        UpstreamHealth(
            "x.example", override=LimitOverride(LimitSettings((Window(5, 1),)), 0), breaker="open", probe_in=3.0
        ),
    ),
)


def test_a_snapshot_is_shown_whole() -> None:
    console, out = a_console()
    screen.print_snapshot(SNAPSHOT, console)
    text = out.getvalue()
    parts = ("running", "5 of 20 done, 10 queued", "4 stored, 1 failed", "1,234, 5.6 kB", "none", "waits for")
    upstreams = (
        "[fe80::1]:80 paused 61 s",
        "x.example breaker open, probe in 3 s, live rate 5/s, live concurrency none",
    )
    for part in (*parts, *upstreams):
        assert part in text
    assert "Postgres does not answer" in " ".join(text.split())


def test_a_snapshot_as_json_names_every_count() -> None:
    assert screen.snapshot_json(SNAPSHOT) == {
        "run": "test",
        "state": "running",
        "total": 20,
        "done": 5,
        "queued": 10,
        "deferred": 0,
        "outcomes": {"stored": 4, "unchanged": 0, "gone": 0, "refused": 0, "failed": 1},
        "requests": 1_234,
        "received_bytes": 5_600,
        "workers": 2,
        "coordinator": None,
        "paused": {"[fe80::1]:80": 61.4},
        "upstreams": {
            "[fe80::1]:80": {
                "paused": 61.4,
                "breaker": "closed",
                "probe_in": 0.0,
                "found_rate": None,
                "live_rate": None,
                "live_concurrency": None,
            },
            "x.example": {
                "paused": 0.0,
                "breaker": "open",
                "probe_in": 3.0,
                "found_rate": None,
                "live_rate": "5/s",
                "live_concurrency": "none",
            },
        },
        "waits": ["Postgres does not answer"],
    }
