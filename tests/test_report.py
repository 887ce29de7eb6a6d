"""The tables, figures and numbers of the pages: known answers, and what the results show."""

import math
import re

import pytest

from common import NOTEBOOKS, PAGES, need_packages, read_table

need_packages()

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from cifar10 import load_cifar10  # noqa: E402
from experiments import report, stats  # noqa: E402
from experiments.results import COMPARED, load_frame, make_row  # noqa: E402

FRAME = load_frame()
COMPARISONS = {name: stats.compare(asked) for name, asked in report.ask(FRAME).items()}
PUBLISHED = {"bn": 78.86, "gn": 77.88, "ln": 76.94}  # test accuracy (%)
HALF = 12.706 / 2  # of the 95 % interval of two values 1 apart, by Student's t


def make_frame(tests, folder="claims", **more):
    """Return made-up runs: `tests` has final accuracies by recipe and arm, None for a diverged one.

    What else a result holds is in `more`, each a function of recipe, arm and accuracy.
    """
    rows = []
    for (recipe, arm), accuracies in tests.items():
        for seed, accuracy in enumerate(accuracies, 1):
            result = {"recipe": {"name": recipe}, "norm": arm, "seed": seed}
            result |= {
                "environment": {"precision": "float32"},
                "diverged": "It did.",
                "history": {},
            }
            if accuracy is not None:
                part = "validation" if "search" in recipe or folder == "tuning" else "test"
                result["history"] = {f"{part}_acc": [50.0, accuracy]}
            result |= {key: make(recipe, arm, accuracy) for key, make in more.items()}
            rows.append(make_row(result, folder))
    return pd.DataFrame(rows)


# --- Crossings of a level


CURVES = st.lists(st.floats(0.01, 5), min_size=1, max_size=8)  # what each epoch gains


@settings(deadline=None)  # on a busy machine
@given(steps=CURVES, share=st.floats(0.001, 1))
def test_a_crossing_is_that_of_the_piecewise_linear_curve(steps, share):
    history = (report.CHANCE + np.cumsum(steps)).tolist()
    goal = report.CHANCE + share * (history[-1] - report.CHANCE)
    expected = np.interp(goal, [report.CHANCE, *history], range(len(history) + 1))
    assert report.find_crossing(history, goal) == pytest.approx(expected)
    losses = [-accuracy for accuracy in history]
    at_loss = report.interpolate(losses, history, -goal)
    assert at_loss == pytest.approx(max(goal, history[0])), "at once where it begins below"
    assert math.isnan(report.find_crossing(history, history[-1] + 0.1))


def test_a_level_is_crossed_the_first_time():
    losses, values = [2.0, 1.0, 1.2, 0.8], [10.0, 20.0, 30.0, 50.0]
    assert report.interpolate(losses, values, 1.0) == 20
    assert report.interpolate(losses, values, 0.9) == pytest.approx(45)
    assert report.interpolate(losses, values, 2.0) == report.interpolate(losses, values, 3.0) == 10
    assert report.find_crossing([60.0], 35) == pytest.approx(0.5), "in the first epoch"
    assert report.find_crossing([60.0], 10) == 0
    assert math.isnan(report.find_crossing([], 60)), "it diverged"


# --- Tables of made-up runs


def test_the_front_pages_table_says_how_many_diverged():
    runs = make_frame({("muon", "bn"): [80, 81], ("muon", "none"): [70, 71, None]}, "float32")
    assert read_table(report.make_results(runs))[::4] == [
        ["Batch (`bn`)", "–", "–", f"80.50 ± {HALF:.2f}"],
        ["None (`none`)", "–", "–", f"70.50 ± {HALF:.2f}, 1 diverged"],
    ]


def test_the_spread_is_over_the_seeds_and_one_seed_has_none():
    runs = make_frame(
        {("muon", "bn"): [80, 81], ("muon", "gn"): [75]},
        "float32",
        clean_train_acc=lambda recipe, arm, test: 2 * test - 78,
    )
    assert read_table(report.make_spreads(runs)) == [
        ["muon", "Batch (`bn`)", "2", "80.50", "0.71", f"{HALF:.2f}", "2.50", f"{HALF:.2f}"],
        ["muon", "Group (`gn`)", "1", "75.00", "–", "–", "-3.00", "–"],
    ]


