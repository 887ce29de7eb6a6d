"""The tables of the pages; that each has the numbers of the results is test_report's part."""

import math

import pandas as pd
import pytest

from common import PAGES, make_frame, read_table
from experiments import comparisons, frames, stats, tables
from experiments.results import COMPARED_RECIPES, load_frame


@pytest.fixture(scope="module")
def frame():
    """The frame of all committed results."""
    return load_frame()


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


def test_where_runs_did_not_train_a_cell_has_their_number_and_the_median():
    trained = {"80.00 ± 6.35": [79.5, 80.5], "71.00 ± 57.18": [66.5, 75.5]}
    failed = {"4 of 5 trained, median 82.9": [52.5, 82.7, 82.9, 83.1, 83.5]}
    failed |= {"2 of 3 trained, median 60.0, 1 diverged": [60, math.nan, 61]}
    failed |= {"0 of 2 trained": [10, 20], "0 of 2 trained, 1 diverged": [10, math.nan]}
    for cell, tests in (trained | failed).items():
        assert tables.format_tests(pd.Series(tests)) == cell


def test_both_sets_of_runs_are_compared(monkeypatch, tmp_path):
    first = tmp_path / "first-set.csv"
    first.write_text("recipe,arm,seed,test\nmuon,bn,1,80\nmuon,bn,2,\nmuon,gn,1,80\n")
    monkeypatch.setattr(frames, "FIRST", first)
    made = make_frame({("muon", "bn"): [82, 81], ("muon", "gn"): [81, None]}, "float32")
    sets = frames.get_sets(made)
    tests = {name: runs.groupby("arm").test.agg(list).to_dict() for name, runs in sets.items()}
    assert tests["first set"]["bn"][0] == 80
    assert tests["both sets"]["gn"][:2] == [80, 81]
    # 81 and 80.5: by Welch an error of 0.764 with 2.88 degrees of freedom, whose 95th is at 2.392
    assert read_table(tables.make_equivalence(sets)) == [["bn - gn", "–", "–", "-1.33 to +2.33"]]


def test_arms_are_equivalent_in_bold_where_a_margin_of_half_a_point_holds_the_interval():
    close, apart = [80.0, 80.1, 80.2], [80.3, 80.5, 80.7]
    made = make_frame({("muon", "bn"): close, ("muon", "gn"): close, ("muon", "ln"): apart})
    rows = read_table(tables.make_equivalence({"runs": made}))
    assert {pair: cell.startswith("**") for pair, cell in rows} == {
        "bn - gn": True,
        "bn - ln": False,
        "gn - ln": False,
    }


def test_what_was_not_declared_has_p_without_correction():
    made = make_frame({("reference", "bn"): [80, 81], ("reference", "gn"): [78, 79]}, "float32")
    more = make_frame({("onecycle", "bn"): [82, 83], ("onecycle", "gn"): [82, 83]}, "float32")
    compared = pd.concat([made, more])
    tests = comparisons.gather(compared, "recipe")
    one = comparisons.pair_recipes("found", tests, "reference", "onecycle")[0]
    (row,) = stats.answer([one]).itertuples()
    # an error of 1 with 4 degrees of freedom: t is 2, the 97.5th percentile 2.776
    assert tables.format_found(row) == "+2.00 (-0.78 to +4.78), p 0.12"


def test_p_is_corrected_over_the_families_that_were_declared(frame):
    sizes = stats.answer(comparisons.declare(frame)).groupby(["table", "family"]).size()
    assert sizes.groupby("table").agg(list).to_dict() == {
        "differences": [3] * 8 + [2] * 3 + [3] * 2,
        "costs": [2, 2],
        "epochs": [3],
        "gaps": [2] * 6,
        "batch-differences": [4],
        "shift": [22],
        "optimizers": [5],
        "ghost-differences": [4],
        "depth-differences": [4],
        "robustness-differences": [12],
    }


