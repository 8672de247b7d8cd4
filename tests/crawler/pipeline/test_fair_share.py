from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crawler.pipeline.fair_share import FairShare, share_of


@given(limit=st.integers(0, 10_000), size=st.integers(1, 300))
def test_the_shares_of_all_workers_add_up_to_the_limit_and_are_even(limit: int, size: int) -> None:
    shares = [share_of(limit, rank, size) for rank in range(size)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


def test_a_worker_before_its_first_heartbeat_has_all_of_it() -> None:
    assert FairShare().share(7) == 7


def test_a_share_shrinks_at_once_and_grows_a_heartbeat_late() -> None:
    fair_share = FairShare().after_heartbeat(0, 4, 0)
    assert fair_share.share(8) == 2
    grown = fair_share.after_heartbeat(0, 2, 0)
    assert grown.share(8) == 2
    assert grown.after_heartbeat(0, 2, 0).share(8) == 4


def test_turns_give_everybody_the_remainder_once() -> None:
    for rank in range(3):
        shares = [
            FairShare().after_heartbeat(rank, 3, turn).after_heartbeat(rank, 3, turn).share(1) for turn in range(3)
        ]
        assert sorted(shares) == [0, 0, 1]


def test_a_run_without_workers_counts_as_one_worker() -> None:
    assert FairShare().after_heartbeat(0, 0, 5).share(3) == 3


@given(
    limit=st.integers(0, 40),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    phases=st.lists(st.floats(0, 1, exclude_max=True), min_size=8, max_size=8),
)
def test_the_shares_of_all_exceed_the_limit_at_no_moment(limit: int, sizes: list[int], phases: list[float]) -> None:
    """The number of workers and the turn change every 5 s; each worker learns of it at its heartbeat, once a second.

    After a worker has joined, it takes one heartbeat until all others know of it.
    """
    shares_of: dict[int, FairShare] = {}
    joined_at = 0
    for heartbeat in range(5 * len(sizes)):
        turn = heartbeat // 5
        size = sizes[turn]
        for gone in [worker for worker in shares_of if worker >= size]:
            del shares_of[gone]
        for worker in sorted(range(size), key=lambda worker: phases[worker]):
            if worker not in shares_of:
                joined_at = heartbeat
            shares_of[worker] = shares_of.get(worker, FairShare()).after_heartbeat(worker, size, turn)
            if heartbeat > joined_at + 1:
                assert sum(fair_share.share(limit) for fair_share in shares_of.values()) <= limit
