from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from rich.console import Console

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Epoch, Outcome, RunCounts
from coordinator.queue.notices import NullColumn
from crawler.cli.display import screen
from crawler.cli.run import exit_code_of
from crawler.local.events import RunEnd
from crawler.store.reasons import ReasonCount
from crawler.store.rows.stored_run import StoredRun
from tests.crawler.examples import a_job

NOON = datetime(2026, 1, 1, 12, 0, 0, 123457, tzinfo=UTC)
COUNTS = RunCounts(
    total=20, published=15, resolved=5, outcomes={Outcome.STORED: 4, Outcome.FAILED: 1}, requests=1_234, received=5_600
)


def a_console(width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=None), out


def an_end(*, stored: bool, was_complete: bool = False, stored_keys: int = 0, **outcomes: int) -> RunEnd:
    counts = {Outcome(name): keys for name, keys in outcomes.items()} | {Outcome.STORED: stored_keys}
    run = StoredRun(7, "test", {}, Epoch("e"), True, counts, NOON, NOON)
    return RunEnd(a_job(), COUNTS, run if stored else None, 61.0, was_complete)


def an_end_of(stored: int, failed: int, *, denied: int = 0, refused: int = 0, complete: bool = True) -> RunEnd:
    """The end of a run with these keys; `refused` are beside the denied ones. The job allows 1 % to fail."""
    end = an_end(stored=complete, stored_keys=stored, failed=failed, refused=denied + refused)
    return replace(end, reasons=(ReasonCount(Outcome.REFUSED, "status 401", denied, denied=True),))


def summed(end: RunEnd) -> str:
    console, out = a_console()
    screen.print_summary(end, console, again="shardcrawl run data[/red].toml", at=" --data [a]")
    return out.getvalue()


def test_a_complete_run_is_summed_up_by_postgres_own_counts_and_the_rows_to_look_at() -> None:
    text = summed(an_end(stored=True, stored_keys=3, gone=3))
    assert "run test is complete: 6 keys" in text
    assert [line.split() for line in text.splitlines() if line.split()[1:2] in (["0"], ["3"])] == [
        ["stored", "3"],
        ["gone", "3"],
        ["failed", "0"],
    ]
    assert "0:01:01 in this session, 1,234 requests and 5.6 kB of bodies in the whole run" in text
    rebuilt = replace(an_end(stored=True, stored_keys=3), counts=replace(COUNTS, rebuilt=True))
    assert "1,234 requests and 5.6 kB of bodies since it was rebuilt from Postgres" in summed(rebuilt)
    assert "where run_id = 7 limit 5" in text
    assert "go on with" not in text


def test_a_run_with_failed_keys_tells_how_to_see_why() -> None:
    text = summed(an_end(stored=True, failed=2))
    assert "see why keys failed: shardcrawl sql --data [a] " in text
    assert "select key, reason from pages_r7 where run_id = 7 and outcome = 'failed' limit 20" in text


def test_a_run_without_rows_tells_how_to_see_why() -> None:
    text = summed(an_end(stored=True, refused=2))
    assert 'see why there are no rows: shardcrawl sql --data [a] "select key, outcome, reason from pages' in text


def test_a_long_value_does_not_take_the_width_of_other_columns() -> None:
    console, out = a_console(80)
    screen.print_table(
        ["title", "words", "n"], [["a title of 24 characters", "word " * 90, 1_234_567]], console, cut=True
    )
    row = out.getvalue().splitlines()[3]
    assert len(row) <= 80
    assert row.split()[:6] == ["a", "title", "of", "24", "characters", "word"]
    assert row.split()[-2:] == ["word…", "1234567"]


def unpublished(**outcomes: int) -> RunEnd:
    """The end of a run that falls short, of a job with a table and a schema of its own."""
    end = an_end(stored=True, **outcomes)
    assert end.stored is not None
    stored = replace(end.stored, document={"store": {"schema": "shop"}}, shortfall="[publish] max_failed is 1 %")
    return replace(end, stored=stored, job=a_job(tables=[{"name": "goods", "columns": {"id": "text"}}]))


