"""A MediaWiki as far as `action=query&titles=A|B` goes: titles may be normalized, missing, invalid or redirects."""

from __future__ import annotations

import json
import zlib
from typing import Any
from urllib.parse import parse_qs

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream

MISSING, INVALID, REDIRECT, SILENT = "No such page", "Bad[title]", "Redirect", "Special:"


class Wiki(Upstream):
    """Its pages are at /w/api.php. A title that begins with one of the words above is of that kind."""

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        if not target.startswith(b"/w/api.php?"):
            return super().respond(method, target, condition)
        super().respond(method, target, condition)  # which counts it
        titles = parse_qs(target.decode().partition("?")[2])["titles"][0].split("|")
        return CannedResponse(200, json.dumps(_query(titles)).encode())


def _query(titles: list[str]) -> dict[str, Any]:
    normalized, redirects, pages = [], [], {}
    for raw in titles:
        title = raw.replace("_", " ")
        title = title[:1].upper() + title[1:]
        if title.startswith(INVALID):
            pages[raw] = {"title": raw, "invalid": True, "invalidreason": "invalid characters"}
            continue
        if title != raw:
            normalized.append({"fromencoded": False, "from": raw, "to": title})
        if title.startswith(REDIRECT):
            redirects.append({"from": title, "to": f"Target of {title}"})
            title = f"Target of {title}"
        if title.startswith(MISSING):
            pages[title] = {"ns": 0, "title": title, "missing": True}
        elif title.startswith(SILENT):
            pages[title] = {"ns": -1, "title": title, "special": True}
        else:
            number = zlib.crc32(title.encode())
            revision = {"revid": number, "user": "Ann", "timestamp": "2026-01-02T03:04:05Z"}
            pages[title] = {"pageid": number, "ns": 0, "title": title, "revisions": [revision]}
    query = {"normalized": normalized, "redirects": redirects, "pages": list(pages.values())}
    return {"batchcomplete": True, "query": {name: found for name, found in query.items() if found}}
