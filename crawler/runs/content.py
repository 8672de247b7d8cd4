"""Pure: what made the content of a run's pages."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from xxhash import xxh3_128_hexdigest

from crawler.job.job import Job

# The keys of `[request]` and `[parse]` on which the content of a page depends.
_REQUEST = (
    *("url", "method", "headers", "json", "form", "body", "keys_per_request", "separator"),
    *("cookies", "auth", "login"),  # who asks may see another page
)
# So do these say who asks. Where none of them is given, a run has the hash that an earlier version gave it.
_ALSO_REQUEST = ("cookie_jar", "hosts", "client_cert")
_NOT_OF_CONTENT = ("timeout", "wait_most")


def content_hash(job: Job, parser_files: Mapping[str, str]) -> str | None:
    """A hash of all settings and files that make records of responses; None when the parser's files are not known.

    Pages of two runs with the same hash can be compared, and carried from one into the other.
    """
    if job.functions and not parser_files:
        return None
    given = job.document
    request = given.get("request", {})
    also = {key: request[key] for key in _ALSO_REQUEST if key in request}
    made_by = {
        "request": {key: request.get(key) for key in _REQUEST} | also,
        "parse": {key: value for key, value in given.get("parse", {}).items() if key not in _NOT_OF_CONTENT},
        **{section: given.get(section) for section in ("tables", "kinds", "paginate", "follow")},
        "files": dict(parser_files),
        **({"transform": [(one.python, one.table) for one in job.transform]} if job.transform else {}),
    }
    return xxh3_128_hexdigest(orjson.dumps(made_by, option=orjson.OPT_SORT_KEYS, default=str))
