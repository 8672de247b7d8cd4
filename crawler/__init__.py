"""HTTP in, Postgres out: the workers, and the doors through which users come.

`Response` is what a parser gets: `from crawler import Response` gives it a type. `run` runs a `Job`, `read` gives the
rows of a corpus as Arrow, `connect` does both, and more, at one place.
"""

from typing import TYPE_CHECKING

__all__ = ["Job", "Response", "connect", "read", "run"]

if TYPE_CHECKING:
    from crawler.job.job import Job
    from crawler.parse.response import Response
    from crawler.python.connection import connect, run
    from crawler.reader import read
else:

    def __getattr__(name: str) -> object:
        """Import what is asked for: a process that runs no parser need not load one."""
        if name == "Response":
            from crawler.parse.response import Response

            return Response
        if name == "Job":
            from crawler.job.job import Job

            return Job
        if name == "read":
            from crawler.reader import read

            return read
        if name in ("connect", "run"):
            from crawler.python import connection

            return getattr(connection, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
