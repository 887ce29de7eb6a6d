"""The tables of the pages; that each has the numbers of the results is test_report's part."""

import pytest

from common import PAGES, need_packages

need_packages()

from experiments import frames, stats, tables  # noqa: E402
from experiments.results import load_frame  # noqa: E402


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
