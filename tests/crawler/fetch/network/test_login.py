"""A login before the first request, again when the session has ended, and no more often than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from coordinator.errors import UsageError
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import EntryId, Outcome, ShardId
from crawler.fetch.attempt import Defer, FetchResult, Lane, Meter, RetryInPlace
from crawler.fetch.engines.open import open_engine
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.template import Template
from crawler.model import Item, OpenBlock, Request
from tests.crawler.examples import a_job
from tests.servers.api import Api, Sent, api, status
from tests.servers.scripted import ScriptedLimiter

pytestmark = pytest.mark.anyio

PASSWORD = "s3cret&word"


@dataclass
class Account:
    """An upstream that knows one session at a time; `lasts` is after how many requests it ends, None: never."""

    by_cookie: bool = False
    lasts: int | None = None
    failures: list[int] = field(default_factory=list)
    logins: int = 0
    used: int = 0

    def respond(self, sent: Sent) -> bytes:
        if sent.path == "/login":
            if self.failures:
                return status(self.failures.pop(0))
            if b"s3cret%26word" not in sent.body:
                return status(401)
            self.logins, self.used = self.logins + 1, 0
            if self.by_cookie:
                return status(302, b"", "Location: /home", f"Set-Cookie: session=t{self.logins}; Path=/")
            return status(
                200, b'\xef\xbb\xbf{"data": {"token": "t%d"}, "all": [{"token": "t%d"}]}' % (2 * (self.logins,))
            )
        session = sent.headers.get("cookie" if self.by_cookie else "authorization", "")
        self.used += 1
        is_known = session.endswith(f"t{self.logins}") and (self.lasts is None or self.used <= self.lasts)
        return status(200 if is_known and sent.path != "/forbidden" else 401)


class Client:
    """One worker's fetcher; `fetch` attempts a key until it has its result or is deferred."""

    def __init__(self, server: Api, engine: str, password: str = PASSWORD, **login: Any) -> None:
        given = {"url": server.url("/login"), "form": {"user": "me", "password": "${PASSWORD}"}, **login}
        request = {"url": server.url("/{key}"), "engine": engine, "login": given, "allow_private": ["127.0.0.0/8"]}
        job = a_job(request=request, retry={"attempts": 3, "backoff": 0})
        credentials = resolve_credentials(job.request, {"PASSWORD": password})
        self.limiter: Any = ScriptedLimiter()
        self.engine = open_engine(job, credentials, BodyMemory())
        self.template = Template(job.request, credentials.body_secrets)
        self.fetcher = Fetcher(self.engine, self.limiter, UpstreamMatcher({}), job, Meter(), credentials=credentials)

    async def fetch(self, key: str) -> FetchResult | Defer:
        target, payload = self.template.build([key])
        item = Item(key, key.encode(), OpenBlock(ShardId(0), EntryId("1-0"), 1, 1))
        request = Request(target, [item], "api.example", payload=payload)
        for _ in range(20):
            result = await self.fetcher.fetch(request, Lane())
            if not isinstance(result, RetryInPlace):
                return result
        raise AssertionError("no result after 20 attempts")

    async def outcomes(self, *keys: str) -> list[tuple[Outcome, str | None]]:
        found = [await self.fetch(key) for key in keys]
        return [(one.outcome, one.reason) for one in found if isinstance(one, FetchResult)]

    async def close(self) -> None:
        await self.fetcher.close()
        await self.engine.close()


STORED = (Outcome.STORED, None)
TOKEN = {"token": "data.token"}


