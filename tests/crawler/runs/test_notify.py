"""The user's command and webhook learn of each event once; one that fails changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.model import Epoch, Outcome, RunCounts, RunState, Steering
from coordinator.status import RunSnapshot
from crawler.job.job import Job, read_job
from crawler.local.standstill import Progress
from crawler.runs import notify
from crawler.runs.notify import Notifier
from crawler.sample.upstream import Upstream
from crawler.store.rows.stored_run import StoredRun
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

COUNTS = {Outcome.STORED: 90, Outcome.FAILED: 10}


def a_job(folder: Path, **notify: str) -> Job:
    document = {"run": {"name": "afd-1", "corpus": "afd"}, "source": {"path": "keys.txt"}, "notify": notify}
    return read_job(document, str(folder))


def a_complete_run(shortfall: str = "") -> StoredRun:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    return StoredRun(1, "afd-1", {}, Epoch("e"), True, COUNTS, now, now, shortfall=shortfall)


def a_snapshot(done: int, *, paused: bool = False) -> RunSnapshot:
    counts = RunCounts(outcomes={Outcome.STORED: done})
    return RunSnapshot("afd-1", RunState.RUNNING, counts, 1, "leader", steering=Steering(paused))


async def test_of_each_event_the_command_that_sees_it_first_notifies(redis: Redis, tmp_path: Path) -> None:
    command = 'cat >> messages.jsonl; echo >> messages.jsonl; echo "$SHARDCRAWL_EVENT $SHARDCRAWL_RUN" >> events'
    job = a_job(tmp_path, command=command, stalled="30min")
    for _ in range(2):  # two commands
        notifier = Notifier(redis, job, {"PATH": "/usr/bin:/bin"})
        await notifier.notify_stalled(a_snapshot(7))
        await notifier.notify_of_end(a_complete_run("[publish] max_failed"))
    await Notifier(redis, job, {"PATH": "/usr/bin:/bin"}).notify_of_end(a_complete_run())
    assert (tmp_path / "events").read_text().splitlines() == ["stalled afd-1", "held_back afd-1", "complete afd-1"]
    # After `retry` it is complete again, perhaps with the same counts.
    again = replace(a_complete_run(), finished_at=datetime(2026, 11, 28, tzinfo=UTC))
    await Notifier(redis, job, {"PATH": "/usr/bin:/bin"}).notify_of_end(again)
    assert (tmp_path / "events").read_text().splitlines()[3:] == ["complete afd-1"]
    lines = (tmp_path / "messages.jsonl").read_text().splitlines()
    messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [one["text"] for one in messages] == [
        "run afd-1 has made no progress for 30min",
        "run afd-1 is not published: [publish] max_failed",
        *["run afd-1 is complete"] * 2,
    ]
    assert (
        messages[2]
        == messages[3]
        == {
            "event": "complete",
            "run": "afd-1",
            "corpus": "afd",
            "text": "run afd-1 is complete",
            "keys": {"stored": 90, "failed": 10},
        }
    )


async def test_a_command_has_the_secrets_that_it_names_and_no_others(redis: Redis, tmp_path: Path) -> None:
    command = 'env > environment; : "$DATABASE_URL" "${OWN:-none}"'
    document = {"run": {"name": "afd-1"}, "source": {"path": "keys.txt"}, "notify": {"command": command}}
    document["request"] = {
        "url": "https://h.example/{key}?own=${OWN}",
        "headers": {"Authorization": "Bearer ${TOKEN}"},
    }
    secrets = ("REDIS_URL", "DATABASE_URL", "SHARDCRAWL_TOKEN", "TOKEN", "OWN")
    given = {"PATH": "/usr/bin:/bin", "DISPLAY": ":0", **dict.fromkeys(secrets, "geheim")}
    await Notifier(redis, read_job(document, str(tmp_path)), given).notify_of_end(a_complete_run())
    found = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert {name for name, value in found.items() if value == "geheim"} == {"DATABASE_URL", "OWN"}
    assert (found["DISPLAY"], found["SHARDCRAWL_EVENT"]) == (":0", "complete")


async def test_a_command_or_webhook_that_fails_is_one_line_without_the_secret(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with Upstream() as upstream:
        job = a_job(tmp_path, command="exit 3", webhook=f"{upstream.url}/item/${{HOOK}}")
        await Notifier(redis, job, {"HOOK": "geheim", "PATH": "/bin"}).notify_of_end(a_complete_run())
        assert upstream.paths == ["/item/geheim"]
    assert [record.getMessage() for record in caplog.records] == [
        "[notify] command: complete of afd-1 is not notified: CalledProcessError",
        "[notify] webhook: complete of afd-1 is not notified: protocol: status 405",
    ]


async def test_a_response_without_an_end_is_not_waited_for_and_what_is_not_ours_in_redis_stops_nothing(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readline())
        with suppress(OSError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            while True:
                writer.write(bytes(1000))
                await writer.drain()

    await redis.set("shardcrawl:{afd-1}:notified", "something else")
    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        job = a_job(tmp_path, webhook=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook")
        async with asyncio.timeout(20):
            await Notifier(redis, job, {}).notify_of_end(a_complete_run())
    assert (received, caplog.records) == ([b"POST /hook HTTP/1.1\r\n"], [])


@pytest.mark.parametrize(
    ("notify", "message"),
    [({"stalled": "soon"}, "stalled is 'soon'"), ({"webhook": "hooks.example.org"}, "webhook is no URL")],
)
def test_what_cannot_be_used_is_an_error(tmp_path: Path, notify: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        a_job(tmp_path, **notify)


def test_a_webhook_without_its_secret_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[notify\] webhook: \$\{HOOK\} is not set"):
        Notifier(Redis(), a_job(tmp_path, webhook="https://hooks.example.org/${HOOK}"), {})


def test_a_run_has_stalled_when_no_key_was_done_for_so_long_and_is_said_once() -> None:
    progress = Progress(60.0)
    seen = [(0, 1), (59, 1), (60, 1), (61, 1), (500, 1), (501, 2), (560, 2), (561, 2)]
    assert [progress.has_stalled(a_snapshot(done), at) for at, done in seen] == [
        *(False, False, True, False, False),
        *(False, False, True),
    ]
    assert not any(Progress(60.0).has_stalled(a_snapshot(1, paused=True), at) for at in (0, 100, 200))
    assert not any(Progress(None).has_stalled(a_snapshot(1), at) for at in (0, 1e9))


async def test_a_command_that_hangs_is_ended_with_what_it_has_started(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "NOTIFY_SECONDS", 0.5)
    os.mkfifo(tmp_path / "held")
    job = a_job(tmp_path, command="sleep 600 > held; true")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)

    def nobody_holds_it() -> bool:
        with suppress(BlockingIOError):
            return os.read(reader, 1) == b""
        return False

    await Notifier(redis, job, {"PATH": "/usr/bin:/bin"}).notify_of_end(a_complete_run())
    await eventually(nobody_holds_it, "the end of all that the command has started")
    os.close(reader)
    assert [record.getMessage() for record in caplog.records] == [
        "[notify] command: complete of afd-1 is not notified: TimeoutExpired"
    ]


@pytest.mark.parametrize("settings", [{"webhook": "http://xn--a/geheim"}, {"command": "echo \0"}])
async def test_what_can_never_be_notified_is_one_line_too(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, str]
) -> None:
    await Notifier(redis, a_job(tmp_path, **settings), {}).notify_of_end(a_complete_run())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "complete of afd-1 is not notified" in line
    assert "geheim" not in line
