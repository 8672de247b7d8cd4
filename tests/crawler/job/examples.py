"""Job documents and jobs as the tests of this folder need them."""

from __future__ import annotations

from typing import Any

from crawler.job.job import Job, read_job


def a_document(**sections: Any) -> dict[str, Any]:
    return {"run": {"name": "test"}, "source": {"path": "keys.txt"}} | sections


def a_job(**sections: Any) -> Job:
    return read_job(a_document(**sections))