def test_a_query_for_a_run_names_its_own_tables_while_readers_do_not_see_it() -> None:
    assert "select * from shop.goods_r7 where run_id = 7 limit 5" in summed(unpublished(stored_keys=1))
    assert "from shop.pages_r7 where run_id = 7 and outcome = 'failed'" in summed(unpublished(failed=1))
    seen = unpublished(stored_keys=1)
    assert seen.stored is not None
    assert "from shop.goods where" in summed(replace(seen, stored=replace(seen.stored, published_at=NOON)))


def test_a_table_that_is_a_word_of_sql_stands_in_quotes_for_the_shell() -> None:
    end = replace(unpublished(stored_keys=1), job=a_job(tables=[{"name": "user", "columns": {"id": "text"}}]))
    assert end.stored is not None
    seen = replace(end, stored=replace(end.stored, document={}, published_at=NOON))
    assert '"select * from \\"user\\" where run_id = 7 limit 5"' in summed(seen)
    assert "from shop.user_r7 where" in summed(end)


def test_a_run_that_is_published_says_so() -> None:
    end = an_end(stored=True, stored_keys=1)
    assert end.stored is not None
    end = replace(end, stored=replace(end.stored, shortfall="", published_at=NOON))
    assert "it is published: readers of corpus test see it now\n" in summed(end)
    assert "is published" not in summed(replace(end, was_complete=True))
    assert "is published" not in summed(unpublished(stored_keys=1))


def test_a_run_that_falls_short_names_the_exit_code_that_comes() -> None:
    end = unpublished(failed=1)
    assert exit_code_of(end) == 4
    text = summed(end)
    assert "it falls short of [publish]: exit code 4\n" in text
    assert "exit code 3" not in text


def test_an_interrupted_run_tells_how_to_go_on_with_the_command_as_it_is() -> None:
    text = summed(an_end(stored=False))
    assert "run test is interrupted: 5 of 20 keys are done, and stay done" in text
    assert "go on with: shardcrawl run data[/red].toml\n" in text


REASONS = (
    ReasonCount(Outcome.REFUSED, "status 401", 150, denied=True),
    ReasonCount(Outcome.REFUSED, "robots.txt of … disallows it", 50),
    ReasonCount(Outcome.REFUSED, "status 403", 2, denied=True),
    *(ReasonCount(Outcome.FAILED, f"parse: {number}", 9 - number) for number in range(7)),
    ReasonCount(Outcome.FAILED, None, 4),
)
PAUSED = UpstreamHealth("x.example", breaker="open", probe_in=8.0, refused=108, status=401)


def test_a_summary_names_the_usual_reasons_of_what_was_refused_and_failed() -> None:
    text = summed(replace(an_end(stored=True, stored_keys=1, refused=202, failed=46), reasons=REASONS))
    assert "refused 202: 150 x status 401, 50 x robots.txt of … disallows it, 2 x status 403\n" in text
    assert "failed 46: 9 x parse: 0, 8 x parse: 1, 7 x parse: 2, 6 x parse: 3, 5 x parse: 4, 11 x others\n" in text
    assert "what was denied goes back with: shardcrawl retry --data [a] test --status 401 --status 403\n" in text
    nothing_denied = summed(replace(an_end(stored=True, refused=50), reasons=REASONS[1:2]))
    assert "denied" not in nothing_denied


