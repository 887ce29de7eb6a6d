"""Intervals and tests against known values and other ways to compute them."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import stats

ACCURACIES = st.lists(st.floats(10, 90).map(lambda x: round(x, 2)), min_size=2, max_size=6)


def test_the_interval_is_students():
    # Student's t for 2 degrees of freedom is 4.3027, the deviation is 1.
    mean, low, high, _ = stats.contrast([[80.0, 81.0, 82.0]], [1])
    assert (mean, high - mean) == pytest.approx((81, 4.3027 / 3**0.5), abs=1e-4)
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy's, of almost equal values
@pytest.mark.parametrize("pooled", [False, True])
@settings(deadline=None)  # on a busy machine
@given(ones=ACCURACIES, others=ACCURACIES)
def test_two_means_are_compared_by_welchs_or_students_t(pooled, ones, others):
    mean, low, high, p = stats.contrast([ones, others], [1, -1], pooled)
    assert mean == pytest.approx(sum(ones) / len(ones) - sum(others) / len(others))
    if scipy.stats.sem(ones) + scipy.stats.sem(others) > 1e-3:
        expected = scipy.stats.ttest_ind(ones, others, equal_var=pooled)
        assert p == pytest.approx(expected.pvalue, abs=1e-9)
        assert (low, high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-6)


def test_a_pooled_contrast_has_the_variance_of_all_samples():
    # Variances 2, 2 and 8 of two values each, so 4 with 3 degrees of freedom; weights 1, -1 and 0.
    mean, low, high, _ = stats.contrast([[5, 7], [1, 3], [0, 4]], [1, -1, 0], pooled=True)
    half = scipy.stats.t.ppf(0.975, 3) * (4 / 2 + 4 / 2) ** 0.5
    assert (mean, low, high) == pytest.approx((4, 4 - half, 4 + half))


def test_where_runs_are_missing_there_is_no_difference():
    assert all(map(math.isnan, stats.contrast([[80.0], [70.0, 71.0]], [1, -1])))
    assert all(map(math.isnan, stats.contrast([], [])))
    assert stats.contrast([[10.0, 10.0], [10.0, 10.0]], [1, -1]) == (0, 0, 0, 1)
    assert stats.contrast([[70.0, 70.0], [10.0, 10.0]], [1, -1])[3] == 0


def test_a_difference_varies_with_seeds_and_with_images():
    right = np.zeros((2, 400), bool)
    right[:, :100] = True  # both seeds of the one have the same quarter right, the other nothing
    wrong = np.zeros_like(right)
    assert stats.resample(right, wrong, seeds=True, images=False) == pytest.approx(25)
    by_images = stats.resample(right, wrong, seeds=False, images=True)
    assert by_images.mean() == pytest.approx(25, abs=0.3)
    assert by_images.std() == pytest.approx(100 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)
    equal = stats.resample(right, right.copy(), seeds=False, images=True)
    assert equal.std() == 0, "two arms see the same images"
    right[1] = False  # now one of two seeds
    by_seeds = stats.resample(right, wrong, seeds=True, images=False)
    assert by_seeds.std() == pytest.approx(25 / 8**0.5, rel=0.1)


@settings(deadline=None)  # on a busy machine
@given(ps=st.lists(st.floats(0.0001, 1), max_size=7), alpha=st.floats(0.001, 0.9))
def test_holms_correction_rejects_what_his_steps_reject(ps, alpha):
    rejected, left = set(), dict(enumerate(ps))
    while left and min(left.values()) * len(left) < alpha:
        rejected.add(least := min(left, key=left.get))
        del left[least]
    assert {i for i, p in enumerate(stats.holm(ps)) if p < alpha} == rejected
    assert str(stats.holm([math.nan, 0.02, 0.9, 0.8])) == "[nan, 0.06, 1.0, 1.0]"


def test_means_are_equivalent_by_two_one_sided_tests():
    # Difference -0.5, its error sqrt(2/3), 4 degrees of freedom: t is 0.612 above -1 and -1.837
    # below +1, of which the first is the less sure.
    expected = pytest.approx(scipy.stats.t.sf(0.5 / (2 / 3) ** 0.5, 4))
    assert stats.equivalent([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], margin=1.0) == expected
    assert stats.equivalent([1.5, 2.5, 3.5], [1.0, 2.0, 3.0], margin=1.0) == expected


def test_p_is_corrected_within_a_family():
    a, b, c = [80.0, 81.0, 82.0], [79.0, 81.0, 80.0], [70.0, 70.5, 70.0]
    cells = [("t", "x", (a, b)), ("t", "x", (a, c)), ("t", "y", (a, b)), ("u", "x", (a, []))]
    answers = stats.answer(
        [stats.Comparison(table, family, "row", "column", two) for table, family, two in cells]
    )
    assert answers.corrected.tolist()[:2] == stats.holm(answers.p.tolist()[:2])
    assert answers.corrected[2] == answers.p[2] == answers.p[0], "the only one of its family"
    assert math.isnan(answers.corrected[3])
