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
    made = make_frame({("muon", "bn"): [80, 81], ("muon", "gn"): [75]}, "float32")
    assert read_table(tables.make_spreads(made)) == [["muon", f"80.50 ± {HALF:.2f}", "75.00", "–"]]


def test_the_speed_is_a_mean_or_how_many_get_there():
    tests = {("muon", "bn"): [70, 70], ("onecycle", "bn"): [90, 90], ("muon", "he"): [71, 65, None]}
    rows = read_table(tables.make_speed(make_frame(tests, "float32")))
    assert rows == [["`he`", "–", "1 of 2 runs"], ["`bn`", "1.50 ± 0.00", "2.00 ± 0.00"]]


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
    (one,) = tables.pair_recipes(
        "found", tables.gather(compared, "recipe"), "reference", "onecycle"
    )[:1]
    (row,) = stats.answer([one]).itertuples()
    # an error of 1 with 4 degrees of freedom: t is 2, the 97.5th percentile 2.776
    assert tables.format_found(row) == "+2.00 (-0.78 to +4.78), p 0.12"


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
        "differences": [3] * 8 + [2] * 3 + [3] * 2,
        "costs": [2, 2],
        "epochs": [3],
        "gaps": [2] * 6,
        "batch-differences": [4],
        "shift": [22],
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
