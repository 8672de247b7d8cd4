"""One page, many records: an article and the words on it, each value in exactly the type of its column."""

from datetime import datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from crawler import Response


def records(response: Response) -> dict[str, list[dict[str, Any]]]:
    """Make one record for `articles` and one for each of the first ten words."""
    page = response.json()
    article = {
        "article": page["id"],
        "price": Decimal(page["n"]).scaleb(-2),  # a float would not be exact
        "modified": last_modified(response),
        "checksum": page["n"].to_bytes(4, "big"),
    }
    words = [{"position": position, "word": word} for position, word in enumerate(page["words"][:10], start=1)]
    return {"articles": [article], "article_words": words}


def last_modified(response: Response) -> datetime | None:
    """The header as a time with its zone; None is stored as NULL."""
    text = response.headers.get("last-modified")
    return None if text is None else parsedate_to_datetime(text)