def test_a_run_that_its_upstream_refuses_says_what_to_do() -> None:
    end = replace(an_end(stored=False), reasons=REASONS[:1], unauthorized=(PAUSED,))
    interrupted = summed(end)
    assert "run test is interrupted: 5 of 20 keys are done, and stay done" in interrupted
    gave_up = summed(replace(end, gave_up=True))
    assert "run test is paused: 5 of 20 keys are done, and stay done" in gave_up
    for line in (
        "x.example refuses every request (its last 108 responses were 401): renew the token, or what else it refuses",
        "go on with: shardcrawl run data[/red].toml",
        "what was denied goes back with: shardcrawl retry --data [a] test --status 401",
        "if these refusals are right, [retry] refused_in_a_row = 0 makes them outcomes of their keys",
    ):
        assert f"{line}\n" in interrupted
        assert f"{line}\n" in gave_up


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (an_end_of(99, 1), 0),
        (an_end_of(98, 2), 3),
        (an_end_of(98, 1, denied=1), 3),
        (an_end_of(98, 0, denied=1, refused=2), 0),
        (an_end_of(0, 0), 0),
        (an_end_of(98, 2, complete=False), 130),
        (replace(an_end_of(98, 2, complete=False), gave_up=True), 4),
    ],
)
def test_the_exit_code_says_how_a_run_ended(end: RunEnd, code: int) -> None:
    assert exit_code_of(end) == code


def test_reasons_as_json() -> None:
    listed = screen.end_json(replace(an_end(stored=True), reasons=(REASONS[0], REASONS[-1])))
    assert listed["denied"] == 150
    assert listed["reasons"] == [
        {"outcome": "refused", "reason": "status 401", "keys": 150},
        {"outcome": "failed", "reason": None, "keys": 4},
    ]
    paused = screen.end_json(replace(an_end(stored=False), gave_up=True, unauthorized=(PAUSED,)))
    assert paused["state"] == "paused"
    assert paused["upstreams"]["x.example"]["refused_with"] == 401


def test_a_run_that_was_complete_before_did_nothing() -> None:
    text = summed(an_end(stored=True, was_complete=True, gone=3))
    assert "run test is complete already: 3 keys, nothing fetched" in text
    assert "session" not in text


def test_an_end_as_json_names_every_outcome() -> None:
    assert screen.end_json(an_end(stored=True, gone=3)) == {
        "run": "test",
        "state": "complete",
        "outcomes": {"stored": 0, "unchanged": 0, "gone": 3, "refused": 0, "failed": 0},
        "published": False,
        "shortfall": None,
        "files": None,
        "denied": 0,
        "reasons": [],
        "upstreams": {},
        "requests": 1_234,
        "received_bytes": 5_600,
        "seconds": 61.0,
        "unmatched_limits": [],
        "null_columns": {},
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
    listed = orjson.loads(screen.rows_as("json", columns, [VALUES, VALUES]))
    assert len(listed) == 2
    assert list(listed[0].values()) == [
        *(None, True, 5, 1.5, "text", NOON.isoformat(), "ff00"),
        *("1.10", str(UUID(int=1)), "1 day, 0:00:00", ["a", "1"]),
    ]


def test_no_rows_are_an_empty_list() -> None:
    assert orjson.loads(screen.rows_as("json", ["a"], [])) == []


def fields(*record: Any) -> list[str]:
    text = screen.rows_as("csv", [f"c{number}" for number in range(len(record))], [record]).decode()
    _, row = csv.reader(io.StringIO(text, newline=""))
    return row


def test_rows_as_csv_survive_quotes_and_line_breaks() -> None:
    assert fields(None, 'a"b', "a\nb", "a,b", b"\xff", NOON) == ["", 'a"b', "a\nb", "a,b", "ff", NOON.isoformat()]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd|x", "@sum(a)", "\t=1", "\r=1", "-1e-07", "", "a=1"])
def test_a_text_is_never_changed(text: str) -> None:
    assert fields(text) == [text]


def test_columns_that_turned_null_are_in_the_summary() -> None:
    columns = (NullColumn("facts.n", 1_767_268_800),)
    words = "facts.n was filled, and is null in every record of 1,000 pages since 2026-01-01 12:00:00 UTC"
    end = replace(an_end(stored=True), null_columns=columns)
    assert f"column {words}: has the response changed?" in " ".join(summed(end).split())
    assert screen.end_json(end)["null_columns"] == {"facts.n": 1_767_268_800}
