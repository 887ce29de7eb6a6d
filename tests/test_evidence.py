"""The statistics, tables and figures that the README shows: known values, and no pretence."""

import importlib.util
import json

import pytest
import torch
from torch import nn

import evidence
from models import Session8Net

needs_scipy = pytest.mark.skipif(
    importlib.util.find_spec("scipy") is None, reason="needs experiments/requirements.txt"
)

TEST = {"bn": [80.0, 81.0, 82.0], "gn": [79.0, 81.0, 80.0], "ln": [70.0, 70.5, 70.0]}  # %


def make_results(seeds=(1, 2, 3)):
    """Return made-up results; a train accuracy is 1 point above the test accuracy."""
    return {
        (recipe, norm, seed): {
            "history": {
                "train_acc": [50.0, TEST[norm][seed - 1] + 1],
                "test_acc": [99.0, TEST[norm][seed - 1]],
            },
            "test_predictions": {"bn": "0123", "gn": "0120", "ln": "9993"}[norm],
        }
        for recipe in evidence.COMPARED
        for norm in evidence.NAMES
        for seed in seeds
    }


@needs_scipy
def test_the_interval_is_students():
    # Student's t for 2 degrees of freedom is 4.3027, the deviation is 1.
    assert evidence.get_interval([80.0, 81.0, 82.0]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


@needs_scipy
def test_mcnemar_is_the_exact_binomial_test():
    one = [True] * 9 + [False] * 1 + [True] * 50
    other = [False] * 9 + [True] * 1 + [True] * 50
    # Ten coins, nine or more on one side: 2 * (10 + 1) / 2**10.
    assert evidence.compare_pairs(one, other) == (9, 1, pytest.approx(22 / 1024))
    assert evidence.compare_pairs(one, one) == (0, 0, 1.0)


@needs_scipy
def test_means_and_differences_are_over_the_seeds_and_of_the_last_epoch():
    table = evidence.make_seeds(make_results())
    row = "| `onecycle` | Batch (`bn`) | 3 | 82.00 | 1.00 | ± 2.48 | 81.00 | 1.00 | ± 2.48 |"
    assert row in table.split("\n")
    table = evidence.make_differences(make_results())
    # By seed 1, 0 and 2 points, so 1 +- 4.3027 / sqrt(3).
    cells = "+1.00 (-1.48 to +3.48) | +1.00 (-1.48 to +3.48) | +0.00 (+0.00 to +0.00)"
    assert f"| `reference` | bn - gn | 3 | {cells} |" in table.split("\n")


@needs_scipy
def test_differences_are_paired_by_the_seeds_that_both_have():
    results = make_results()
    del results["onecycle", "bn", 3]
    table = evidence.make_differences(results)
    assert "| `onecycle` | bn - gn | 2 | +0.50 (-5.85 to +6.85) | +0.50 (-5.85" in table


@needs_scipy
def test_one_seed_has_no_spread():
    row = "| `onecycle` | Batch (`bn`) | 1 | 81.00 | – | – | 80.00 | – | – |"
    assert row in evidence.make_seeds(make_results([1])).split("\n")
    row = "| `onecycle` | bn - ln | 1 | +10.00 (–) | +10.00 (–) | +0.00 (–) |"
    assert row in evidence.make_differences(make_results([1])).split("\n")


@needs_scipy
def test_the_precisions_are_compared_by_train_test_and_the_gap_between_them():
    results = make_results()
    for seed, gain in ((1, 1.0), (2, 2.0), (3, 3.0)):
        results[evidence.FLOAT32, "gn", seed]["history"]["train_acc"][-1] += gain
    rows = evidence.make_precisions(results).split("\n")[2:]
    zero, two = "+0.00 (+0.00 to +0.00)", "+2.00 (-0.48 to +4.48)"
    assert rows[0] == f"| Batch (`bn`) | 3 | {zero} | {zero} | {zero} |"
    assert rows[1] == f"| Group (`gn`) | 3 | {two} | {zero} | {two} |"


def test_runs_in_float32_are_kept_apart(tmp_path):
    for folder, accuracy in ((tmp_path, 80), (tmp_path / "float32", 81)):
        folder.mkdir(exist_ok=True)
        run = {"recipe": {"name": "onecycle"}, "norm": "bn", "seed": 1}
        run["history"] = {"train_acc": [accuracy], "test_acc": [accuracy]}
        (folder / "onecycle-bn-seed1.json").write_text(json.dumps(run))
    results = evidence.load_all(tmp_path)
    found = {recipe: evidence.get_accuracy(run) for (recipe, _, _), run in results.items()}
    assert found == {"onecycle": (80, 80), evidence.FLOAT32: (81, 81)}


@needs_scipy
def test_mcnemar_takes_the_predictions_of_seed_1():
    table = evidence.make_mcnemar(make_results(), [0, 1, 2, 3])
    assert "| `onecycle` | bn, gn | 1 | 0 | 1.000 |" in table.split("\n")
    assert "| `onecycle` | gn, ln | 3 | 1 | 0.625 |" in table.split("\n")


def test_the_trials_are_listed_by_their_mean_over_the_norms():
    accuracies = {
        "start": ([80, 82], [81], [82]),
        "lr-0.2": ([83], [83], [84]),
        "crop-1": ([99], [], []),
    }
    results = {
        (trial, norm, seed): {"history": {"validation_acc": [0.0, value]}}
        for trial, norms in accuracies.items()
        for norm, values in zip(evidence.NAMES, norms, strict=True)
        for seed, value in enumerate(values, 1)
    }
    assert evidence.make_tuning(results).split("\n")[2:] == [
        "| `lr-0.2` | 83.00 | 83.00 | 84.00 | 83.33 |",
        "| `start` | 81.00 | 81.00 | 82.00 | 81.33 |",
        "| `crop-1` | 99.00 | – | – | – |",
    ]


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_the_figures_show_the_results_and_how_many_seeds_there_are(seeds):
    figure = evidence.draw_accuracy(make_results(seeds))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == ("Batch, 1 seed" if len(seeds) == 1 else "Batch, 3 seeds")
    line = figure.axes[0].lines[0]
    assert line.get_ydata()[-1] == sum(TEST["bn"][: len(seeds)]) / len(seeds)
    figure = evidence.draw_gaps(make_results(seeds))
    assert list(figure.axes[1].lines[0].get_ydata()) == [1.0] * len(seeds)
    assert all(axis.get_xlabel() or axis.get_xticklabels() for axis in figure.axes)


def test_a_receptive_field_is_what_an_output_can_see():
    table = [row.split(" | ") for row in evidence.make_architecture().split("\n")[2:]]
    fields = {row[0].strip("| `"): int(row[3].split(" x ")[0]) for row in table if row[3]}
    model = Session8Net("bn").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.1)  # nothing cancels
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    x = image
    for name, layer in list(model.layers.named_children())[:9]:  # behind P2 it leaves the image
        pool = isinstance(layer, nn.MaxPool2d)
        x = nn.AvgPool2d(2)(x) if pool else layer(x)  # the maximum would pick one of four
        middle = x.shape[-1] // 2
        (gradient,) = torch.autograd.grad(x[..., middle, middle].sum(), image, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
        assert fields[name] == len(seen), name
    assert name == "P2"


def test_a_table_says_what_the_model_is():
    table = evidence.make_architecture()
    assert (
        "| `C10` | 3x3 convolution, ReLU, normalization | 32 x 4 x 4 | 44 x 44 | 9,280 |" in table
    )
    assert table.endswith("**48,448** |")