def test_what_no_normalization_costs_is_compared_at_the_rates_that_the_search_chose():
    ends = {("normalized", "bn"): 82, ("normalized", "none"): 79, ("adamw", "bn"): 81}
    ends |= {("adamw", "none"): 76}
    rates, tests = {"normalized": ("0.001", "0.003"), "adamw": ("0.01", "0.003")}, {}
    for (optimizer, arm), end in ends.items():
        best, other = rates[optimizer]
        tests[f"search-{optimizer}-{best}", arm] = [70]
        tests[f"search-{optimizer}-{other}", arm] = [60]
        tests[f"optimizers-{optimizer}-{other}", arm] = [0, 0]
        tests[f"optimizers-{optimizer}-{best}", arm] = [end - 1, end + 1]
    tests["optimizers-adamw-0.01", "gn"] = [80, 80]  # at the rate of `bn`
    tests |= {("search-muon-0.02", "none"): [70], ("baseline-muon-0.02", "none"): [85, 86]}
    made = pd.concat([make_frame(tests), make_frame({("muon", "bn"): [86, 87]}, "float32")])
    answers = stats.answer(comparisons.compare_optimizers(made))
    assert answers["mean"].tolist() == [3, 5, 3 - 1, 5 - 1, 79 - 76]
    means = frames.get_compared(made).groupby(["recipe", "arm"]).test.mean()
    assert means["adamw", "gn"] == 80


def test_parts_of_batches_and_depths_are_compared_with_the_whole_and_with_the_first():
    tests = {(f"ghosts-{n}", "bn"): [at, at + 1] for n, at in ((2, 60), (4, 70), (128, 75))}
    answers = stats.answer(comparisons.compare_ghosts(make_frame(tests)))
    assert answers.dropna().set_index("column")["mean"].to_dict() == {"2 images": 15, "4 images": 5}
    ends = {("1", "bn"): 80, ("1", "none"): 78, ("4", "bn"): 81, ("4", "none"): 70}
    tests = {(f"depth-{n}", arm): [at, at + 1] for (n, arm), at in ends.items()}
    answers = stats.answer(comparisons.compare_depths(make_frame(tests)))
    assert answers.set_index("row")["mean"].to_dict() == {"8": 2, "32": 11, "32 minus 8": 9}


def test_robustness_has_accuracy_loss_and_calibration_where_it_is_hardest():
    row = {"corruption": "noise", "amount": 0.1, "recomputed": False, "test_acc": 60}
    row |= {"test_loss": 1.5, "ece": 20}
    weak, other = row | {"amount": 0.04}, row | {"recomputed": True, "test_acc": 61}
    results = {"bn": [weak, row, other], "gn": [row | {"test_acc": 66}]}
    tests = {("robustness-muon", arm): [80, 80] for arm in results}
    made = make_frame(tests, rows=lambda recipe, arm, accuracy: results[arm])
    rows = frames.get_robustness(made)
    cells = [f"{test}.00 ± 0.00 / 1.50 / 20.0" for test in (60, 61, 66)]
    assert read_table(tables.make_robustness(rows)) == [["noise 0.1", *cells]]
    answers = stats.answer(comparisons.compare_robustness(made)).set_index("column")["mean"]
    assert answers.to_dict() == {"bn - gn": -6, "bn recomputed - gn": -5}


@pytest.mark.parametrize(
    ("column", "value"),
    [("precision", "float32"), ("arm", "bn"), ("recipe", "muon"), ("claim", "shift"), ("seed", 1)],
)
def test_missing_runs_crash_no_table(column, value, frame):
    made = tables.make_tables(frame[frame[column] != value])
    assert "nan" not in "".join(made.values())


def test_the_runs_that_are_compared_are_of_one_clean_commit_that_the_lab_book_names(frame):
    compared = frames.get_compared(frame)
    compared = compared[compared.recipe.isin(COMPARED_RECIPES)]
    compared = compared.query("recipe != 'onecycle' or arm != 'none' or seed < 3")
    environments = compared.result.str["environment"]
    assert environments.str["clean"].all()
    (commit,) = environments.str["commit"].unique()
    assert commit[:7] in PAGES["experiments/README.md"]
