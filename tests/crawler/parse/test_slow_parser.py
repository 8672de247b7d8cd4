from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from random import Random

import pytest

from crawler.parse.slow_parser import FIRST_CALLS, WINDOW_CALLS, Moment, SlowParserDetector, call_seconds, thread_moment
from crawler.telemetry.loop_lag import LONG_LAG_SECONDS, LoopLag


def calls_until_slow(times: Sequence[float], cpu: Sequence[float] | None = None) -> int | None:
    """After how many calls the parser is slow. Without `cpu` a call waits for nothing, and nobody else has the core."""
    detector = SlowParserDetector()
    calls = enumerate(zip(times, cpu or times, strict=True), 1)
    return next((number for number, call in calls if detector.add_call(*call)), None)


def test_a_slow_parser_is_found_before_its_first_calls_add_up_to_50_ms() -> None:
    for seconds in (0.0011, 0.002, 0.005, 0.009):
        found = calls_until_slow([seconds] * WINDOW_CALLS)
        assert found is not None
        assert found * seconds < 0.05


def test_a_parser_that_only_waits_is_slow() -> None:
    assert calls_until_slow([0.006] * WINDOW_CALLS, [0.0001] * WINDOW_CALLS) == FIRST_CALLS
    often = [0.0002, *[0.003] * 4] * WINDOW_CALLS
    assert calls_until_slow(often, [0.0001] * len(often)) == WINDOW_CALLS


def test_a_quick_parser_is_never_slow_nor_do_its_first_calls_count() -> None:
    assert calls_until_slow([3.0] + [0.0009] * 10 * WINDOW_CALLS) is None
    assert calls_until_slow([0.03, 0.01, 0.005, 0.002] + [0.0003] * 10 * WINDOW_CALLS) is None
    begins = [0.004] * 10 + [0.0003] * 10 * WINDOW_CALLS
    assert calls_until_slow(begins, [0.0005] * len(begins)) is None


def test_a_process_that_loses_its_core_now_and_then_does_not_make_a_parser_slow() -> None:
    random = Random(7)
    times = [0.01 if random.random() < 0.02 else 0.0001 for _ in range(1000 * WINDOW_CALLS)]
    assert calls_until_slow(times) is None


def test_a_quick_parser_that_waits_for_a_thread_without_a_core_in_many_calls_is_not_slow() -> None:
    random = Random(7)
    times = [0.02 if random.random() < 0.4 else 0.0003 for _ in range(1000 * WINDOW_CALLS)]
    assert calls_until_slow(times, [0.0003] * len(times)) is None


def test_one_long_call_in_ten_is_found_and_so_is_a_parser_that_becomes_slow() -> None:
    assert calls_until_slow(([0.0001] * 9 + [0.05]) * WINDOW_CALLS) is not None
    found = calls_until_slow([0.0001] * (WINDOW_CALLS + 1) + [0.005] * 2 * WINDOW_CALLS)
    assert found == 2 * WINDOW_CALLS + FIRST_CALLS


def test_a_window_that_only_seems_slow_is_followed_by_one_that_is_looked_at_closely() -> None:
    detector = SlowParserDetector()
    closely = []
    for _ in range(5 * WINDOW_CALLS):
        closely.append(detector.is_close)
        assert not detector.add_call(*((0.0001, 0.0001) if detector.is_close else (0.005, 0.005)))
    assert closely == ([True] * WINDOW_CALLS + [False] * WINDOW_CALLS) * 2 + [True] * WINDOW_CALLS


def test_what_is_usual_leaves_the_longest_two_out() -> None:
    detector = SlowParserDetector()
    assert detector.usual_seconds == 0.0
    times = (0.0005, 0.5, 0.0015, 0.7, 0.001)
    assert [detector.add_call(seconds, seconds) for seconds in times] == [False] * 5
    assert detector.usual_seconds == pytest.approx(0.001)


def test_the_time_of_other_processes_is_left_out_but_not_what_a_call_waits_for() -> None:
    began = Moment(wall=5.0, cpu=2.0, waits=3)
    assert call_seconds(began, Moment(5.02, 2.0003, 3)) == pytest.approx((0.0003, 0.0003))
    assert call_seconds(began, Moment(5.02, 2.0003, 4)) == pytest.approx((0.02, 0.0003))
    assert call_seconds(began._replace(waits=None), Moment(5.02, 2.0003, None)) == pytest.approx((0.02, 0.0003))


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread's waits are counted")
def test_a_sleep_counts_as_long_as_it_takes() -> None:
    began = thread_moment()
    time.sleep(0.001)
    assert call_seconds(began, thread_moment())[0] >= 0.001


def test_lags_are_counted_and_the_first_long_one_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    lag = LoopLag()
    assert lag.within(0.99) == 0.0
    for number in range(98):
        lag.record(0.0005 if number % 2 else -0.0001)
    lag.record(0.0302)
    assert (lag.within(0.5), lag.within(0.99), lag.largest) == (0.001, 0.031, 0.0302)
    lag.record(LONG_LAG_SECONDS + 0.25)
    lag.record(LONG_LAG_SECONDS + 1)
    assert lag.largest == LONG_LAG_SECONDS + 1
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the event loop stood still for 1.2 s"
    ]
