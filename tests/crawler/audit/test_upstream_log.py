"""The keys in an upstream's own log, whatever its format."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from coordinator.errors import UsageError
from crawler.audit.checks import LoggedRequests, _of_requests
from crawler.audit.upstream_log import UpstreamLog
from crawler.job.request.settings import RequestSettings

COMBINED = '127.0.0.1 - - [26/Nov/2026:10:00:00 +0000] "{}" 200 4096 "-" "shardcrawl/1 (+me@example.org)"'
SEVERAL = RequestSettings(url="http://host.example/api?ids={keys}&f=json", keys_per_request=50)


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        (COMBINED.format("GET /item/1 HTTP/1.1"), ["/item/1"]),
        (COMBINED.format("POST /item/1?a=b HTTP/2.0"), ["/item/1?a=b"]),
        (COMBINED.format("GET http://host.example/item/1 HTTP/1.1"), ["http://host.example/item/1"]),
        (COMBINED.format("GET /a b HTTP/1.1"), ["/a b"]),
        ('host 127.0.0.1 - me [t] "GET /item/1 HTTP/1.1" 200 4096', ["/item/1"]),
        ("10:00:00 worker-1 /item/1", ["/item/1"]),
        ("/item/1", ["/item/1"]),
        ("https://host.example/item/1", ["https://host.example/item/1"]),
        ("", []),
    ],
)
def test_a_line_of_a_log_names_its_request(tmp_path: Path, line: str, keys: list[str]) -> None:
    (tmp_path / "log").write_text(f"{line}\n")
    log = UpstreamLog(tmp_path / "log", RequestSettings())
    assert (list(log.keys()), log.other_lines) == (keys, 0)


def test_keys_of_one_request_are_split(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(COMBINED.format("GET /api?ids=a%7Cb%20c&f=json HTTP/1.1"))
    assert list(UpstreamLog(tmp_path / "log", SEVERAL).keys()) == ["a", "b%20c"]


def test_lines_that_are_no_requests_are_counted_and_said(tmp_path: Path) -> None:
    lines = ["#Fields: date time", COMBINED.format("\\x16\\x03\\x01"), COMBINED.format("GET /item/1 HTTP/1.1"), "end"]
    (tmp_path / "log").write_text("\n".join(lines))
    log = UpstreamLog(tmp_path / "log", RequestSettings())
    assert (list(log.keys()), log.other_lines, log.other_line) == (["/item/1"], 3, "end")
    _, finding = _of_requests(LoggedRequests(1, 1, [], 3, "end"), 0)
    assert (finding.what, finding.found, finding.ok) == ("lines of the log that are no requests", 3, True)
    _, finding = _of_requests(LoggedRequests(0, 0, [], 3, "end"), 0)
    assert not finding.ok


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_log_may_be_compressed(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    (tmp_path / "log.1").write_bytes(pack(COMBINED.format("GET /item/1 HTTP/1.1").encode()))
    assert list(UpstreamLog(tmp_path / "log.1", RequestSettings()).keys()) == ["/item/1"]


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"/item/1\n")[:-4])
    with pytest.raises(UsageError, match=r"--requests .*log.gz: the gzip data end too early; name a file"):
        list(UpstreamLog(tmp_path / "log.gz", RequestSettings()).keys())
