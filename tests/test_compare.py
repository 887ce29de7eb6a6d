"""Three normalizations side by side: what one has right alone, and what is missing."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from common import draw_images, make_run
from experiments import compare
from experiments import results as records

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
    history = {"train_acc": [50.0, 81.25], "test_acc": [55.0, 80.5], "seconds": [60.0, 30.0]}
    result = {"history": history, "seed": 1, "data": {"name": "CIFAR-10"}}
    result |= {"recipe": {"name": "muon"}, "environment": {"precision": "float32"}}
    return {norm: result | {"norm": norm} for norm in PREDICTED}


@pytest.mark.parametrize(("norm", "alone"), [("bn", [2, 1]), ("gn", []), ("ln", [3])])
def test_one_is_right_alone_where_all_others_are_wrong_and_the_surest_comes_first(norm, alone):
    assert compare.find_alone(make_predictions(), LABELS, norm).tolist() == alone


def test_the_table_is_of_the_last_epoch():
    lines = compare.make_table(make_results(), make_predictions(), LABELS).split("\n")
    assert lines[0].split() == ["train", "test", "right", "alone", "minutes"]
    assert lines[1].split() == ["bn", "81.25", "80.50", "2", "1.5"]
    assert [line.split()[3] for line in lines[1:]] == ["2", "0", "1"]


def test_the_figure_shows_the_curves_and_what_each_network_took_the_images_for():
    test = TensorDataset(draw_images(5), LABELS)
    figure = compare.draw(make_results(), make_predictions(), test, "abcdefghij")
    curves, *rows = figure.subfigs
    assert [line.get_ydata().tolist() for line in curves.axes[0].lines] == [[55.0, 80.5]] * 3
    assert curves.axes[0].get_title() == "CIFAR-10 | recipe muon | seed 1 | float32"
    titles = [row.get_suptitle() for row in rows]
    assert titles[0] == "Right with batch normalization alone: 2 images"
    captions = [axis.get_title() for axis in rows[0].axes if axis.images]
    assert captions[0] == "true: c\nbn: c (80%)\ngn: j (80%)\nln: j (80%)"
    shown = torch.tensor(rows[0].axes[0].images[0].get_array())
    assert torch.equal(shown, draw_images(5)[2].permute(1, 2, 0))
    assert [len([axis for axis in row.axes if axis.images]) for row in rows] == [2, 0, 1]


def test_a_run_that_is_missing_is_named_with_what_makes_it(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    for norm in ("bn", "ln"):
        for suffix in (".json", ".pt"):
            path = make_run("quick", norm, 7).get_path(tmp_path / "results", suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with pytest.raises(FileNotFoundError) as error:
        compare.load_runs("quick", 7, "float32")
    assert "quick-gn-seed7.json and no " in str(error.value)
    assert "RECIPE=quick SEED=7 PRECISION=float32" in str(error.value)
    assert "-bn-" not in str(error.value)


@pytest.mark.parametrize("options", [["--recipe", "smoke"], []])
def test_a_recipe_that_leaves_no_result_is_not_to_be_chosen(options, capsys, monkeypatch):
    monkeypatch.setenv("RECIPE", "smoke")
    with pytest.raises(SystemExit):
        compare.parse(options)
    assert "the recipe is 'smoke', but must be one of muon, quick" in capsys.readouterr().err


def test_the_variables_choose_what_the_options_do_not(monkeypatch):
    monkeypatch.setenv("RECIPE", "quick")
    monkeypatch.setenv("SEED", " 3")
    options = compare.parse([])
    assert (options.recipe, options.seed) == ("quick", 3)
    options = compare.parse(["--recipe", "muon", "--seed", "2"])
    assert (options.recipe, options.seed) == ("muon", 2)
    monkeypatch.delenv("RECIPE")
    assert compare.parse([]).recipe == "muon"


@pytest.mark.parametrize(
    "place", ["figure.txt", "nowhere/figure.png", "", "folder.png", "~nosuchuser/x.png"]
)
def test_a_figure_that_can_t_be_written_is_refused_before_anything_is_computed(
    place, capsys, monkeypatch
):
    Path("folder.png").mkdir()
    monkeypatch.setenv("RECIPE", "muon")
    with pytest.raises(SystemExit):
        compare.parse(["--output", place])
    assert f"argument --output: {place!r} must" in capsys.readouterr().err


@pytest.mark.cifar10
def test_the_committed_weights_give_the_committed_predictions(cifar10_root):
    results = compare.load_runs("muon", 1, "float32")
    data = records.get_data(make_run("muon").recipe)
    for norm, prediction in compare.predict(results, data.test).items():
        digits = "".join(map(str, prediction.argmax(dim=1).tolist()))
        same = map(str.__eq__, digits, results[norm]["test_predictions"])
        assert sum(same) > 9_980, "on another machine a rounding can tip an image"
