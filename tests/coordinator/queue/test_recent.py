"""What a worker remembers of the keys that are stored: never more than it was given, and not for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.queue.recent import RecentKeys
from tests.coordinator.parts import numbered

KEYS = st.text(min_size=1, max_size=2)


def test_what_was_not_added_is_new_in_its_order() -> None:
    recent = RecentKeys()
    recent.add(["a", "c"])
    assert recent.new(["d", "a", "b", "c", "b"]) == ["d", "b", "b"]
    assert not recent.new(["a", "c"])


def test_the_oldest_are_forgotten() -> None:
    recent = RecentKeys(most=1_000)
    keys = numbered(10_000)
    for start in range(0, len(keys), 100):
        recent.add(keys[start : start + 100])
    remembered = set(keys).difference(recent.new(keys))
    assert not recent.new(keys[-1:])
    assert 256 <= len(remembered) <= 512  # the power of two below, and few of its places were never used
    assert not remembered & set(keys[:5_000])  # 19 keys came to each place since


@given(st.lists(st.lists(KEYS, max_size=4), max_size=8), st.lists(KEYS))
def test_only_what_was_added_is_left_out(added: list[list[str]], keys: list[str]) -> None:
    recent = RecentKeys(most=6)
    for part in added:
        recent.add(part)
    new = recent.new(keys)
    every = {key for part in added for key in part}
    assert [key for key in keys if key not in every] == [key for key in new if key not in every]
    assert set(new) <= set(keys)
