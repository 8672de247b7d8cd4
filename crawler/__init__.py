"""HTTP in, Postgres out: the workers, and the doors through which users come.

`Response` is what a parser gets: `from crawler import Response` gives it a type.
"""

from typing import TYPE_CHECKING

__all__ = ["Response"]

if TYPE_CHECKING:
    from crawler.parse.response import Response
else:

    def __getattr__(name: str) -> object:
        """Import `Response` when it is asked for: a process that runs no parser need not load one."""
        if name != "Response":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from crawler.parse.response import Response

        return Response
