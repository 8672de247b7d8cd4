"""HTTP in, Postgres out: the workers, and the doors through which users come.

`Response` is what a parser gets: `from crawler import Response` gives it a type. `read` gives the rows of a
corpus as Arrow.
"""

from typing import TYPE_CHECKING

__all__ = ["Response", "read"]

if TYPE_CHECKING:
    from crawler.parse.response import Response
    from crawler.reader import read
else:

    def __getattr__(name: str) -> object:
        """Import what is asked for: a process that runs no parser need not load one."""
        if name == "Response":
            from crawler.parse.response import Response

            return Response
        if name == "read":
            from crawler.reader import read

            return read
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
