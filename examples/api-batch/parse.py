"""One response with many keys: each key becomes a record of its own, or is gone."""

from typing import Any

from crawler import Response


def items(response: Response) -> dict[str, list[dict[str, Any]]]:
    """Make a record of every item; `_key` says which of the request's keys it belongs to."""
    records = []
    for item in response.json()["items"]:
        if item.get("missing"):
            response.gone(item["id"])
            continue
        records.append(
            {
                "_key": item["id"],
                "item_id": item["id"],
                "title": item["title"],
                "number": item["n"],
                "words": item["words"][:5],
            }
        )
    return {"items": records}
