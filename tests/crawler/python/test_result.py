from __future__ import annotations

from pathlib import Path

import crawler
from coordinator.model import Outcome, RunCounts
from crawler.local.events import RunEnd
from crawler.local.services import Place
from crawler.python.result import RunResult
from crawler.store.reasons import ReasonCount

JOB = crawler.Job.from_dict({"run": {"name": "items"}, "source": {"keys": ["https://x.org/1"]}})


def test_a_run_that_gave_up_is_paused_and_says_why_keys_failed() -> None:
    counts = RunCounts(outcomes={Outcome.STORED: 1200, Outcome.FAILED: 3})
    reasons = (ReasonCount(Outcome.FAILED, "status 503", 3),)
    end = RunEnd(JOB, counts, None, 2.5, reasons=reasons, gave_up=True)
    result = RunResult.of(end, Place(None, None, Path("unused")))
    assert (result.state, result.ok, result.published, result.shortfall) == ("paused", False, False, None)
    assert result.summary == "run items is paused: 1,200 stored, 3 failed"
    assert result.notices == ("failed 3: 3 x status 503",)
