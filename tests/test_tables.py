"""The tables of the pages: known answers of made-up runs, and what the committed runs must be."""

import math

import pytest

from common import PAGES, make_frame, need_packages, read_table

need_packages()

import pandas as pd  # noqa: E402

from experiments import frames, stats, tables  # noqa: E402
from experiments.results import COMPARED, load_frame  # noqa: E402

HALF = 12.706 / 2  # of the 95 % interval of two values 1 apart, by Student's t


@pytest.fixture(scope="module")
def frame():
    """The frame of all committed results."""
    return load_frame()


# --- Made-up runs


def test_the_spread_is_over_the_seeds_and_one_seed_has_none():
    tests = {("muon", "bn"): [80, 81], ("muon", "gn"): [75]}
    made = make_frame(tests, "float32", clean_train_acc=lambda recipe, arm, test: 2 * test - 78)
    assert read_table(tables.make_spreads(made)) == [
        ["muon", "Batch (`bn`)", "2", "80.50", "0.71", f"{HALF:.2f}", "2.50", f"{HALF:.2f}"],
        ["muon", "Group (`gn`)", "1", "75.00", "–", "–", "-3.00", "–"],
    ]


def test_the_speed_is_a_mean_or_how_many_get_there():
    tests = {("muon", "bn"): [70, 70], ("onecycle", "bn"): [90, 90], ("muon", "he"): [71, 65, None]}
    rows = read_table(tables.make_speed(make_frame(tests, "float32")))
    assert rows == [["`he`", "–", "1 of 2 runs"], ["`bn`", "1.50 ± 0.00", "2.00 ± 0.00"]]


def test_scales_are_compared_by_factors():
    def deviate(recipe, arm, test):
        small = 0.01 if arm == "none" else 1.0
        return {"C1": [test, 2 * test, 4 * test], "C10": [small * test, 2 * small * test] * 2}

    made = make_frame({("scales-0.05", a): [1.0, 2.0] for a in ("none", "bn")}, before=deviate)
    spread = (3.6 / 1.2 * 2) ** 0.5  # of 1, 2 and 4 between two channels, and of 1, 1, 2 and 2
    rest = f"{spread:.3g} ({spread:.3g} to {spread:.3g})"
    assert read_table(tables.make_scales(frames.get_scales(made))) == [
        ["`none`", "133 (133 to 133)", rest],
        ["`bn`", "1.33 (1.33 to 1.33)", rest],
    ]
    assert tables.format_factors(pd.Series([1.0, 4.0])) == "2 (1 to 4)"
    assert tables.format_factors(pd.Series([123456.0, math.inf])) == "∞ (123,000 to ∞)"


def test_shifts_are_medians_of_steps_and_means_of_seeds():
    def make_steps(recipe, arm, test):
        return [
            {
                "step": 20 * i,
                "shift": dict.fromkeys(frames.WATCHED, {"change": value, "cosine": value / 10}),
                "loss_range": [1.0, None if (arm, i) == ("none", 2) else 1 + value],
                "change": 2 * value,
                "smoothness": 3 * value,
            }
            for i, value in enumerate((test, test + 1, test + 8))
        ]

    tests = {("shift-0.1", "bn"): [2.0, 3.0], ("shift-0.1", "none"): [0.0, 0.0]}
    medians = frames.get_shift_medians(make_frame(tests, rows=make_steps))
    cells = {row[0]: row[1:] for row in read_table(tables.make_shift(medians))}
    assert cells["change of C5's gradient"] == ["1 ± 0", f"3.5 ± {HALF:.2g}"]
    assert cells["range of the loss"][0] == "0.5 ± 0", "without the one that overflowed"
    assert cells["largest change by its distance"][1] == f"{3 * 3.5:.3g} ± {3 * HALF:.2g}"


def test_differences_are_in_bold_only_where_significant():
    rows = [("1", "a - b", 2.0, 1.0, 3.0, 0.04), ("1", "a - c", -1.0, -2.5, 0.5, 0.05)]
    rows += [("2", "a - b", math.nan, math.nan, math.nan, math.nan), ("3", "a - c", 0, 0, 0, 1)]
    answers = pd.DataFrame(rows, columns=["row", "column", "mean", "low", "high", "corrected"])
    assert read_table(tables.format_comparisons(answers, "recipe")) == [
        ["1", "**+2.00** (+1.00 to +3.00)", "-1.00 (-2.50 to +0.50)"],
        ["3", "–", "+0.00 (+0.00 to +0.00)"],
    ]


# --- Committed runs


def test_leads_and_costs_are_those_of_the_means(frame):
    means = frames.get_compared(frame).groupby(["recipe", "arm"]).test.mean()
    found = stats.answer(tables.declare(frame)).set_index(["row", "column"])["mean"]
    leads = [means[recipe, "bn"] - means[recipe, "gn"] for recipe in ("reference", "muon")]
    assert found["reference minus muon", "bn - gn"] == pytest.approx(leads[0] - leads[1])
    cost = means["muon"][list(COMPARED)].mean() - means["muon", "none"]
    assert found["muon", "mean of the norms - none"] == pytest.approx(cost)
    onecycle = frame[(frame.recipe == "onecycle") & (frame.claim == "")].groupby("arm").test.mean()
    assert found["onecycle, both precisions", "gn - ln"] == pytest.approx(onecycle.gn - onecycle.ln)


@pytest.mark.parametrize(
    ("column", "value"),
    [("precision", "float32"), ("arm", "bn"), ("recipe", "muon"), ("claim", "shift"), ("seed", 1)],
)
def test_missing_runs_crash_no_table(column, value, frame):
    made = tables.make_tables(frame[frame[column] != value])
    assert "nan" not in "".join(made.values())


def test_the_runs_that_are_compared_are_of_one_clean_commit_that_the_lab_book_names(frame):
    compared = frames.get_compared(frame).query("recipe != 'onecycle' or arm != 'none' or seed < 3")
    environments = compared.result.str["environment"]
    assert environments.str["clean"].all()
    (commit,) = environments.str["commit"].unique()
    assert commit[:7] in PAGES["experiments/README.md"]
