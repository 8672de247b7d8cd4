"""HTTP in, Postgres out: the workers, and the doors through which users come.

`Response` is what a parser gets: `from crawler import Response` gives it a type.
"""

from crawler.parse.hook import Response

__all__ = ["Response"]