def test_trials_are_listed_by_their_mean_over_the_norms():
    tests = {("start", "bn"): [80], ("start", "gn"): [81], ("start", "ln"): [82]}
    tests |= {("lr", "bn"): [83], ("lr", "gn"): [83], ("lr", "ln"): [84], ("crop", "bn"): [99]}
    assert read_table(report.make_tuning(make_frame(tests, "tuning"))) == [
        ["`lr`", "1", "83.00", "83.00", "84.00", "83.33"],
        ["`start`", "1", "80.00", "81.00", "82.00", "81.00"],
        ["`crop`", "1", "99.00", "–", "–", "–"],
    ]


@pytest.fixture
def rates():
    tests = {
        "none": {0.1: [10, 10], 1: [None, None], 3: [None, 10]},
        "bn": {0.1: [70, 70], 1: [72, 73], 3: [60, 15]},
        "gn": {0.1: [69, 71], 1: [66, 70], 3: [12, None]},
    }
    by_name = {(f"rates-{v}", arm): t for arm, values in tests.items() for v, t in values.items()}
    return make_frame(by_name)


def test_a_run_that_diverged_counts_as_a_guess(rates):
    assert report.get_means(report.get_claim(rates, "rates")).loc["bn"].tolist() == [70, 72.5, 37.5]


def test_a_seed_that_lacks_an_arm_is_left_out_there_alone(rates):
    lacking = rates.drop(rates[(rates.recipe == "rates-3") & (rates.arm == "gn")].index[1:])
    seeds = report.get_claim(lacking, "rates").groupby("value").seed.agg(set)
    assert seeds.to_dict() == {0.1: {1, 2}, 1.0: {1, 2}, 3.0: {1}}


def test_the_speed_is_a_mean_or_how_many_get_there():
    tests = {("muon", "bn"): [70, 70], ("onecycle", "bn"): [90, 90], ("muon", "he"): [71, 65, None]}
    rows = read_table(report.make_speed(make_frame(tests, "float32")))
    assert rows == [["`he`", "–", "1 of 2 runs"], ["`bn`", "1.50 ± 0.00", "2.00 ± 0.00"]]


@pytest.fixture
def baseline():
    """Runs of `search` and of `baseline` at two rates, of which the worse ended better."""
    tests = {("search-sgd-0.1", "none"): [50], ("search-sgd-0.3", "none"): [None]}
    tests |= {("search-sgd-0.1", "he"): [60], ("search-sgd-0.3", "he"): [65]}
    tests |= {("baseline-sgd-0.1", "none"): [60, 61], ("baseline-sgd-0.3", "none"): [99]}
    tests |= {("baseline-sgd-0.1", "he"): [99], ("baseline-sgd-0.3", "he"): [70, 71, None]}
    norms = {("onecycle", "bn"): [80, 81], ("onecycle", "none"): [1]}
    return pd.concat([make_frame(tests), make_frame(norms, "float32")], ignore_index=True)


def test_the_baseline_is_at_the_best_rates_of_the_search(baseline):
    runs = report.get_runs(baseline)
    tests = runs.groupby(["recipe", "arm"]).test.agg(list).to_dict()
    assert tests.pop(("onecycle", "he"))[:2] == [70, 71]
    assert tests == {("onecycle", "bn"): [80, 81], ("onecycle", "none"): [60, 61]}


def test_batches_show_bn_also_with_recomputed_statistics():
    tests = {("batches-4", "bn"): [50, None], ("batches-4", "gn"): [68, 69]}
    frame = make_frame(tests, recomputed_acc=lambda recipe, arm, test: (test or math.nan) + 5)
    batches = report.get_batches(frame)
    assert report.get_means(batches)[4.0].to_dict() == {"bn": 30, "bn recomputed": 32.5, "gn": 68.5}


