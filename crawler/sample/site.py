"""What the sample upstream serves for the examples: a shop with a sitemap and images, and three APIs with lists.

The response depends on the request alone. There are PRODUCTS products; a list has PER_PAGE of them on a page.

    GET /shop?page=N                     HTML, the products of a page and a link to the next page
    GET /shop/product/N                  HTML, one product
    GET /image/N.png                     a PNG of one pixel
    GET /sitemap.xml                     an index of /sitemap/1.xml and /sitemap/2.xml.gz, which name the products
    GET /works?topic=T&cursor=*          JSON, a page of works with meta.next_cursor
    GET /w/api.php?list=categorymembers  JSON as MediaWiki gives it, with `continue`; and with ?titles=A|B the pages
    POST /graphql                        JSON, the products after variables.after
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from crawler.sample.connection import CannedResponse

PRODUCTS, PER_PAGE = 60, 20
TITLES, TITLES_PER_PAGE = 120, 50
_XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
_COLORS = ("red", "green", "blue", "black", "white")


def respond(path: str, query: str, base: str) -> CannedResponse | None:
    """The response to a GET, None for a path that is not here; `base` is the URL of the upstream."""
    given = {name: values[0] for name, values in parse_qs(query).items()}
    kind, _, rest = path[1:].partition("/")
    number = int(digits) if (digits := rest.rpartition("/")[2].split(".")[0]).isdecimal() else 0
    match kind:
        case "shop" if rest.startswith("product/") and 1 <= number <= PRODUCTS:
            return _html(_product(number))
        case "shop" if not rest:
            return _html(_list(int(given.get("page", "1"))))
        case "image" if 1 <= number <= PRODUCTS:
            return CannedResponse(200, _png(number), "image/png")
        case "sitemap.xml":
            names = ("sitemap/1.xml", "sitemap/2.xml.gz")
            entries = "".join(f"<sitemap><loc>{base}/{name}</loc></sitemap>" for name in names)
            return CannedResponse(200, f"<sitemapindex {_XMLNS}>{entries}</sitemapindex>".encode(), "application/xml")
        case "sitemap" if number in (1, 2):
            half = PRODUCTS // 2
            body = _urlset(range(1 + half * (number - 1), 1 + half * number), base)
            is_packed = path.endswith(".gz")
            body, of_type = (gzip.compress(body, mtime=0), "gzip") if is_packed else (body, "xml")
            return CannedResponse(200, body, f"application/{of_type}")
        case "works":
            return _json(_works(given.get("topic", ""), given.get("cursor", "*")))
        case "w":
            return _json(_wiki(given))
    return None


def graphql(body: bytes) -> CannedResponse:
    """The response to a GraphQL request for a page of products; the query itself is not read."""
    try:
        variables = json.loads(body)["variables"]
        first, after = int(variables["first"]), int(variables.get("after") or 0)
    except (ValueError, TypeError, KeyError) as error:
        return _json({"errors": [{"message": f"bad request: {error}"}]})
    numbers = range(after + 1, min(after + first, PRODUCTS) + 1)
    nodes = [{"id": number, "name": _name(number), "price": {"amount": _price(number)}} for number in numbers]
    info = {"endCursor": str(after + len(nodes)), "hasNextPage": after + len(nodes) < PRODUCTS}
    return _json({"data": {"products": {"nodes": nodes, "pageInfo": info}}})


def _name(number: int) -> str:
    return f"{_COLORS[number % len(_COLORS)]} thing {number}"


def _price(number: int) -> str:
    return f"{900 + 7 * number}.{number:02}"


def _list(page: int) -> str:
    first = PER_PAGE * (page - 1) + 1
    numbers = range(first, min(first + PER_PAGE, PRODUCTS + 1))
    items = "".join(
        f'<li class="product"><a href="/shop/product/{number}">{_name(number)}</a></li>' for number in numbers
    )
    following = f'<a class="next" href="/shop?page={page + 1}">next</a>' if first + PER_PAGE <= PRODUCTS else ""
    return f"<h1>Products</h1><ul>{items}</ul>{following}"


def _product(number: int) -> str:
    price = f"${float(_price(number)):,.2f}"
    return (
        f'<h1>{_name(number)}</h1><p class="price">{price}</p><img src="/image/{number}.png">'
        '<a href="/shop?page=1">all products</a>'
    )


def _urlset(numbers: Sequence[int], base: str) -> bytes:
    entries = "".join(
        f"<url><loc>{base}/shop/product/{number}</loc><lastmod>2026-{1 + number % 12:02}-01</lastmod></url>"
        for number in numbers
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><urlset {_XMLNS}>{entries}</urlset>'.encode()


def _works(topic: str, cursor: str) -> dict[str, Any]:
    first = 0 if cursor == "*" else int(cursor.removeprefix("after-"))
    last = min(first + PER_PAGE, PRODUCTS)
    works = [
        {"id": f"{topic}-{number + 1}", "title": _name(number + 1), "topic": topic} for number in range(first, last)
    ]
    return {"meta": {"next_cursor": f"after-{last}" if last < PRODUCTS else None}, "results": works}


def _wiki(given: dict[str, str]) -> dict[str, Any]:
    if "titles" in given:
        pages = [
            {"pageid": 1000 + zlib.crc32(title.encode()) % 1000, "title": title, "length": 100 * len(title)}
            for title in given["titles"].split("|")
        ]
        return {"query": {"pages": pages}}
    first = int(given.get("cmcontinue", "page|0").removeprefix("page|"))
    last = min(first + TITLES_PER_PAGE, TITLES)
    members = [{"ns": 0, "title": f"Physicist {number + 1}"} for number in range(first, last)]
    following = {"continue": {"cmcontinue": f"page|{last}", "continue": "-||"}} if last < TITLES else {}
    return {**following, "query": {"categorymembers": members}}


def _png(number: int) -> bytes:
    """A PNG of one pixel, whose color is made of the number."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    pixel = zlib.compress(bytes([0, number, 2 * number, 3 * number]))
    header = b"\0\0\0\1\0\0\0\1\x08\2\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def _html(text: str) -> CannedResponse:
    return CannedResponse(200, f"<!doctype html><html><body>{text}</body></html>".encode(), "text/html; charset=utf-8")


def _json(value: Any) -> CannedResponse:
    return CannedResponse(200, json.dumps(value).encode())
