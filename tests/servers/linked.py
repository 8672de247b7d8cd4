"""A site whose pages name each other: a tree of pages with further links, and lists with several pages."""

from __future__ import annotations

import json

from crawler.sample.connection import CannedResponse
from tests.servers.disturbed import Disturbed

PAGES = 600
LINKS = 8
LISTS = 6
LIST_PAGES = 7


class Linked(Disturbed):
    """GET /page/N names 8 other pages, and some a list; GET /list/N?at=P names the next page of the list.

    From /page/0 every page is reached. Most pages are named by two others, and a few of them by themselves.
    """

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        """Respond to one request."""
        response = super().respond(method, target, condition)  # which counts it
        path, _, query = target.decode().partition("?")
        kind, _, number = path[1:].partition("/")
        if kind == "page":
            found = CannedResponse(200, json.dumps({"id": number, "links": links(int(number))}).encode())
        elif kind == "list":
            at = int(query.removeprefix("at=") or 1)
            following = {"next": f"?at={at + 1}"} if at < LIST_PAGES else {}
            found = CannedResponse(200, json.dumps({"id": path, "at": at, **following}).encode())
        else:
            return response
        return CannedResponse(429) if response.status == 429 else found

    def keys(self) -> set[str]:
        """All that is reached from /page/0."""
        pages = {f"{self.url}/page/{number}" for number in range(PAGES)}
        lists = {f"{self.url}/list/{number}" for number in range(LISTS)}
        return pages | lists | {f"{key}?at={at}" for key in lists for at in range(2, LIST_PAGES + 1)}


def links(number: int) -> list[str]:
    """What a page names."""
    pages = [f"/page/{(LINKS * number + place) % PAGES}" for place in range(1, LINKS + 1)]
    return pages + [f"/list/{number // 10}"] * (number % 10 == 0 and number // 10 < LISTS)


def depths() -> dict[str, int]:
    """How many links lead at least from /page/0 to each path."""
    depth = {"/page/0": 0}
    paths = list(depth)
    for path in paths:
        for name in links(int(path.removeprefix("/page/"))) if path.startswith("/page/") else ():
            if name not in depth:
                depth[name] = depth[path] + 1
                paths.append(name)
    return depth
