from __future__ import annotations

import pytest

from crawler.job.sections.publish import PublishSettings
from crawler.runs.gate import Facts, shortfall

FULL = Facts(keys=1000, failed=20, denied=10, incomplete=3, keys_before=2000, gone_since=100, keys_with_rows=1900)


@pytest.mark.parametrize(
    ("bounds", "facts", "words"),
    [
        pytest.param({}, FULL, "", id="no bound"),
        pytest.param({"max_failed": 0.03}, FULL, "", id="as many failed as may"),
        pytest.param(
            {"max_failed": 0.029},
            FULL,
            "max_failed is 2.9 %, and 30 of 1,000 keys failed, 10 of them denied (3 %)",
            id="too many failed",
        ),
        pytest.param({"max_failed": 0.0}, Facts(keys=1000), "", id="none failed, and none may"),
        pytest.param(
            {"max_failed": 0.0},
            Facts(keys=3, failed=1, keys_with_rows=2),
            "max_failed is 0 %, and 1 of 3 keys failed (33.33 %)",
            id="none may fail",
        ),
        pytest.param({"max_failed": 0.0}, Facts(keys=0), "", id="no keys at all"),
        pytest.param({"max_gone": 0.05}, FULL, "", id="as many gone as may"),
        pytest.param(
            {"max_gone": 0.04},
            FULL,
            "max_gone is 4 %, and 100 of 2,000 keys with rows are gone or no longer in the source (5 %)",
            id="too many gone",
        ),
        pytest.param({"min_keys": 0.95}, FULL, "", id="enough keys"),
        pytest.param(
            {"min_keys": 1.0},
            FULL,
            "min_keys is 100 %, and 1,900 keys have rows, after 2,000 in the current run (95 %)",
            id="too few keys",
        ),
        pytest.param({"max_gone": 0.0, "min_keys": 2.0}, Facts(keys=5), "", id="no run before"),
        pytest.param({"max_gone": 0.0, "min_keys": 2.0}, Facts(keys=5, keys_before=0), "", id="an empty one before"),
        pytest.param(
            {},
            Facts(keys=0, keys_before=2000),
            "min_keys is not given, and no key has rows, after 2,000 in the current run",
            id="no bound, and no rows any more",
        ),
        pytest.param({}, Facts(keys=0, keys_before=2000, may_be_empty=True), "", id="nothing is new"),
        pytest.param({"min_keys": 0.0}, Facts(keys=0, keys_before=2000), "", id="no rows, and none need be"),
        pytest.param({}, Facts(keys=5, failed=5), "", id="a first run without rows, of a job without [publish]"),
        pytest.param(
            {"max_gone": 0.05},
            Facts(keys=5, failed=3, denied=1),
            "min_keys is not given, and no key has rows: 4 of 5 failed or were denied",
            id="a first run without rows",
        ),
        pytest.param({"max_gone": 0.05, "min_keys": 0.0}, Facts(keys=5, failed=5), "", id="it may be without rows"),
        pytest.param({"max_gone": 0.05}, Facts(keys=5), "", id="all keys of the first run are gone"),
        pytest.param({"max_incomplete": 3}, FULL, "", id="as many lists as may"),
        pytest.param(
            {"max_incomplete": 2}, FULL, "max_incomplete is 2, and 3 lists broke off", id="too many broken lists"
        ),
    ],
)
def test_a_bound_that_is_not_kept_is_named_with_what_was_found(
    bounds: dict[str, float], facts: Facts, words: str
) -> None:
    assert shortfall(PublishSettings(**bounds), facts).removeprefix("[publish] ") == words


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_bound_is_kept_by_as_many_keys_as_it_says(percent: int) -> None:
    """As floats 0.29 of 100 are less than 29, and 0.55 of 100 more than 55."""
    share = percent / 100
    bounds = PublishSettings(max_failed=share, max_gone=share, min_keys=share)
    exact = Facts(keys=100, failed=percent, keys_before=100, gone_since=percent, keys_with_rows=percent)
    assert shortfall(bounds, exact) == ""
    worse = Facts(keys=100, failed=percent + 1, keys_before=100, gone_since=percent + 1, keys_with_rows=percent - 1)
    assert shortfall(bounds, worse).count("%") == 6


def test_all_bounds_that_are_not_kept_are_in_one_line() -> None:
    found = shortfall(PublishSettings(max_failed=0.0, max_gone=0.0, min_keys=1.0, max_incomplete=0), FULL)
    assert [part.split()[0] for part in found.removeprefix("[publish] ").split("; ")] == [
        *("max_failed", "max_gone", "min_keys", "max_incomplete")
    ]
    assert "\n" not in found
