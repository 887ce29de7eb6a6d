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


def test_minutes_are_those_to_the_final_accuracy():
    steps = {"ours": 20.0, "textbook, 0 workers": 90.0, "textbook, 2 workers": 80.0}
    steps |= {"ours, small images": 12.0, "ours, evaluation": 6.0, "ours, float32": 40.0}
    steps |= {"ours, float32, small images": 25.0, "ours, float32, evaluation": 10.0}
    steps = {"bn": {kind: {"median": ms, "low": 0.0, "high": 0.0} for kind, ms in steps.items()}}
    made = make_frame({("reference", "bn"): [77, 79], ("quick", "bn"): [80]}, "float32")
    made["history"] = [
        {"test_acc": acc} for acc in ([60, 76.85, 76.95, 77], [60, 70, 79, 79], [80])
    ]
    made.loc[made.recipe == "quick", "precision"] = "bfloat16"
    usual = 3 * 391 * 80 / 60_000  # within 0.1 points of the last after 3 epochs each
    # Four epochs, the first two of them with small images, each with two evaluations of 79 steps.
    quick = (391 * (2 * 20 + 2 * 12) + 4 * 158 * 6) / 60_000
    float32 = (391 * (2 * 40 + 2 * 25) + 4 * 158 * 10) / 60_000
    cells = ["3.0", f"{usual:.1f}", "78.00", f"{quick:.1f}", f"{usual / quick:.1f}", "80.00"]
    cells += [f"{float32:.1f}", f"{usual / float32:.1f}", "–"]  # there is no such run
    speed = {"environment": {"precision": "bfloat16"}, "steps": steps}
    assert read_table(tables.make_minutes(made, speed)) == [["Batch (`bn`)", *cells]]


def test_factors_have_a_geometric_mean_and_three_digits():
    assert tables.format_factors(pd.Series([1.0, 4.0])) == "2 (1 to 4)"
    assert tables.format_factors(pd.Series([123456.0, math.inf])) == "∞ (123,000 to ∞)"


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


def test_p_is_corrected_over_the_families_that_were_declared(frame):
    sizes = stats.answer(tables.declare(frame)).groupby(["table", "family"]).size()
    assert sizes.groupby("table").agg(list).to_dict() == {
        "differences": [3, 3, 3, 3, 2],
        "costs": [2],
        "epochs": [3],
        "gaps": [2] * 6,
        "batch-differences": [4],
        "shift-differences": [22],
    }


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
