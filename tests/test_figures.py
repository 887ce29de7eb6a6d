"""The figures of the pages: their lines, bands and crosses are the runs."""

import re

import numpy as np

from cifar10 import load_sample
from common import PAGES, ROOT, make_frame
from experiments import figures, frames
from experiments.results import load_frame


def get_lines(axis):
    """Return the values of an axis' labeled lines."""
    return {line.get_label(): line.get_ydata().tolist() for line in axis.lines}


def get_bands(axis):
    """Return the lowest and highest values, by x, of an axis' bands."""
    bands = []
    for band in axis.collections:
        x, y = band.get_paths()[0].vertices.T
        bands.append([(y[x == at].min(), y[x == at].max()) for at in np.unique(x)])
    return bands


def test_accuracies_have_the_means_and_a_band_from_lowest_to_highest():
    tests = {("muon", "bn"): [70, 74, 81], ("onecycle", "bn"): [82, 84, None]}
    axes = figures.draw_accuracies(make_frame(tests, "float32"), ["onecycle", "muon"]).axes
    assert [axis.get_title() for axis in axes] == ["tuned SGD", "Muon"]
    assert [get_lines(axis) for axis in axes] == [{"Batch": [50, 83]}, {"Batch": [50, 75]}]
    assert [get_bands(axis) for axis in axes] == [[[(50, 50), (82, 84)]], [[(50, 50), (70, 81)]]]
    assert axes[0].get_ylim()[1] > 84, "no end is cut off"


def test_values_have_a_cross_for_each_run_that_diverged():
    tests = {
        ("rates-0.1", "bn"): [70, 71],
        ("rates-1", "bn"): [72, 73],
        ("rates-0.1", "he"): [60, 60],
    }
    made = make_frame(tests | {("rates-1", "he"): [None, 50]})
    axis = figures.draw_values(frames.get_claim(made, "rates"), "rate", "Rates", "best").axes[0]
    assert get_lines(axis) == {"None, He init": [60, 30], "Batch": [70.5, 72.5]}
    points = [tuple(p) for dots in axis.collections for p in dots.get_offsets().tolist()]
    assert [point for point in points if point[1] == frames.CHANCE] == [(1.0, 10.0)]
    assert {(0.1, 70), (0.1, 71), (1.0, 50)} <= set(points), "a dash a run"


def test_every_run_with_an_optimizer_is_a_dot():
    tests = {("muon", "bn"): [85, 86], ("onecycle", "bn"): [83, None]}
    figure = figures.draw_optimizers(make_frame(tests, "float32"))
    names = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    for axis in figure.axes:  # of which each shows a part
        points = axis.collections[0].get_offsets()
        found = sorted((names[round(x)], y) for x, y in points)
        assert found == [("Muon", 85), ("Muon", 86), ("tuned SGD", 10), ("tuned SGD", 83)]


def test_robustness_has_the_means_by_amount():
    def measure(recipe, arm, accuracy):
        row = {"recomputed": False, "test_loss": accuracy / 10, "ece": 5}
        amounts = {("none", 0): 0, ("noise", 0.1): 30, ("blur", 1.0): 20, ("contrast", 0.85): 10}
        return [
            row | {"corruption": name, "amount": amount, "test_acc": accuracy - loss}
            for (name, amount), loss in amounts.items()
        ]

    made = make_frame({("robustness-muon", "gn"): [80, 84]}, rows=measure)
    axes = figures.draw_robustness(frames.get_robustness(made)).axes
    assert [get_lines(axis)["Group"] for axis in axes[:3]] == [[82, 52], [82, 62], [82, 72]]
    assert [get_lines(axis)["Group"] for axis in axes[3:]] == [[8.2, 8.2]] * 3 + [[5, 5]] * 3


def test_scales_have_medians_and_percentiles_before_and_after():
    def deviate(factor):
        layers = {"C1": 1.0, "C10": 5.0}
        return lambda recipe, arm, test: {
            name: (factor * test * at * np.arange(11)).tolist() for name, at in layers.items()
        }

    made = make_frame({("scales-0.05", "bn"): [1.0, 3.0]}, before=deviate(1), after=deviate(10))
    axes = figures.draw_scales(frames.get_scales(made)).axes
    for axis, moment, mean in zip(axes, ("before", "after"), (2, 20), strict=True):
        assert axis.get_title() == f"{moment} training"
        assert get_lines(axis) == {"Batch": [5 * mean, 25 * mean]}
        assert np.allclose(get_bands(axis), [[(mean, 9 * mean), (5 * mean, 45 * mean)]])


def test_every_figure_of_the_pages_is_drawn_with_all_its_arms():
    drawn = figures.draw_figures(load_frame())
    shown = set(re.findall(r"images/(\w+)\.png", "".join(PAGES.values())))
    assert {*drawn, "mistakes"} == shown, "this one needs CIFAR-10"
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "images").glob("*.png"))
    arms = {
        name: {line.get_label() for axis in figure.axes for line in axis.lines}
        for name, figure in drawn.items()
    }
    three, five = {"Batch", "Group", "Layer"}, {"Batch", "Group", "Layer", "None", "None, He init"}
    assert arms["accuracy"] == three
    assert arms["batches"] == three | {"Batch, recomputed"}
    assert arms["baseline"] == arms["rates"] == arms["scales"] == five


def test_curves_are_the_means_of_training_and_test():
    history = {"clean_train_acc": [60, 90], "test_acc": [55, 80], "clean_train_loss": [1.2, 0.4]}
    history |= {"test_loss": [1.3, 0.8]}
    tests = {
        (recipe, arm): [0, 0] for recipe in ("reference", "muon") for arm in ("bn", "gn", "ln")
    }
    made = make_frame(tests, "float32", history=lambda *_: history)
    accuracy, _, loss, _ = figures.draw_curves(made).axes
    assert get_lines(accuracy)["Group, training"] == [60, 90]
    assert get_lines(accuracy)["Layer, test"] == [55, 80]
    assert get_lines(loss)["Batch, test"] == [1.3, 0.8]


def test_mistakes_are_the_images_on_which_the_norms_disagree():
    data = load_sample()
    labels = data.test.tensors[1].tolist()
    wrong = [(label + 1) % 10 for label in labels]
    digits = {norm: wrong.copy() for norm in ("bn", "gn", "ln")}
    for number, norm in enumerate(digits):
        digits[norm][3 + number] = labels[3 + number]  # alone right on one image
    made = make_frame(
        {("muon", norm): [0] for norm in digits},
        "float32",
        test_predictions=lambda recipe, arm, test: "".join(map(str, digits[arm])),
    )
    first = [row.axes[0] for row in figures.draw_mistakes(made, data).subfigs]
    assert [axis.get_title() for axis in first] == [
        f"{data.classes[3]}\nbn 1, gn 0, ln 0",
        f"{data.classes[4]}\nbn 0, gn 1, ln 0",
        f"{data.classes[5]}\nbn 0, gn 0, ln 1",
        f"{data.classes[0]}\ntaken for {data.classes[1]}",
    ]
