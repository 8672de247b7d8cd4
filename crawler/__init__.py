"""HTTP in, Postgres out: the workers, and the doors through which users come.

`Response` is what a parser gets: `from crawler import Response` gives it a type. `read` gives the rows of a
corpus as Arrow.
"""

from typing import TYPE_CHECKING

__all__ = ["Response", "read"]

if TYPE_CHECKING:
    from crawler.export.reader import read
    from crawler.parse.response import Response
else:

    def __getattr__(name: str) -> object:
        """Import what is asked for: a process that runs no parser need not load one."""
        if name == "Response":
            from crawler.parse.response import Response

            return Response
        if name == "read":
            from crawler.export.reader import read

            return read
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
