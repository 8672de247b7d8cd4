from __future__ import annotations

from typing import Any

import pytest

from crawler.parse.select.path import ABSENT, SelectorError, compile_path, compile_quick

RESPONSE = {
    "a": {"b": 1, "b.c": 2, 'q"': 3, "0": 4, "01": 7, "-0": 8, "-": 5, "@id": 6, "nul": None},
    "list": [{"x": 1}, {"x": None}, {}, {"x": 2}],
    "deep": [{"in": [{"x": 1}, {"x": 2}]}, {"in": []}, {}, {"in": None}],
    "map": {"k": {"x": 1}, "l": {"x": 2}},
    "text": "abc",
    "empty": [],
    "nul": None,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", RESPONSE),
        ("a.b", 1),
        (" a.b ", 1),  # as in "a.b ?"
        ('a["b.c"]', 2),
        (r'a["q\""]', 3),
        ("a.0", 4),
        ("a.01", 7),
        ("a.-0", 8),
        ("a.-", 5),
        ("a.@id", 6),
        ("a.nul", None),
        ("a.none", ABSENT),
        ("none.b", ABSENT),
        ("nul.b", ABSENT),
        ("list.0.x", 1),
        ("list.-1.x", 2),
        ("list.9.x", ABSENT),
        ("list[]", RESPONSE["list"]),
        ("list[].x", [1, None, 2]),
        ("deep[].in[].x", [1, 2]),
        ("deep.0.in[].x", [1, 2]),
        ("map.*.x", [1, 2]),
        ("map.*", [{"x": 1}, {"x": 2}]),
        ("empty[].x", []),
        ("nul[].x", ABSENT),
        ("none[]", ABSENT),
    ],
)
def test_a_path_leads_to_its_value_or_to_nothing(path: str, value: Any) -> None:
    assert compile_path(path)(RESPONSE) == value
    quick = compile_quick(path, False)
    if quick is not None and value is not ABSENT:
        assert quick(RESPONSE) == value


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("list.x", "'x' stands behind a list; write [] for each of its elements, or .0 for the first"),
        ("text.x", "'x' stands behind 'abc', which has no members"),
        ("text.0", "0 stands behind 'abc', which has no members"),
        ("map[]", "[] is for the elements of a list, and this is {'k': "),
        ("list.*", ".* is for the values of an object, and this is [{"),
        ("list[].x.y", "'y' stands behind 1, which has no members"),
    ],
)
def test_a_value_of_another_kind_is_an_error(path: str, says: str) -> None:
    with pytest.raises(SelectorError) as error:
        compile_path(path)(RESPONSE)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("path", "at"),
    [(".a", 1), ("a.", 2), ("a..b", 2), ("a[", 2), ("a[0]", 2), ('a["b', 2), ("a[]b", 4), ("[].a b[", 7), ("a.b?", 4)],
)
def test_a_wrong_path_says_where(path: str, at: int) -> None:
    with pytest.raises(ValueError, match=f"is wrong at character {at}; write a.b for"):
        compile_path(path)


def test_a_path_of_ten_thousand_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="10000 steps are too many"):
        compile_path(".".join("a" * 10_000))
