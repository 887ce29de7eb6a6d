"""The runs that a table or a figure is made of: which are taken, and what is measured of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import make_frame
from experiments import frames

GAINS = st.lists(st.floats(0.01, 5), min_size=1, max_size=8)  # by epoch


@settings(deadline=None)  # on a busy machine
@given(gains=GAINS, share=st.floats(0.001, 1))
def test_a_crossing_is_that_of_the_piecewise_linear_curve(gains, share):
    history = (frames.CHANCE + np.cumsum(gains)).tolist()
    goal = frames.CHANCE + share * (history[-1] - frames.CHANCE)
    expected = np.interp(goal, [frames.CHANCE, *history], range(len(history) + 1))
    assert frames.find_crossing(history, goal) == pytest.approx(expected)
    losses = [-accuracy for accuracy in history]
    at_loss = frames.interpolate(losses, history, -goal)
    assert at_loss == pytest.approx(max(goal, history[0])), "at once where it begins below"
    assert math.isnan(frames.find_crossing(history, history[-1] + 0.1))


def test_a_level_is_crossed_the_first_time():
    losses, values = [2.0, 1.0, 1.2, 0.8], [10.0, 20.0, 30.0, 50.0]
    assert frames.interpolate(losses, values, 1.0) == 20
    assert frames.interpolate(losses, values, 0.9) == pytest.approx(45)
    assert math.isnan(frames.find_crossing([], 60)), "it diverged"


@pytest.mark.parametrize(
    ("searched", "best"), [([70, None], 0.3), ([None, None], 0.3), ([95, None], 0.1)]
)
def test_a_trial_that_diverged_is_a_guess_neither_dropped_nor_the_best(searched, best):
    tests = {("search-sgd-0.1", "he"): searched, ("search-sgd-0.3", "he"): [45, 46]}
    tests |= {("baseline-sgd-0.1", "he"): [60], ("baseline-sgd-0.3", "he"): [60]}
    assert frames.get_compared(make_frame(tests)).rate.tolist() == [best]
