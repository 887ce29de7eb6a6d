"""What is made of accuracies: tables and figures of made-up results with known answers."""

import math
from itertools import combinations

import pytest

from common import need_packages, read_table

need_packages()

from experiments import reasons  # noqa: E402

NORMS = ("bn", "gn", "ln")

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


def test_a_seed_of_which_an_arm_is_missing_is_left_out_there_alone():
    results = make_results()
    del results["rates-3", "gn", 2]
    seeds = reasons.make_frame(results, "rates").groupby("value").seed.agg(set)
    assert seeds.to_dict() == {0.1: {1, 2}, 1.0: {1, 2}, 3.0: {1}}


def test_the_table_of_rates_is_that_of_the_runs(frame):
    half = 12.706 * 2**0.5 / 2**0.5  # Student's t for one degree of freedom, deviation sqrt(2)
    assert read_table(reasons.make_rates(frame)) == [
        ["`none`", "–", "10.00 ± 0.00", "–", "–", "3 of 6"],
        ["`bn`", "1", f"72.00 ± {half:.2f}", "0.1, 1", "1", "0 of 6"],
        ["`gn`", "0.1", f"70.00 ± {half:.2f}", "0.1, 1", "1", "1 of 6"],
    ]
    assert read_table(reasons.make_rate_means(frame)) == [
        ["`none`", "10.00", "10.00", "10.00"],
        ["`bn`", "70.00", "72.00", "37.50"],
        ["`gn`", "70.00", "68.00", "11.00"],
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
    best = reasons.get_histories_at_best(frame)
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
    assert lines == {"None": [10, 10, 10], "Batch": [70, 72, 37.5], "Group": [70, 68, 11]}
    points = [tuple(p) for dots in axis.collections for p in dots.get_offsets().tolist()]
    known = [p for p in points if p[1] is not None]
    assert len(known) == 18
    assert (3.0, 15.0) in known
    assert known.count((1.0, 10.0)) == 2, "two crosses"


@pytest.fixture
def search():
    accuracies = {"sgd-0.1": (50.0, 60.0), "sgd-0.3": (10.0, 65.0), "muon-0.02": (74.0, 73.0)}
    results = {
        (f"search-{value}", arm, 1): {"history": {"validation_acc": [99.0, accuracy]}}
        for value, both in accuracies.items()
        for arm, accuracy in zip(("none", "he"), both, strict=True)
    }
    results["search-sgd-0.3", "none", 1] = {"history": {}, "diverged": "It diverged."}
    return results


def test_the_best_rate_of_the_search_is_that_of_the_held_out_images(search):
    search = reasons.make_search_frame(search)
    assert read_table(reasons.make_search(search)) == [
        ["`muon`", "0.02", "**74.00**", "**73.00**"],
        ["`onecycle`", "0.1", "**50.00**", "60.00"],
        ["`onecycle`", "0.3", "10.00", "**65.00**"],
    ]
    assert "**" not in reasons.make_search(search.assign(validation=9.0)), "nothing was learned"
    rates = reasons.choose_rates(search)
    assert rates["onecycle", "he"] == 0.3
    assert rates["onecycle", "none"] == 0.1


def test_what_it_costs_to_do_without_is_told_at_the_best_rates(search):
    finals = {"sgd-0.1": {"none": 60, "he": 99}, "sgd-0.3": {"none": 99, "he": 70}}
    finals["muon-0.02"] = {"none": 78, "he": 79}
    claims = {
        (f"baseline-{value}", arm, seed): {"history": {"test_acc": [0.0, accuracy + seed]}}
        for value, arms in finals.items()
        for arm, accuracy in arms.items()
        for seed in (1, 2)
    }
    runs = {
        (recipe, norm, seed): {"history": {"test_acc": [0.0, accuracy + seed]}}
        for recipe, accuracy in {"onecycle": 80, "muon": 85, "reference": 99}.items()
        for norm in NORMS
        for seed in (1, 2, 6)
    }
    baseline = reasons.get_baseline(runs, claims | search)
    baseline["onecycle", "he", 3] = {"history": {}, "diverged": "It diverged."}
    frame = reasons.make_baseline_frame(baseline)
    half = 12.706 / 2
    assert read_table(reasons.make_baseline(frame)) == [
        ["`none`", f"61.50 ± {half:.2f} (2)", f"79.50 ± {half:.2f} (2)"],
        ["`he`", f"71.50 ± {half:.2f}, 1 diverged (3)", f"80.50 ± {half:.2f} (2)"],
        *[[f"`{n}`", *(f"{mean} ± {half:.2f} (2)" for mean in ("81.50", "86.50"))] for n in NORMS],
    ]
    rows = read_table(reasons.make_costs(frame))
    assert len(rows) == 14
    cells = {tuple(row[:2]): row[2].replace("*", "").split(" ")[0] for row in rows}
    assert cells["`onecycle`", "gn - he"] == "+10.00"
    assert cells["`muon`", "he - none"] == "+1.00"
    sgd, muon = reasons.draw_baseline(baseline).axes
    assert (sgd.get_title(), muon.get_title()) == ("recipe onecycle", "recipe muon")
    lines = {line.get_label(): line.get_xydata().tolist() for line in sgd.lines}
    assert len(lines) == 5
    assert lines["None, first weights of He"] == [[1, 0], [2, 71.5]]


def test_a_value_at_a_loss_lies_on_the_line_between_two_epochs():
    losses, values = [2.0, 1.0, 1.2, 0.8], [10.0, 20.0, 30.0, 50.0]
    assert reasons.interpolate(losses, values, 1.25) == pytest.approx(17.5)
    assert reasons.interpolate(losses, values, 1.0) == pytest.approx(20), "the first time"
    assert reasons.interpolate(losses, values, 0.9) == pytest.approx(45)
    assert math.isnan(reasons.interpolate(losses, values, 0.7))


@pytest.fixture
def runs():
    """Three epochs and two seeds; `bn` reaches any training loss with 5 points more than `gn`."""
    starts = {"bn": 60.0, "gn": 55.0, "ln": 40.0}
    return {
        ("muon", norm, seed): {
            "history": {
                "train_loss": [1.0, 0.8, {"bn": 0.4, "gn": 0.6, "ln": 0.2}[norm]],
                "test_loss": [1.0, 0.9, 0.8 + seed],
                "test_acc": [0.0, start, start + {"bn": 20, "gn": 10, "ln": 30}[norm] + seed / 5],
            }
        }
        for norm, start in starts.items()
        for seed in (1, 2)
    }


def test_the_norms_are_compared_at_the_loss_that_all_reach(runs):
    runs["muon", "none", 1] = {"history": {"train_loss": [3.0, 2.0], "test_acc": [1.0, 2.0]}}
    rows = read_table(reasons.make_equal_loss(runs, ["muon"], combinations(NORMS, 2)))
    assert [row[:3] for row in rows] == [
        ["`muon`", "0.600", f"{pair}"] for pair in ("bn - gn", "bn - ln", "gn - ln")
    ]
    # Means of bn (half way from 60 to 80.2 and 80.4), gn (its end) and ln (a third of the way).
    assert rows[0][3].startswith(f"**+{70.15 - 65.3:.2f}** (")
    assert rows[1][3].startswith(f"**+{70.15 - 50.1:.2f}** (")


def test_the_figure_of_losses_is_of_means_from_the_third_epoch_on(runs):
    axis = reasons.draw_losses(runs, ["muon"]).axes[0]
    assert [line.get_label() for line in axis.lines] == ["Batch", "Group", "Layer"]
    points = [line.get_xydata().tolist() for line in axis.lines]
    assert points[0] == [[pytest.approx(0.4), pytest.approx(2.3)]]


def test_arms_without_a_normalization_are_compared_and_drawn_with_the_norms(runs):
    history = {"train_loss": [1.0, 0.9, 0.7], "test_loss": [1.0, 1.0, 1.0]}
    for seed in (1, 2):
        runs["muon", "he", seed] = {"history": history | {"test_acc": [0.0, 30.0, 40.0 + seed]}}
        runs["muon", "none", seed] = {"history": history | {"test_acc": [9.0, 9.0, 9.0]}}
    (row,) = read_table(reasons.make_equal_loss(runs, ["muon"], [("bn", "he")]))
    assert row[:2] == ["`muon`", "0.700"], "the lowest loss that all of these arms reach"
    assert row[2] == "bn - he"
    assert row[3].replace("*", "").startswith(f"+{(60 + 20.3 / 4) - 41.5:.2f} (")
    labels = [line.get_label() for line in reasons.draw_losses(runs, ["muon"]).axes[0].lines]
    assert labels == ["None, first weights of He", "Batch", "Group", "Layer"], "none learns nothing"


@pytest.fixture
def batches():
    return {
        (f"batches-{size}", arm, seed): {
            "history": {"test_acc": [0.0, accuracy + seed]},
            **({"recomputed_acc": accuracy + 5.0} if arm == "bn" else {}),
        }
        for arm, sizes in {
            "bn": {4: 50, 64: 70},
            "gn": {4: 68, 64: 69},
            "ln": {4: 67, 64: 66},
        }.items()
        for size, accuracy in sizes.items()
        for seed in (1, 2)
    }


def test_batches_show_bn_twice(batches):
    half = 12.706 / 2
    assert read_table(reasons.make_batches(reasons.make_batch_frame(batches))) == [
        ["`bn`", f"51.50 ± {half:.2f}", f"71.50 ± {half:.2f}"],
        ["`bn anew`", "55.00 ± 0.00", "75.00 ± 0.00"],
        ["`gn`", f"69.50 ± {half:.2f}", f"70.50 ± {half:.2f}"],
        ["`ln`", f"68.50 ± {half:.2f}", f"67.50 ± {half:.2f}"],
    ]


def test_bn_is_compared_with_the_others_at_each_batch_size(batches):
    rows = read_table(reasons.make_batch_differences(reasons.make_batch_frame(batches)))
    assert [row[:2] for row in rows] == [
        [s, f"bn - {n}"] for s in ("4", "64") for n in ("gn", "ln")
    ]
    half = 4.3027 * 0.5**0.5  # Student's t for two degrees of freedom; variances of 0.5, two seeds
    assert rows[0][2] == f"**-18.00** ({-18 - half:+.2f} to {-18 + half:+.2f})"
    assert rows[2][2] == f"+1.00 ({1 - half:+.2f} to {1 + half:+.2f})"


def test_a_batch_size_at_which_bn_diverged_counts_as_a_guess(batches):
    batches["batches-4", "bn", 2] = {"history": {}, "diverged": "The run diverged."}
    rows = read_table(reasons.make_batches(reasons.make_batch_frame(batches)))
    assert [row[1].split(" ")[0] for row in rows] == ["30.50", "32.50", "69.50", "68.50"]


def test_the_first_runs_of_another_size_change_nothing(batches):
    expected = reasons.make_batches(reasons.make_batch_frame(batches))
    batches["batches-2", "bn", 1] = batches["batches-4", "bn", 1]
    assert reasons.make_batches(reasons.make_batch_frame(batches)) == expected


def test_the_figure_of_batches_has_a_line_an_arm(batches):
    axis = reasons.draw_batches(reasons.make_batch_frame(batches)).axes[0]
    lines = [line.get_ydata().tolist() for line in axis.lines]
    assert lines == [[51.5, 71.5], [55, 75], [69.5, 70.5], [68.5, 67.5]]
    assert axis.lines[0].get_xdata().tolist() == [4, 64]
