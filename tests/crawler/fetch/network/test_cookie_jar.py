"""Which cookies go where, and that they are sent by a run's engine."""

from __future__ import annotations

import pytest

from coordinator.url import parse
from crawler.fetch.engines.open import open_engine
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.cookie_jar import MAX_COOKIE_CHARACTERS, MAX_COOKIES_OF_A_SITE, MAX_SITES, WorkerCookies
from crawler.fetch.network.credentials import NO_CREDENTIALS
from tests.crawler.examples import a_job
from tests.servers.api import Sent, api, status
from tests.servers.scripted import headers

HOME = "https://www.shop.example/a/b"


def sent_to(url: str, *set_cookies: str, one_site: bool = True, first: str = HOME) -> str | None:
    cookies = WorkerCookies(one_site=one_site)
    for text in set_cookies:
        cookies.receive(parse(first), headers(set_cookie=text))
    return cookies.header(parse(url))


@pytest.mark.parametrize(
    ("url", "set_cookie", "one_site", "sent"),
    [
        (HOME, "a=1", True, "a=1"),
        ("https://www.shop.example/", "a=1; Path=/", True, "a=1"),
        ("https://www.shop.example/", "a=1; Path=/a", True, None),
        ("https://www.shop.example/ab", "a=1; Path=/a", True, None),
        ("http://www.shop.example/a/", "a=1; Secure", True, None),
        ("http://www.shop.example/a/", "a=1", True, "a=1"),
        ("https://shop.example/a/", "a=1", True, None),
        ("https://x.www.shop.example/a/", "a=1", True, None),
        ("https://api.shop.example/a/", "a=1; Domain=shop.example", True, "a=1"),
        ("https://api.shop.example/a/", "a=1; Domain=shop.example", False, None),
        (HOME, "a=1; Domain=shop.example", False, "a=1"),
        (HOME, "a=1; Domain=other.example", True, None),
        ("https://other.example/a/", "a=1; Domain=other.example", True, None),
        ("https://other.example/a/", "a=1; Domain=example", True, None),
        (HOME, "a=1; Max-Age=0", True, None),
        (HOME, "a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT", True, None),
        (HOME, "a=1; Expires=Thu, 01 Jan 2099 00:00:00 GMT; HttpOnly; SameSite=Lax", True, "a=1"),
        # Attributes that do not count, by RFC 6265, and of several of one name the last one.
        (HOME, "a=1; Domain=; Max-Age=soon; Port=80; Version=1", True, "a=1"),
        (HOME, "a=1; Path=relative", True, "a=1"),
        (HOME, "a=1; Path=/; Path=/b", True, None),
        (HOME, "a=1; Secure=no", True, "a=1"),
        (HOME, "", True, None),
        (HOME, ";=;;,\x01", True, None),
        (HOME, "a=\xe9", True, None),
        (HOME, "a=\u20ac", True, None),
        (HOME, f"a={'x' * (MAX_COOKIE_CHARACTERS - 2)}", True, f"a={'x' * (MAX_COOKIE_CHARACTERS - 2)}"),
        (HOME, f"a={'x' * MAX_COOKIE_CHARACTERS}", True, None),
    ],
)
def test_a_cookie_goes_back_only_to_where_it_belongs(
    url: str, set_cookie: str, one_site: bool, sent: str | None
) -> None:
    assert sent_to(url, set_cookie, one_site=one_site) == sent


def test_a_host_of_a_single_label_may_name_itself() -> None:
    assert sent_to("http://localhost/", "a=1; Domain=localhost", first="http://localhost/") == "a=1"


def test_no_cookie_is_for_a_whole_suffix() -> None:
    assert sent_to("https://b.co.uk/", "a=1; Domain=co.uk; Path=/", first="https://a.co.uk/") is None


def test_a_newer_cookie_of_the_same_name_wins() -> None:
    assert sent_to(HOME, "a=1", "b=2", "a=3") in ("a=3; b=2", "b=2; a=3")


def test_the_cookies_of_many_hosts_and_of_many_responses_are_bounded() -> None:
    cookies = WorkerCookies(one_site=False)
    for number in range(MAX_SITES + 1):
        cookies.receive(parse(f"https://h{number}.example/"), headers(set_cookie="a=1"))
    assert cookies.header(parse("https://h0.example/")) is None
    assert cookies.header(parse(f"https://h{MAX_SITES}.example/")) == "a=1"
    one = WorkerCookies(one_site=True)
    for number in range(MAX_COOKIES_OF_A_SITE + 1):
        one.receive(parse(HOME), headers(set_cookie=f"a{number}=1"))
        one.receive(parse(HOME), headers(set_cookie="session=1; Path=/b"))  # the same one counts once
    assert one.header(parse(HOME)) == f"a{MAX_COOKIES_OF_A_SITE - 1}=1; a{MAX_COOKIES_OF_A_SITE}=1"


@pytest.mark.anyio
@pytest.mark.parametrize("engine_name", ["pyreqwest", "httpx"])
async def test_an_engine_with_a_jar_sends_what_was_set(engine_name: str) -> None:
    def respond(sent: Sent) -> bytes:
        return status(200, b"", "Set-Cookie: a=1; Path=/", "Set-Cookie: b=2; Expires=Thu, 01 Jan 2099 00:00:00 GMT")

    request = {"cookie_jar": True, "engine": engine_name, "allow_private": ["127.0.0.0/8"]}
    async with api(respond) as server:
        engine = open_engine(a_job(request=request), NO_CREDENTIALS, BodyMemory())
        for host in ("127.0.0.1", "127.0.0.1", "127.0.0.2"):
            await engine.fetch("GET", parse(server.url("/", host)), ())
        await engine.close()
        found = [sorted(one.headers.get("cookie", "").split("; ")) for one in server.sent]
    assert found == [[""], ["a=1", "b=2"], [""]]
