"""What `serve` refuses before it starts anything."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from crawler.cli.main import main
from crawler.telemetry import logs
from crawler.web import server


@pytest.mark.parametrize(
    ("options", "token", "words"),
    [
        (("--listen", "8765"), "", "write HOST:PORT"),
        (("--listen", "127.0.0.1:x"), "", "write HOST:PORT"),
        (("--listen", "127.0.0.1:70000"), "", "write HOST:PORT"),
        (("--host", "http://a"), "", "write a name"),
        ((), "short", "shorter than 16 characters"),
        ((), "a token of these tests\n", "no browser can send"),
        ((), "a token of these t\u00e9sts", "no browser can send"),
        (("--listen", "\udcff:0"), "", "write HOST:PORT"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(options: tuple[str, ...], token: str, words: str) -> None:
    ended = CliRunner().invoke(main, ["serve", "--log-level", "warning", *options], env={"SHARDCRAWL_TOKEN": token})
    assert (ended.exit_code, words in ended.output) == (2, True), ended.output


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = CliRunner().invoke(
            main, ["serve", "--log-level", "warning", "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        )
    assert (ended.exit_code, "choose another port" in ended.output) == (2, True), ended.output


@pytest.mark.parametrize("line_format", [logs.JSON, logs.TIME])
def test_where_the_page_is_is_a_line_for_people_or_an_event(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, line_format: str
) -> None:
    async def serve_page(_: object, __: str, ___: object, on_ready: Callable[[str], None]) -> None:
        on_ready("http://127.0.0.1:8765/")

    monkeypatch.setattr(server, "serve_page", serve_page)
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
    monkeypatch.setattr(logs, "line_format", lambda: line_format)
    with caplog.at_level("INFO"):
        ended = CliRunner().invoke(main, ["serve"])
    as_json = line_format == logs.JSON
    events = [(record.event, record.message) for record in caplog.records if hasattr(record, "event")]
    assert [event for event, text in events if "http://127.0.0.1:8765/" in text] == ["page_served"] * as_json
    assert ("http://127.0.0.1:8765/" in ended.output) is not as_json
