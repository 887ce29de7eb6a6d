"""Intervals and tests: known values."""

import math
import re

import pytest

from common import need_packages

need_packages()

import pandas as pd  # noqa: E402
from scipy import stats  # noqa: E402

from experiments import intervals  # noqa: E402


def test_the_interval_is_students():
    # Student's t for 2 degrees of freedom is 4.3027, the deviation is 1.
    assert intervals.get_half_width([80.0, 81.0, 82.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert math.isnan(intervals.get_half_width([80.0]))


def test_two_means_are_compared_by_welchs_t():
    # Means 81 and 70, variances 1 and 4: t = 11 / sqrt(5 / 3), 2.94 degrees of freedom.
    mean, low, high, p = intervals.welch([80.0, 81.0, 82.0], [68.0, 70.0, 72.0])
    freedom = (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    assert freedom == pytest.approx(2.94, abs=0.01)
    half = stats.t.ppf(0.975, freedom) * (5 / 3) ** 0.5
    assert (mean, low, high) == pytest.approx((11.0, 11 - half, 11 + half))
    assert p == pytest.approx(2 * stats.t.sf(11 / (5 / 3) ** 0.5, freedom))
    assert all(map(math.isnan, intervals.welch([80.0], [70.0, 71.0])[1:]))
    assert all(map(math.isnan, intervals.welch([], [70.0, 71.0])))


def test_where_runs_are_missing_the_others_count_and_none_are_a_dash():
    half = 4.3027 / 3**0.5
    assert intervals.format_mean([80.0, 81.0, 82.0]) == f"81.00 ± {half:.2f}"
    assert intervals.format_mean([80.0]) == "80.00"
    assert intervals.format_mean([]) == "–"
    frames = [pd.DataFrame({"a": values}) for values in ([1.0, math.nan, 2.0], [0.0, 1.0], [])]
    pairs = {("b",): frames[:2], ("c",): frames[1:]}
    (_, _, b), (_, _, c) = (
        re.split(r" *\| *", row)[:3]
        for row in intervals.format_differences(["of"], pairs, {"a": "a"}).splitlines()[2:]
    )
    assert b.startswith("+1.00 (")
    assert c == "–"


def test_holms_correction_is_the_textbook_s():
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert str(intervals.holm([math.nan, 0.02, 0.03])) == "[nan, 0.04, 0.04]"
    assert intervals.holm([]) == []


def test_mcnemar_is_the_exact_binomial_test():
    one = [True] * 9 + [False] * 1 + [True] * 50
    other = [False] * 9 + [True] * 1 + [True] * 50
    # Ten coins, nine or more on one side: 2 * (10 + 1) / 2**10.
    assert intervals.mcnemar(one, other) == (9, 1, pytest.approx(22 / 1024))
    assert intervals.mcnemar(one, one) == (0, 0, 1.0)