def test_scales_are_compared_by_factors():
    def deviate(recipe, arm, test):
        small = 0.01 if arm == "none" else 1.0
        return {"C1": [test, 2 * test, 4 * test], "C10": [small * test, 2 * small * test] * 2}

    tests = {("scales-0.05", arm): [1.0, 2.0] for arm in ("none", "bn")}
    rows = read_table(report.make_scales(report.get_scales(make_frame(tests, before=deviate))))
    assert [row[:2] for row in rows] == [
        ["`none`", "133 (133 to 133)"],
        ["`bn`", "1.33 (1.33 to 1.33)"],
    ]
    spread = (3.6 / 1.2 * 2) ** 0.5  # of 1, 2 and 4 between two channels, and of 1, 1, 2 and 2
    assert rows[0][2] == f"{spread:.3g} ({spread:.3g} to {spread:.3g})"
    assert report.format_factors(pd.Series([1.0, 4.0])) == "2 (1 to 4)"
    assert report.format_factors(pd.Series([123456.0, math.inf])) == "∞ (123,000 to ∞)"


@pytest.fixture
def shift():
    def make_rows(recipe, arm, test):
        return [
            {
                "step": 20 * i,
                "shift": dict.fromkeys(report.WATCHED, {"change": value, "cosine": value / 10}),
                "loss_range": [1.0, None if (arm, i) == ("none", 2) else 1 + value],
                "change": 2 * value,
                "smoothness": 3 * value,
            }
            for i, value in enumerate((test, test + 1, test + 8))
        ]

    tests = {("shift-0.1", "bn"): [2.0, 3.0], ("shift-0.1", "none"): [0.0, 0.0]}
    return make_frame(tests, rows=make_rows)


def test_shifts_are_medians_of_steps_and_means_of_seeds(shift):
    medians = report.get_medians(report.get_shift(shift))
    cells = {row[0]: row[1:] for row in read_table(report.make_shift(medians))}
    assert len(cells) == 11
    assert cells["change of C5's gradient"] == ["1 ± 0", f"3.5 ± {HALF:.2g}"]
    assert cells["range of the loss"][0] == "0.5 ± 0", "without the one that overflowed"
    assert cells["largest change by its distance"][1] == f"{3 * 3.5:.3g} ± {3 * HALF:.2g}"


def test_figures_show_the_runs(rates, baseline):
    axis = report.draw_values(report.get_claim(rates, "rates"), "rate", "Rates", "best").axes[0]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"None": [10, 10, 10], "Batch": [70, 72.5, 37.5], "Group": [70, 68, 11]}
    points = [tuple(p) for dots in axis.collections for p in dots.get_offsets().tolist()]
    assert points.count((1.0, 10.0)) == 2, "two crosses"
    _, axis = report.draw_accuracies(report.get_runs(baseline), ["muon", "onecycle"]).axes
    lines = [line.get_xydata().tolist() for line in axis.lines]
    assert [[1, 50], [2, 70.5]] in lines, "of he"
    assert max(line[-1][1] for line in lines) < axis.get_ylim()[1], "no end is cut off"


# --- The pages


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_tables_and_numbers_of_the_results(page):
    known = report.numbers(FRAME)
    assert report.find_stale(PAGES[page], known) == []
    assert report.renew(PAGES[page], report.make_tables(FRAME), known) == PAGES[page]


@pytest.mark.parametrize("norm", NOTEBOOKS)
def test_a_notebook_has_the_numbers_of_the_results(norm):
    text = NOTEBOOKS[norm].read_text(encoding="utf-8")
    assert len(report.MARKED.findall(text)) >= 10
    assert report.find_stale(text, report.numbers(FRAME)) == []


def test_each_table_stands_on_one_page():
    markers = re.findall(r"^<!-- ([\w-]+) -->$", "\n".join(PAGES.values()), re.MULTILINE)
    tables = report.make_tables(FRAME)
    assert sorted(markers) == sorted([*tables, "architecture", "images", "minutes"])


