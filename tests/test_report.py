"""The pages and the notebooks are what the results say, and `--check` finds where they are not."""

import math
import os
import re
import shutil

import pandas as pd
import pytest

from common import NOTEBOOKS, PAGES, ROOT, make_frame
from experiments import report
from experiments.tables import make_tables


def run(*options, root=ROOT):
    """Run report, and return its exit status."""
    with pytest.raises(SystemExit) as end:
        report.main(options, root)
    return end.value.code


@pytest.fixture
def copy(tmp_path):
    """A folder with the pages and the notebooks."""
    for path in (*(ROOT / page for page in report.PAGES), *NOTEBOOKS.values()):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "images").mkdir()
    return tmp_path


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_pages_and_notebooks_are_what_the_results_say(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    status, said = run("--check"), capsys.readouterr().out
    assert status == 0, said
    assert f"`images` was not checked: there is no CIFAR-10 in {tmp_path}" in said


def test_what_the_results_do_not_say_is_shown_and_not_written(copy, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_ROOT", str(copy))
    places = {
        "README.md": ("| 85.86 ± 0.36 |", "| 85.96 ± 0.36 |"),  # in a table
        "experiments/README.md": ("8.8<!--=", "8.9<!--="),
        NOTEBOOKS["gn"].name: ("76.16<!--=", "+76.16<!--="),
    }
    for page, (true, false) in places.items():
        change(copy / page, true, false)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert run("--check", root=copy) == 1
    out = capsys.readouterr().out
    for page, (true, false) in places.items():
        diff = rf"^--- {page}\n(.*\n)*-.*{re.escape(false)}.*\n\+.*{re.escape(true)}"
        assert re.search(diff, out, re.M)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.cifar10
def test_a_run_renews_pages_and_figures(copy, cifar10_root):
    change(copy / "README.md", "85.86", "85.96")
    report.main([], copy)
    for page, text in PAGES.items():
        assert (copy / page).read_text(encoding="utf-8") == text
    renewed, committed = (os.listdir(root / "images") for root in (copy, ROOT))
    assert sorted(renewed) == sorted(committed)


def test_each_table_stands_on_one_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in report.PAGES]
    markers = re.findall(r"^<!-- ([\w-]+) -->$", "\n".join(texts), re.MULTILINE)
    tables = make_tables(report.load_frame())
    assert sorted(markers) == sorted([*tables, "architecture", "images", "minutes"])


def test_what_is_marked_is_renewed_and_no_other_word():
    page = "a\n<!-- one -->\nold\n<!-- /one -->\nit is 1.5<!--= x -->, not 1.5 or -2<!--= y -->."
    renewed = page.replace("old", "new \\1").replace("1.5<", "+2.5<")
    assert report.renew(page, {"one": "new \\1"}, {"x": "+2.5", "y": "-2"}.get) == renewed


@pytest.fixture
def frame():
    """Made-up runs of each kind that a sentence quotes."""
    claims = {("batches-2", "bn"): [60, 61], ("batches-2", "gn"): [62, 63], ("rates-1", "bn"): [70]}
    claims |= {("rates-3", "bn"): [None], ("scales-0.05", "bn"): [1.0, 4.0]}
    claims |= {("shift-0.1", "bn"): [1]}
    steps = [
        {"shift": {"C10": {"change": x}}, "loss_range": [1, 2], "change": 1, "smoothness": 1}
        for x in (0.5, 0.25, 4)
    ]
    made = make_frame(
        claims,
        recomputed_acc=lambda recipe, arm, test: (test or 0) + 2,
        before=lambda recipe, arm, test: {"C1": [1000 * (test or 0)], "C10": [1.0]},
        rows=lambda recipe, arm, test: steps,
    )
    tests = {("muon", "bn"): [85, 86, None], ("muon", "gn"): [85.16, 85.36]}
    tests |= {("quick", "bn"): [80, 80], ("quick", "gn"): [80.04, 80.04]}
    norms = make_frame(
        tests, "float32", clean_train_acc=lambda recipe, arm, test: (test or math.nan) + 3
    )
    return pd.concat([made, norms], ignore_index=True)


NUMBERS = """
    muon bn = 85.50; muon bn minus gn = 0.2; muon gn minus bn = -0.2; muon bn minus quick bn = 5.5;
    quick bn minus gn = 0.0; batches 2 gn = 62.50; batches 2 recomputed minus bn = 2.0;
    rates 1 bn = 70.00; rates best bn = 70.00; gap muon bn = 3.0; epochs to 70 muon bn = 1.6;
    epochs to 50 rates best bn = 1.0; scales bn = 2,000; shift bn = 0.50;
    low batches 2 gn minus bn = -1.0; high batches 2 gn minus bn = 5.0
"""


@pytest.mark.parametrize("line", [line.strip() for line in NUMBERS.split(";")])
def test_a_number_is_found_by_its_name(frame, line):
    name, number = line.split(" = ")
    assert report.get_number(frame, name) == number


@pytest.mark.parametrize("name", ["muon", "muon zz", "rates 3 bn", "a minus b", "muon bn minus zz"])
def test_an_unknown_number_is_named(frame, name):
    with pytest.raises(KeyError, match=f"'{name}'"):
        report.get_number(frame, name)
