"""The tables of the pages; that each has the numbers of the results is test_report's part."""

import pytest

from common import PAGES, need_packages

need_packages()

from experiments import frames, stats, tables  # noqa: E402
from experiments.results import COMPARED, load_frame  # noqa: E402


@pytest.fixture(scope="module")
def frame():
    """The frame of all committed results."""
    return load_frame()


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
