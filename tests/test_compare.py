"""Three normalizations side by side: what one has right alone, and what is missing."""

import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils.data import TensorDataset

from cifar10 import Data, load_cifar10
from common import ROOT, draw_images, make_run, write_result
from experiments import compare

LABELS = torch.tensor([0, 1, 2, 3, 4])
PREDICTED = {"bn": [0, 1, 2, 9, 9], "gn": [0, 9, 9, 9, 4], "ln": [0, 9, 9, 3, 4]}  # classes
SURE = [0.9, 0.6, 0.8, 0.7, 0.5]  # of each image's predicted class


def make_predictions():
    """Return log-probabilities (5, 10) by norm."""
    predictions = {}
    for norm, classes in PREDICTED.items():
        p = (1 - torch.tensor(SURE))[:, None].repeat(1, 10) / 9
        p[torch.arange(5), torch.tensor(classes)] = torch.tensor(SURE)
        predictions[norm] = p.log()
    return predictions


def make_results():
    history = {"test_acc": [55.0, 85.0, 80.5], "seconds": [60.0, 20.0, 10.0]}  # last, not best
    result = {"history": history, "clean_train_acc": 81.25, "seed": 1, "data": {"name": "CIFAR-10"}}
    result |= {"recipe": {"name": "muon"}, "environment": {"precision": "float32"}}
    return {norm: result | {"norm": norm, "network": f"one of {norm}"} for norm in PREDICTED}


def test_the_figure_shows_curves_what_each_network_saw_and_what_differs():
    results, test = make_results(), TensorDataset(draw_images(5), LABELS)
    assert compare.name_differences(results) == ""
    results["gn"] |= {"recipe": {"name": "muon", "lr": 1.0}}
    results["ln"] |= {"optimizer": "another"}  # which the others' results do not tell
    figure = compare.draw(results, make_predictions(), Data("abcdefghij", test, test))
    curves, first, *rest = figure.subfigs
    assert [line.get_ydata().tolist() for line in curves.axes[0].lines] == [[55.0, 85.0, 80.5]] * 3
    said = "Besides the norm, these runs differ in: recipe, optimizer"
    assert curves.axes[0].get_title() == f"3 epochs of muon, seed 1\n{said}"
    label = curves.axes[0].get_legend().get_texts()[0].get_text()
    assert label == "Batch: 80.50 % (train 81.25 %, 1.5 min)"
    assert first.get_suptitle() == "Right with Batch normalization alone: 2 images"
    shown = [axis for axis in first.axes if axis.images]
    assert shown[0].get_title() == "label: c\nbn: c (80%)\ngn: j (80%)\nln: j (80%)"
    image = torch.tensor(shown[0].images[0].get_array())
    assert torch.equal(image, draw_images(5)[2].permute(1, 2, 0))
    assert [sum(bool(axis.images) for axis in row.axes) for row in (first, *rest)] == [2, 0, 1]


def touch(folder, norms):
    """Make files of runs in `folder`, which is that of a precision."""
    for run in (make_run("quick", norm, 7, folder.name) for norm in norms):
        write_result(folder.parent, run).with_suffix(".pt").touch()


def test_ones_own_runs_are_taken_where_there_are_three(tmp_path):
    runs, results = folders = [tmp_path / name / "float32" for name in ("runs", "results")]
    touch(runs, ["bn", "ln"])
    with pytest.raises(FileNotFoundError) as error:
        compare.find_runs("quick", 7, folders)
    assert "float32 has no quick-gn-seed7.json and no quick-gn-seed7.pt. Run" in str(error.value)
    assert "RECIPE=quick SEED=7" in str(error.value)
    touch(results, PREDICTED)
    assert {p.parent for p in compare.find_runs("quick", 7, folders).values()} == {results}
    touch(runs, ["gn"])
    found = compare.find_runs("quick", 7, folders)
    assert found == {norm: runs / f"quick-{norm}-seed7.json" for norm in PREDICTED}


def test_the_variables_choose_what_the_options_do_not(monkeypatch, capsys):
    monkeypatch.setenv("RECIPE", "quick")
    monkeypatch.setenv("SEED", " 3")
    for arguments, expected in (("", ("quick", 3)), ("--recipe muon --seed 2", ("muon", 2))):
        options = compare.parse(arguments.split())
        assert (options.recipe, options.seed) == expected
    with pytest.raises(SystemExit):
        compare.parse(["--recipe", "smoke"])
    assert "a smoke run leaves no result to compare" in capsys.readouterr().err


def test_the_folder_of_the_figure_is_there_before_all_that_takes_long(tmp_path, monkeypatch):
    touch(tmp_path / "results" / "float32", PREDICTED)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare.records, "load_data", mock.Mock(side_effect=KeyboardInterrupt))
    options = ["--recipe", "quick", "--seed", "7", "--output", "a/b/three.png"]
    monkeypatch.setattr("sys.argv", ["compare", *options])
    with pytest.raises(KeyboardInterrupt):
        compare.main()
    assert Path("a/b").is_dir()


@pytest.mark.cifar10
def test_committed_runs_are_compared_on_any_machine(cifar10_root, tmp_path, monkeypatch, capsys):
    data = load_cifar10(cifar10_root)
    few = TensorDataset(*data.test[:500])
    monkeypatch.setattr(compare.records, "load_data", lambda recipe: replace(data, test=few))
    monkeypatch.delenv("PRECISION", raising=False)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    (tmp_path / "results" / "float32").mkdir(parents=True)
    for path in (ROOT / "results" / "float32").glob("muon-?n-seed1.*"):
        shutil.copy(path, tmp_path / "results" / "float32")
    options = ["--recipe", "muon", "--seed", "1", "--output", "a/three.png"]
    monkeypatch.setattr("sys.argv", ["compare", *options])
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "These runs differ in their norm alone."
    assert lines[-1] == "Written: a/three.png, of the runs in results/float32/"
    assert Path("a/three.png").stat().st_size > 100_000
