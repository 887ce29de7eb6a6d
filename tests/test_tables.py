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
