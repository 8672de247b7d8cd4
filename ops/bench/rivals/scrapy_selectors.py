"""Scrapy with its own selectors and a COPY pipeline, one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from scrapy.http import Response, TextResponse

from ops.bench.rivals.scrapy_spider import PageBuilder, crawl


class Products(PageBuilder):
    """Fetches each URL of a file; an item is what is selected of the page, as ops.bench.site selects it."""

    name = "products"

    def parse(self, response: Response, **_: Any) -> Iterator[dict[str, Any]]:
        """See Scrapy."""
        assert isinstance(response, TextResponse)
        price, stock = response.css(".price::text").get(), response.css(".stock::text").get()
        assert price
        assert stock
        product = {
            "title": response.css("h1::text").get(),
            "price": float(price.lstrip("$").replace(",", "")),
            "sku": response.css(".product::attr(data-sku)").get(),
            "stock": int(stock),
            "about": response.css(".about::text").get(),
        }
        yield {"url": response.url, "status": response.status, "body": json.dumps(product)}


if __name__ == "__main__":
    crawl(Products, __doc__)
