"""Bodies as MediaWiki 1.39 sends them (action=query&prop=revisions&formatversion=2), with what is odd in them."""

from __future__ import annotations

from typing import Any


def a_page_of(page_id: int, title: str, *rev_ids: int) -> dict[str, Any]:
    return {
        "pageid": page_id,
        "ns": 0,
        "title": title,
        "revisions": [
            {
                "revid": rev_id,
                "parentid": 0,
                "user": "Ann",
                "timestamp": "2026-01-02T03:04:05Z",
                "comment": "",
                "minor": False,
            }
            for rev_id in rev_ids
        ],
    }


# Asked for Albert_Einstein, deletion discussion 100, No such page, Foo[bar], NYC, Special:Random, fr:Paris.
MIXED: dict[str, Any] = {
    "batchcomplete": True,
    "query": {
        "normalized": [
            {"fromencoded": False, "from": "Albert_Einstein", "to": "Albert Einstein"},
            {"fromencoded": False, "from": "deletion discussion 100", "to": "Deletion discussion 100"},
        ],
        "redirects": [{"from": "NYC", "to": "New York City"}],
        "interwiki": [{"title": "fr:Paris", "iw": "fr"}],
        "pages": [
            {"ns": 0, "title": "No such page", "missing": True},
            {
                "title": "Foo[bar]",
                "invalidreason": 'The requested page title contains invalid characters: "[".',
                "invalid": True,
            },
            {"ns": -1, "title": "Special:Random", "special": True},
            a_page_of(736, "Albert Einstein", 1),
            a_page_of(2, "Deletion discussion 100", 2),
            a_page_of(645042, "New York City", 3),
        ],
    },
}
CUT_OFF = {
    "continue": {"rvcontinue": "736|5", "continue": "||"},
    "query": {"pages": [{"pageid": 736, "ns": 0, "title": "A"}, a_page_of(2, "B", 2)]},
}
ONLY_INTERWIKI = {"batchcomplete": True, "query": {"interwiki": [{"title": "fr:Paris", "iw": "fr"}]}}
FAILED = {
    "error": {"code": "internal_api_error_DBQueryError", "info": "[abc] Caught exception", "docref": "See …"},
    "servedby": "mw1",
}
# Without formatversion=2, which is what many an old job asks for.
FIRST_FORMAT = {
    "batchcomplete": "",
    "query": {
        "normalized": [{"fromencoded": "", "from": "Cafe%CC%81", "to": "Café"}],
        "pages": {
            "-1": {"ns": 0, "title": "No such page", "missing": ""},
            "7": {"pageid": 7, "ns": 0, "title": "Café"},
        },
    },
}
