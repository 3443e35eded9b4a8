from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.errors import BadValue
from calculator.units import GIB, MAX_COUNT, align_up, ceil_div, gib, parse_count, tokens


@given(st.integers(0, 10**15), st.integers(1, 10**6))
def test_align_up_is_the_next_multiple(a, b):
    aligned = align_up(a, b)
    assert aligned % b == 0
    assert a <= aligned < a + b
    assert ceil_div(a, b) * b == aligned


def test_k_is_1024_and_m_is_its_square():
    assert parse_count("8k", name="context") == 8192
    assert parse_count("1M", name="context") == 1024**2
    assert parse_count(" 1000 ", name="context") == 1000


@pytest.mark.parametrize(
    "bad", ["0", "-1", "12q", "NaN", "inf", "1e5", "", "8.5k", "٣x", "9" * 31, "9" * 5000, 0, -1, 10**30, True, 2.5, None]
)
def test_what_is_no_count_is_refused_in_one_line(bad):
    with pytest.raises(BadValue) as error:
        parse_count(bad, name="context")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    assert "allowed" in str(error.value)


@given(st.integers(1, MAX_COUNT))
def test_counts_survive_a_round_trip(n):
    assert parse_count(str(n), name="context") == n


def test_people_read_gib():
    assert gib(GIB) == "1.00 GiB"
    assert gib(0) == "0 B"
    assert tokens(131072) == "128k"
    assert tokens(1000) == "1,000"
