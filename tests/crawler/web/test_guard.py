"""Who may ask for what."""

from __future__ import annotations

import pytest

from crawler.web.guard import Access, refusal
from tests.crawler.web.world import TOKEN

OWN = {"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
ACT = OWN | {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", "content-length": "2"}
ACCESS = Access(frozenset({"crawl.example.org"}), TOKEN)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8765"}, None),
        ({"host": "localhost:8765"}, None),
        ({"host": "[::1]:8765"}, None),
        ({"host": "10.1.2.3"}, None),
        ({"host": "crawl.example.org"}, None),
        ({"host": "CRAWL.example.org:443"}, None),
        ({"host": "rebound.example.com:8765"}, 421),
        ({"host": "127.0.0.1.example.com"}, 421),
        ({"host": "localhost.example.com"}, 421),
        ({"host": "[::1"}, 421),
        ({"host": "[::1].example.com"}, 421),
        ({"host": "127.0.0.1:80.example.com"}, 421),
        ({"host": "example.com@127.0.0.1"}, 421),
        ({"host": "127.0.0.1#.example.com"}, 421),
        ({"host": "localhost."}, 421),
        ({"host": ""}, 421),
        ({}, 421),
        (OWN, None),
        (OWN | {"origin": "http://evil.example"}, 403),
        (OWN | {"origin": "null"}, 403),
        (OWN | {"origin": "http://[::1"}, 403),
        (OWN | {"origin": "http://127.0.0.1:8765/"}, 403),
        (OWN | {"origin": "https://127.0.0.1:8765"}, None),
        (OWN | {"sec-fetch-site": "cross-site"}, 403),
        (OWN | {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"host": "127.0.0.1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None),
    ],
)
def test_who_may_look(headers: dict[str, str], status: int | None) -> None:
    found = refusal(ACCESS, "GET", headers)
    assert (found and found[0]) == status


@pytest.mark.parametrize(
    ("access", "headers", "status"),
    [
        (ACCESS, ACT, None),
        (ACCESS, {name: value for name, value in ACT.items() if name not in ("origin", "sec-fetch-site")}, None),
        (ACCESS, ACT | {"host": "rebound.example.com"}, 421),
        (ACCESS, ACT | {"origin": "http://evil.example"}, 403),
        (ACCESS, ACT | {"origin": "null"}, 403),
        (ACCESS, ACT | {"sec-fetch-site": "cross-site"}, 403),
        (ACCESS, ACT | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        (ACCESS, ACT | {"authorization": ""}, 401),
        (ACCESS, ACT | {"authorization": "Bearer wrong"}, 401),
        (ACCESS, ACT | {"authorization": "Bearer \u00e9"}, 401),
        (ACCESS, ACT | {"content-type": "text/plain"}, 415),
        (ACCESS, ACT | {"content-length": "10001"}, 413),
        (ACCESS, ACT | {"content-length": ""}, 413),
        (ACCESS, ACT | {"transfer-encoding": "chunked"}, 413),
        (Access(token=TOKEN, only_reads=True), ACT, 403),
        (Access(), ACT, 403),
        (Access(), ACT | {"authorization": ""}, 403),
        (Access(), ACT | {"authorization": "Bearer "}, 403),
    ],
)
def test_who_may_act(access: Access, headers: dict[str, str], status: int | None) -> None:
    found = refusal(access, "POST", headers)
    assert (found and found[0]) == status
