"""Intervals and tests against known values and other ways to compute them."""

import math

import pytest

from common import need_packages, read_table

need_packages()

import pandas as pd  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy import stats as scipy_stats  # noqa: E402

from experiments import stats  # noqa: E402

ACCURACIES = st.lists(st.floats(10, 90).map(lambda x: round(x, 2)), min_size=2, max_size=6)


def test_the_interval_is_students():
    # Student's t for 2 degrees of freedom is 4.3027, the deviation is 1.
    assert stats.get_half_width([80.0, 81.0, 82.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert math.isnan(stats.get_half_width([80.0]))


def test_a_mean_is_of_the_values_that_there_are():
    half = 4.3027 / 3**0.5
    assert stats.format_mean([80.0, 81.0, math.nan, 82.0]) == f"81.00 ± {half:.2f}"
    assert stats.format_mean([80.0, math.nan]) == "80.00"
    assert stats.format_mean([]) == "–"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy's, of almost equal values
@settings(deadline=None)  # on a busy machine
@given(ones=ACCURACIES, others=ACCURACIES)
def test_two_means_are_compared_by_welchs_t(ones, others):
    parts = [(sum(v) / len(v), scipy_stats.sem(v) ** 2, len(v) - 1) for v in (ones, others)]
    (mean, one, n), (less, other, m) = parts
    difference, low, high, p = stats.welch(ones, others)
    assert difference == mean - less
    if one + other > 1e-6:  # Welch and Satterthwaite's degrees of freedom
        freedom = (one + other) ** 2 / (one**2 / n + other**2 / m)
        half = scipy_stats.t.ppf(0.975, freedom) * (one + other) ** 0.5
        assert (low, high) == pytest.approx((difference - half, difference + half), abs=1e-6)
        t = abs(difference) / (one + other) ** 0.5
        assert p == pytest.approx(2 * scipy_stats.t.sf(t, freedom), abs=1e-9)
        expected = scipy_stats.ttest_ind(ones, others, equal_var=False).pvalue
        assert p == pytest.approx(expected)


def test_where_runs_are_missing_there_is_no_p():
    assert stats.welch([80.0], [70.0, 71.0])[0] == 9.5
    assert all(map(math.isnan, stats.welch([80.0], [70.0, 71.0])[1:]))
    assert all(map(math.isnan, stats.welch([], [70.0, 71.0])))


def test_holms_correction_is_the_textbooks():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert str(stats.holm([math.nan, 0.02, 0.03])) == "[nan, 0.04, 0.04]"


@settings(deadline=None)  # on a busy machine
@given(ps=st.lists(st.floats(0.0001, 1), max_size=7), alpha=st.floats(0.001, 0.9))
def test_holms_correction_rejects_what_his_steps_reject(ps, alpha):
    rejected, left = set(), dict(enumerate(ps))
    while left and min(left.values()) * len(left) < alpha:
        rejected.add(least := min(left, key=left.get))
        del left[least]
    assert {i for i, p in enumerate(stats.holm(ps)) if p < alpha} == rejected


def test_means_are_equivalent_by_two_one_sided_tests():
    # Difference -0.5, its error sqrt(2/3), 4 degrees of freedom: t is 0.612 above -1 and -1.837
    # below +1, of which the first is the less sure.
    p = stats.equivalent([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], margin=1.0)
    assert p == pytest.approx(scipy_stats.t.sf(0.5 / (2 / 3) ** 0.5, 4))
    assert stats.equivalent([1.5, 2.5, 3.5], [1.0, 2.0, 3.0], margin=1.0) == pytest.approx(p)
    ones, others = [85.0, 85.2, 85.1], [85.1, 85.3, 85.1]
    assert stats.equivalent(ones, others, margin=1.0) < 0.01
    assert stats.equivalent(ones, others, margin=0.1) > 0.3, "not different is not equal"


@pytest.fixture
def frame():
    """Two recipes, three arms of three seeds; `c` of the second recipe is missing."""
    tests = {"a": [80.0, 81.0, 82.0], "b": [79.0, 81.0, 80.0], "c": [70.0, 70.5, 70.0]}
    rows = [("x", arm, test) for arm, values in tests.items() for test in values]
    rows += [("y", arm, test) for arm in "ab" for test in tests[arm]]
    return pd.DataFrame(rows, columns=["recipe", "arm", "test"])


PAIRS = [("a", "b"), ("a", "c")]


def test_differences_are_in_bold_only_where_significant(frame):
    table = stats.differences(frame, ["recipe"], "arm", PAIRS, {"test": "accuracy"})
    rows = read_table(stats.format_differences(table, ["recipe", "difference"]))
    # Welch's half width with variances 1 and 1 of 3 seeds each: t for 4 degrees is 2.7764.
    half = 2.7764 * (2 / 3) ** 0.5
    assert rows[0] == ["x", "a - b", f"+1.00 ({1 - half:+.2f} to {1 + half:+.2f})"]
    assert rows[1][2].startswith("**+10.83** (")
    assert rows[3] == ["y", "a - c", "–"]
    wide = stats.format_differences(table, ["recipe"], "difference").splitlines()
    assert wide[0].split() == ["|", "recipe", "|", "a", "-", "b", "|", "a", "-", "c", "|"]
    assert len(wide) == 4


def test_the_correction_is_for_the_declared_family_alone(frame):
    options = (["recipe"], "arm", PAIRS, {"test": "test"})
    every = stats.differences(frame, *options)
    assert every.corrected.tolist()[:3] == stats.holm(every.p.tolist())[:3]
    declared = stats.differences(frame, *options, family=lambda row: row.difference == "a - c")
    assert declared.corrected[1] == declared.p[1], "the only one that could be computed"
    assert declared.corrected.isna().tolist() == [True, False, True, True]