def test_what_is_marked_is_renewed_and_no_other_word():
    page = (
        "a\n<!-- one -->\n\nold\n\n<!-- /one -->\nit is 1.5<!--= x -->, not 1.5 or -2<!--= y -->."
    )
    renewed = page.replace("old", "new \\1").replace("1.5<", "+2.5<")
    known = {"x": "+2.5", "y": "-2"}
    assert report.renew(page, {"one": "new \\1"}, known) == renewed
    assert report.find_stale(page, known) == ["x was 1.5, is +2.5"]
    assert report.find_stale(renewed, known) == []
    for function in (report.find_stale, lambda text, known: report.renew(text, {}, known)):
        with pytest.raises(KeyError, match="z"):
            function("1<!--= z -->", known)


def test_the_numbers_are_means_and_differences():
    known = report.numbers(FRAME)
    tests = FRAME[(FRAME.claim == "") & (FRAME.precision == "float32")]
    means = tests.groupby(["recipe", "arm"]).test.mean()
    bn, ln = means["muon"][["bn", "ln"]]
    assert known["muon.bn"] == f"{bn:.2f}"
    assert known["muon.ln-bn"] == f"{ln - bn:.1f}"
    assert known["bn.muon-reference"] == f"{bn - means['reference', 'bn']:.1f}"


@pytest.mark.parametrize(
    ("column", "value"),
    [("precision", "float32"), ("arm", "bn"), ("recipe", "muon"), ("claim", "shift"), ("seed", 1)],
)
def test_missing_runs_crash_no_table(column, value):
    tables = report.make_tables(FRAME[FRAME[column] != value])
    assert "nan" not in "".join(tables.values())


# --- What the results show

SIGNIFICANT = {  # in each table, after Holm's correction over each question
    "differences": {
        *(f"reference bn - {norm}" for norm in ("gn", "ln")),
        *(f"reference minus muon bn - {norm}" for norm in ("gn", "ln")),
        "onecycle, both precisions bn - gn",
    },
    "costs": {"muon mean of the norms - he"},
    "epochs": {f"onecycle {norm} - he" for norm in COMPARED},
    "gaps": {"reference: train minus test bn - ln"},
    "batch-differences": {f"{size} bn - {norm}" for size in (2, 4) for norm in ("gn", "ln")},
    "shift-differences": {
        *(f"{what} bn - gn" for what in ("change of C8's gradient", "change of C10's gradient")),
        *(f"{what} bn - gn" for what in ("cosine, C8", "cosine, C10", "range of the loss")),
        "range of the loss bn - ln",
        "largest change by its distance bn - gn",
    },
}


@pytest.mark.parametrize("name", SIGNIFICANT)
def test_these_differences_are_significant_and_no_others(name):
    found = COMPARISONS[name].query("corrected < 0.05")
    assert set(found.row + " " + found.column) == SIGNIFICANT[name]


def test_the_runs_that_are_compared_are_of_one_commit():
    runs = report.get_runs(FRAME).query("recipe != 'onecycle' or arm != 'none' or seed < 3")
    assert len(runs) == 77
    environments = runs.result.str["environment"]
    assert environments.str["clean"].all()
    (commit,) = environments.str["commit"].unique()
    assert commit[:7] in PAGES["experiments/README.md"]


def test_leads_and_costs_are_those_of_the_means():
    means = report.get_runs(FRAME).groupby(["recipe", "arm"]).test.mean()
    found = pd.concat(COMPARISONS.values()).set_index(["row", "column"])["mean"]
    leads = [means[recipe, "bn"] - means[recipe, "gn"] for recipe in ("reference", "muon")]
    assert found["reference minus muon", "bn - gn"] == pytest.approx(leads[0] - leads[1])
    cost = means["muon"][list(COMPARED)].mean() - means["muon", "none"]
    assert found["muon", "mean of the norms - none"] == pytest.approx(cost)
    onecycle = FRAME[(FRAME.recipe == "onecycle") & (FRAME.claim == "")].groupby("arm").test.mean()
    assert found["onecycle, both precisions", "gn - ln"] == pytest.approx(onecycle.gn - onecycle.ln)


