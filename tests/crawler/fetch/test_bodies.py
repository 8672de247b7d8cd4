"""Requests with a body, through both engines to a real server: what is sent, and when it is sent again."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import EntryId, KeyContext, Outcome, ShardId
from crawler.fetch.attempt import Defer, FetchResult, Lane, Meter
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.template import Template
from crawler.model import Item, OpenBlock, Request
from tests.crawler.examples import a_job
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.api import Api, Respond, Sent, api, status
from tests.servers.scripted import ScriptedLimiter

pytestmark = pytest.mark.anyio

OTHER = "127.0.0.2"


async def fetched(
    make_engine: MakeEngine, server: Api, fields: dict[str, str] | None = None, **request: Any
) -> FetchResult:
    """The result of the key "k" in a job with this [request], whose retries wait for nothing."""
    given = {"url": server.url("/{key}"), "robots": False, **request}
    job = a_job(source={"python": "a:b"}, request=given, retry={"attempts": 3, "backoff": 0})
    environ = {"TOKEN": "s3cret"}
    credentials = resolve_credentials(job.request, environ)
    context = KeyContext(fields=fields or {})
    target, payload = Template(job.request, credentials.body_secrets).build(["k"], context)
    limiter: Any = ScriptedLimiter()
    engine = make_engine(credentials=credentials)
    fetcher = Fetcher(engine, limiter, UpstreamMatcher({}), job, Meter(), credentials=credentials)
    one = Request(target, [Item("k", b"k", OpenBlock(ShardId(0), EntryId("1-0"), 1, 1), context)], "x", payload=payload)
    for _ in range(20):
        result = await fetcher.fetch(one, Lane())
        assert not isinstance(result, Defer)
        if isinstance(result, FetchResult):
            return result
    raise AssertionError("no result after 20 attempts")


def in_turn(*responses: bytes | None) -> Respond:
    """One response after the other, and the last one for ever."""
    left = list(responses)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


async def test_body_type_and_headers_arrive_as_the_job_says(make_engine: MakeEngine) -> None:
    async with api(in_turn(status(200, b"{}"))) as server:
        body = {"id": "{key}", "market": "{market}", "token": "${TOKEN}"}
        result = await fetched(make_engine, server, {"market": "de"}, json=body, headers={"X-Market": "{market}"})
        await fetched(make_engine, server, form={"id": "{key}"}, method="PUT")
        assert result.outcome is Outcome.STORED
        first, second = server.sent
        assert first.json == {"id": "k", "market": "de", "token": "s3cret"}
        assert (first.method, first.headers["content-type"], first.headers["x-market"]) == (
            "POST",
            "application/json",
            "de",
        )
        assert (second.method, second.body) == ("PUT", b"id=k")
        assert second.headers["content-type"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("code", "where", "lines"),
    [
        (301, "/there", ["POST /k b", "GET /there"]),
        (302, "/there", ["POST /k b", "GET /there"]),
        (303, f"http://{OTHER}:PORT/there", ["POST /k b", "GET /there"]),
        (307, "/there", ["POST /k b", "POST /there b"]),
        (308, "/there", ["POST /k b", "POST /there b"]),
    ],
)
async def test_a_redirect_is_followed_as_browsers_do(
    make_engine: MakeEngine, code: int, where: str, lines: list[str]
) -> None:
    def respond(sent: Sent) -> bytes:
        location = where.replace("PORT", str(server.port))
        return status(code, b"", f"Location: {location}") if sent.path == "/k" else status(200)

    async with api(respond) as server:
        result = await fetched(make_engine, server, {"m": "de"}, body="b", headers={"X-Market": "{m}"})
        assert (result.outcome, server.lines) == (Outcome.STORED, lines)
        last = server.sent[-1]
        assert ("content-type" in last.headers) == (last.method == "POST")
        assert ("x-market" in last.headers) == (last.address != OTHER)


async def test_a_body_does_not_go_to_another_origin(make_engine: MakeEngine) -> None:
    async with api(lambda _: status(307, b"", f"Location: http://{OTHER}:{server.port}/")) as server:
        result = await fetched(make_engine, server, body="${TOKEN}")
        assert (result.outcome, len(server.sent)) == (Outcome.REFUSED, 1)
        assert (
            result.reason
            == f"redirect 307: to another origin, http://{OTHER}:{server.port}, which does not get the POST"
        )


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (None, "outcome unknown: reset"),
        (status(500), "outcome unknown: status 500"),
        (b"HTTP/", "outcome unknown: "),
    ],
)
@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_post_whose_outcome_is_unknown_is_sent_again_only_if_it_is_idempotent(
    make_engine: MakeEngine, response: bytes | None, reason: str, idempotent: bool
) -> None:
    async with api(in_turn(response, status(200))) as server:
        result = await fetched(make_engine, server, json={"id": "{key}"}, idempotent=idempotent)
        assert len(server.sent) == (2 if idempotent else 1)
        assert result.outcome is (Outcome.STORED if idempotent else Outcome.FAILED)
        if not idempotent:
            assert str(result.reason).startswith(reason)
            assert "idempotent" in str(result.reason)


@pytest.mark.parametrize("code", [429, 503, 408])
async def test_a_post_that_was_not_carried_out_is_sent_again_with_its_body(make_engine: MakeEngine, code: int) -> None:
    async with api(in_turn(status(code), status(200))) as server:
        result = await fetched(make_engine, server, body="b")
        assert (result.outcome, server.lines) == (Outcome.STORED, ["POST /k b"] * 2)


async def test_a_post_that_was_accepted_is_a_success_and_not_waited_for(make_engine: MakeEngine) -> None:
    async with api(in_turn(status(202))) as server:
        assert (await fetched(make_engine, server, body="b")).outcome is Outcome.STORED
        assert len(server.sent) == 1


async def test_a_post_that_could_not_be_sent_is_sent_again(make_engine: MakeEngine, free_tcp_port: int) -> None:
    async with api(in_turn(status(200))) as server:
        server.port = free_tcp_port
        result = await fetched(make_engine, server, body="b")
        assert str(result.reason).startswith("connect: ")
        assert result.attempts == 3
