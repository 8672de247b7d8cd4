"""What `serve` refuses before it starts anything."""

from __future__ import annotations

import socket

import pytest
from click.testing import CliRunner

from crawler.cli.main import main


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
