"""Numbers of JSON keep their value: as int or float where these hold it as it is written, else as Decimal."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler.parse.values import exact_json

DIGITS = st.text("0123456789", min_size=1, max_size=25)
LITERALS = st.builds(
    lambda sign, whole, fraction, exponent: f"{sign}{whole.lstrip('0') or '0'}{fraction}{exponent}",
    st.sampled_from(["", "-"]),
    DIGITS,
    st.one_of(st.just(""), DIGITS.map(lambda digits: f".{digits}")),
    st.one_of(
        st.just(""),
        st.builds(lambda mark, power: f"{mark}{power}", st.sampled_from(["e", "E+", "E-"]), st.integers(0, 999)),
    ),
)


@given(st.lists(LITERALS, min_size=1, max_size=3))
def test_every_number_keeps_its_value(literals: list[str]) -> None:
    for literal, number in zip(literals, exact_json.loads(f"[{','.join(literals)}]".encode()), strict=True):
        assert Decimal(repr(number) if isinstance(number, float) else number) == Decimal(literal)


@pytest.mark.parametrize(
    ("literal", "number"),
    [
        ("1", 1),
        ("-0.0", -0.0),
        ("0.1", 0.1),
        ("1.10", 1.1),
        ("0.30000000000000004", 0.30000000000000004),
        ("0.10000000000000001", Decimal("0.10000000000000001")),
        ("8.000000000000001", Decimal("8.000000000000001")),  # 16 digits, and still no float
        ("1234567890.12345", 1234567890.12345),
        ("12345678901234567.89", Decimal("12345678901234567.89")),
        ("1234567890123456789", 1234567890123456789),
        ("18446744073709551617", 2**64 + 1),
        ("-18446744073709551617", -(2**64) - 1),
        ("1e22", 1e22),
        ("9007199254740993e0", Decimal(9007199254740993)),
        ("1e400", Decimal("1e400")),
        ("9" * 5000, Decimal("9" * 5000)),
        ("1E-400", Decimal("1e-400")),
        ("1e-0005", 1e-5),
        ("2.5e-323", 2.5e-323),
        ("1.3e-323", Decimal("1.3e-323")),
        (f"0.{'0' * 400}1", Decimal(10) ** -401),
    ],
)
@pytest.mark.parametrize("around", ["%s", '{"a": %s}', '["12345678901234567890", %s, null]'])
def test_a_number_is_a_float_only_where_that_is_written_with_the_same_value(
    literal: str, number: Any, around: str
) -> None:
    read = exact_json.loads((around % literal).encode())
    value = read if around == "%s" else next(iter(read.values())) if isinstance(read, dict) else read[1]
    assert (value, type(value)) == (number, type(number))
    assert math.copysign(1, value) == math.copysign(1, number)


@pytest.mark.parametrize(
    "body",
    [b"", b"[1,]", b"{'a': 1}", b"[NaN]", b"[-Infinity]", b"[1e400, NaN]", b'["\xff", 12345678901234567890]', b"[01]"],
)
def test_what_is_no_json_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are of two libraries
        exact_json.loads(body)


@given(
    st.recursive(
        st.integers(-(2**70), 2**70) | st.decimals(-(10**20), 10**20) | st.text('a\\"é'),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    )
)
def test_what_is_written_is_read_back_with_the_same_value(value: Any) -> None:
    assert json.loads(exact_json.dumps(value), parse_float=Decimal) == value


def test_an_ordinary_body_is_read_by_orjson_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_json, "_DECODER", None)
    for value in (
        {"a": [1.5, -3, "2026-01-01T12:00:00.123456Z"], "sha1": "9e123456789abcdef", "big": 123456789012345},
        [],
    ):
        assert exact_json.loads(orjson.dumps(value)) == value