def test_test_accuracy_is_compared_where_training_losses_are_equal():
    losses = {"bn": [2.0, 1.0], "gn": [2.0, 1.5]}  # gn ends at 1.5, which bn passes half-way
    frame = make_frame(
        {("muon", arm): [60.0] for arm in losses},
        "float32",
        history=lambda recipe, arm, test: {
            "test_acc": [50.0, test],
            "clean_train_loss": losses[arm],
        },
    )
    fits = report.measure_fits(frame).set_index("arm")
    assert fits["at loss"].to_dict() == {"bn": 55.0, "gn": 60.0}


@pytest.mark.cifar10
def test_the_error_of_images_is_that_of_the_results(cifar10_root):
    labels = load_cifar10(cifar10_root).test.tensors[1].numpy()
    assert report.make_images(report.get_runs(FRAME), labels) in PAGES["experiments/README.md"]


def test_the_norms_end_in_the_order_that_the_pages_tell():
    tests = report.get_runs(FRAME).groupby(["recipe", "arm"]).test
    means, lowest = tests.mean().unstack(), tests.nsmallest(2).round(1)
    norms = means[list(COMPARED)]
    assert norms.loc["reference"].idxmax() == norms.loc["onecycle"].idxmax() == "bn"
    apart = norms.max(axis=1) - norms.min(axis=1)
    assert apart[["muon", "onecycle"]].max() < 1 < 2 < apart.reference
    assert (norms.loc["muon"] > norms.loc["onecycle"]).all()
    assert (norms.loc["onecycle"] > norms.loc["reference"] + 4).all()
    assert (norms.loc["quick"] - pd.Series(PUBLISHED)).min() > 1
    off = (pd.Series(PUBLISHED) - norms.loc["reference"]) / tests.std().reference
    assert lowest.reference.ln.tolist() == [73.9, 76.1]
    assert off[["bn", "ln"]].abs().max() < 3.04 < off.gn, "one more run's 95 %: t * sqrt(6 / 5)"
    assert (norms.loc["muon"] - means.loc["muon", "none"]).abs().max() < 1
    assert means.loc["onecycle", "none"] == 10, "it learns nothing"
    assert lowest.onecycle.he.tolist() == [52.5, 82.7]


def test_larger_rates_and_batches_do_what_the_pages_tell():
    rates = report.get_claim(FRAME, "rates")
    means = report.get_means(rates)
    assert (means.loc["none"] == 10).all()
    assert means.drop(columns=3.0).idxmax().eq("bn").all(), "the most accurate at each rate"
    lost = rates[rates.test.isna() & rates.arm.isin(COMPARED)]
    assert lost.groupby(["value", "arm"]).size().to_dict() == {(3, norm): 3 for norm in COMPARED}
    batches = report.get_batches(FRAME)
    norms = report.get_means(batches).loc[list(COMPARED)]
    assert norms[[2, 4]].idxmin().eq("bn").all()
    assert norms[[16, 64, 256]].idxmax().eq("bn").all()
    two = report.take(batches, value=2).groupby("arm").test
    assert two.min()[["gn", "ln"]].min() - two.max()["bn"] > 6


def test_scales_are_as_the_pages_tell():
    scales = report.get_scales(FRAME).groupby(["moment", "arm", "layer"])["median"].mean()
    falls = (scales.xs("C1", level="layer") / scales.xs("C10", level="layer")).before
    assert falls.none > 1000
    assert falls.drop("none").between(1 / 3, 3).all()


def test_the_chosen_recipes_are_the_best_of_the_search():
    trials = FRAME[(FRAME.claim == "tuning") & (FRAME.seed == 1) & FRAME.arm.isin(COMPARED)]
    means = trials.groupby("recipe").validation.mean()
    assert means.filter(regex="^muon").idxmax() == "muon"
    assert means.filter(regex="^quick").idxmax() == "quick-lr-0.05"
    assert means[["start", "lr-0.025", "lr-0.05", "lr-0.2"]].idxmax() == "lr-0.05"
