"""One record for each page: its words, which are no column and only for the transform."""

from typing import Any

from crawler import Response


def texts(response: Response) -> dict[str, list[dict[str, Any]]]:
    """Make a record of the page's words."""
    return {"chunks": [{"words": response.json()["words"]}]}
