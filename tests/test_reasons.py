"""What is made of the claims' runs: tables and figures of made-up results with known answers."""

import math

import pytest

for package in ("pandas", "scipy", "tabulate"):
    pytest.importorskip(package, reason="needs experiments/requirements.txt")

import reasons  # noqa: E402
from common import read_table  # noqa: E402

# Final test accuracy (%) of two seeds by arm and rate; None is a run that diverged.
RATES = {
    "none": {0.1: (10, 10), 1: (None, None), 3: (None, 10)},
    "bn": {0.1: (70, 70), 1: (71, 73), 3: (60, 15)},
    "gn": {0.1: (69, 71), 1: (66, 70), 3: (12, None)},
}


def make_results(claim="rates"):
    results = {("onecycle", "bn", 1): {"history": {"test_acc": [99.0]}}}
    for arm, rates in RATES.items():
        for rate, accuracies in rates.items():
            for seed, accuracy in enumerate(accuracies, 1):
                result = {"history": {"test_acc": [50.0, accuracy]}}
                if accuracy is None:
                    result = {"history": {}, "diverged": "The run diverged."}
                results[f"{claim}-{rate}", arm, seed] = result
    return results


@pytest.fixture
def frame():
    return reasons.make_frame(make_results(), "rates")


def test_a_frame_has_the_runs_of_its_claim_alone(frame):
    assert len(frame) == 18
    assert len(reasons.make_frame(make_results("batches"), "rates")) == 0
    assert frame[(frame.arm == "bn") & (frame.value == 1)].test.tolist() == [71, 73]
    assert frame.test.isna().sum() == 4


def test_the_table_of_rates_is_that_of_the_runs(frame):
    half = 12.706 * 2**0.5 / 2**0.5  # Student's t for one degree of freedom, deviation sqrt(2)
    assert read_table(reasons.make_rates(frame)) == [
        ["`none`", "–", "10.00 ± 0.00", "–", "–", "3 of 6"],
        ["`bn`", "1", f"72.00 ± {half:.2f}", "0.1, 1", "1", "0 of 6"],
        ["`gn`", "0.1", f"70.00 ± {half:.2f}", "0.1, 1", "1", "1 of 6"],
    ]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([50, 49, 48], [0, 1, 2]),
        ([50, 40, 49], [0]),  # unbroken
        ([40, 49, 50, 48.1, 47], [1, 2, 3]),
        ([10], [0]),
    ],
)
def test_a_range_is_unbroken_and_holds_the_best(means, expected):
    assert reasons.find_range(reasons.pd.Series(means, dtype=float)) == expected


def test_an_accuracy_is_reached_on_the_line_between_two_epochs():
    assert reasons.find_crossing([50.0, 70.0], 60) == pytest.approx(1.5)
    assert reasons.find_crossing([50.0, 70.0], 70) == pytest.approx(2)
    assert reasons.find_crossing([60.0], 35) == pytest.approx(0.5)  # from a guess on
    assert reasons.find_crossing([50.0, 65.0, 55.0, 70.0], 60) == pytest.approx(1 + 2 / 3)
    assert math.isnan(reasons.find_crossing([50.0, 59.0], 60))
    assert math.isnan(reasons.find_crossing([], 60)), "it diverged"


def test_the_speed_is_that_at_an_arm_s_own_best_rate(frame):
    best = reasons.get_best(frame)
    assert best == {
        "`none`, 0.1": [[50.0, 10]] * 2,
        "`bn`, 1": [[50.0, 71], [50.0, 73]],
        "`gn`, 0.1": [[50.0, 69], [50.0, 71]],
    }
    rows = read_table(reasons.make_speed(best, (60, 70)))
    assert rows[0] == ["`none`, 0.1", "0 of 2 runs", "0 of 2 runs"]
    first, second = 1 + 10 / 21, 1 + 10 / 23
    assert rows[1][1].startswith(f"{(first + second) / 2:.2f} ± ")
    assert rows[2][2] == "1 of 2 runs"


def test_the_figure_shows_each_run_and_each_mean(frame):
    axis = reasons.draw_rates(frame).axes[0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"none": [10, 10, 10], "Batch": [70, 72, 37.5], "Group": [70, 68, 11]}
    points = [tuple(p) for dots in axis.collections for p in dots.get_offsets().tolist()]
    known = [p for p in points if p[1] is not None]
    assert len(known) == 18
    assert (3.0, 15.0) in known
    assert known.count((1.0, 10.0)) == 2, "two crosses"