@pytest.fixture(params=["pyreqwest", "httpx"])
def engine(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
async def account() -> AsyncIterator[tuple[Account, Api]]:
    account = Account()
    async with api(account.respond) as server:
        yield account, server


@pytest.mark.parametrize("by_cookie", [False, True])
async def test_many_requests_share_one_login(account: tuple[Account, Api], engine: str, by_cookie: bool) -> None:
    upstream, server = account
    upstream.by_cookie = by_cookie
    client = Client(server, engine, **({} if by_cookie else TOKEN))
    results = await asyncio.gather(*(client.fetch(str(number)) for number in range(20)))
    assert {one.outcome for one in results if isinstance(one, FetchResult)} == {Outcome.STORED}
    assert (upstream.logins, len(server.sent)) == (1, 21)
    assert server.sent[0].body == b"user=me&password=s3cret%26word"
    await client.close()


@pytest.mark.parametrize("by_cookie", [False, True])
async def test_a_session_that_has_ended_is_begun_again(
    account: tuple[Account, Api], engine: str, by_cookie: bool
) -> None:
    upstream, server = account
    upstream.by_cookie, upstream.lasts = by_cookie, 2
    client = Client(server, engine, **({} if by_cookie else TOKEN))
    assert await client.outcomes(*"abcdef") == [STORED] * 6
    assert (upstream.logins, len(server.sent)) == (3, 3 + 6 + 2)
    assert not [report for _, report in client.limiter.reports if report.get("refused")]
    await client.close()


async def test_a_key_that_is_refused_in_every_session_is_no_loop(account: tuple[Account, Api], engine: str) -> None:
    upstream, server = account
    client = Client(server, engine, **TOKEN)
    refused = (Outcome.REFUSED, "status 401")
    assert await client.outcomes("forbidden") == [refused], "a session that was never of use is not given up"
    assert await client.outcomes("a", "forbidden", "forbidden") == [STORED, refused, refused]
    assert upstream.logins <= 3
    assert await client.outcomes("a") == [STORED]
    await client.close()


async def test_a_wrong_password_refuses_keys_after_one_login(account: tuple[Account, Api], engine: str) -> None:
    _, server = account
    client = Client(server, engine, password="wrong!", **TOKEN)
    found = [await client.fetch(key) for key in "abc"]
    reason = f"the login at {server.url('/login')} is refused: status 401"
    for one in found:
        assert isinstance(one, FetchResult)
        assert one.response is not None
        assert (one.outcome, one.reason, one.response.status) == (Outcome.REFUSED, reason, 401)
    assert [one.path for one in server.sent] == ["/login"]
    client.limiter.unauthorized.add("api.example")
    assert isinstance(await client.fetch("d"), Defer), "while everybody is refused, keys wait"
    await client.close()


async def test_a_token_may_stand_in_a_list(account: tuple[Account, Api], engine: str) -> None:
    _, server = account
    client = Client(server, engine, token="all.0.token")
    assert await client.outcomes("a") == [STORED]
    await client.close()


@pytest.mark.parametrize("path", ["token", "data", "data.token.x", "all.1.token"])
async def test_a_token_that_is_not_there_refuses_keys(account: tuple[Account, Api], engine: str, path: str) -> None:
    _, server = account
    client = Client(server, engine, token=path)
    ((outcome, reason),) = await client.outcomes("a")
    assert outcome is Outcome.REFUSED
    assert str(reason).endswith(f"brings no text at {path!r} of its JSON")
    await client.close()


async def test_a_login_that_fails_for_a_while_is_attempted_again(account: tuple[Account, Api], engine: str) -> None:
    upstream, server = account
    upstream.failures = [503, 500]
    client = Client(server, engine, **TOKEN)
    assert await client.outcomes("a") == [STORED]
    upstream.failures = [500] * 9
    other = Client(server, engine, **TOKEN)
    ((outcome, reason),) = await other.outcomes("a")
    assert outcome is Outcome.FAILED
    assert str(reason).startswith("login: status 500 after 3 attempts: ")
    await client.close()
    await other.close()


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({}, "[request.login] needs a url"),
        ({"url": "ftp://x.example/"}, "[request.login] url: it does not start"),
        ({"url": "https://x.example/${A}"}, "no ${NAME} may stand in it"),
        ({"form": {"a": "1"}, "json": {"a": "1"}}, "leave one out"),
        ({"form": {"a": "{key}"}}, "it is sent for no key"),
        ({"form": {"password": "hunter2"}}, "has its secret written out"),
        ({"json": {"client_secret": "hunter2"}}, "has its secret written out"),
        ({"tokens": "a"}, "did you mean token?"),
        ({"headers": {"a b": "1"}}, "must be a header name"),
        ({"token": "a", "auth": "bearer:${A}"}, "both make an Authorization header"),
    ],
)
def test_a_login_that_cannot_be_is_an_error_in_one_line(login: dict[str, Any], words: str) -> None:
    auth = {"auth": login.pop("auth")} if "auth" in login else {}
    given = {"url": "https://x.example/login", **login} if login else {}
    with pytest.raises(UsageError) as caught:
        a_job(request={"url": "https://x.example/{key}", "login": given, **auth})
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
