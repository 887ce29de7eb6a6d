"""The figures of the pages, by the names of their files in images/."""

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure

import utils
from cifar10 import Data
from experiments import frames
from experiments.frames import CHANCE, get_arms, select
from experiments.results import COMPARED, COMPARED_RECIPES
from experiments.robustness import AMOUNTS
from plots import draw_images
from runs import LABELS

BN_RECOMPUTED = {"label": "Batch, recomputed", "color": "#56B4E9", "linestyle": ":", "marker": "x"}
ACCURACY = "accuracy on the test images (%)"  # an axis


def get_style(arm: str) -> dict[str, str]:
    """Return an arm's label, color, line style and marker as matplotlib options."""
    if arm == "bn recomputed":
        return BN_RECOMPUTED
    return {"label": LABELS[arm]} | utils.STYLES[arm]


def draw_accuracies(frame: pd.DataFrame, recipes: Sequence[str]) -> Figure:
    """Draw test accuracy by epoch: each arm's mean, in a band from the lowest to the highest run.

    There is one axis per recipe; diverged runs are left out.
    """
    figure, lines = Figure(figsize=(9, 4.5), layout="constrained"), {}
    for axis, recipe in zip(figure.subplots(1, len(recipes), sharey=True), recipes, strict=True):
        ended = select(frame, recipe=recipe).dropna(subset="test")
        for arm in get_arms(ended):
            histories, style = select(ended, arm=arm).history, get_style(arm)
            epochs = pd.DataFrame([history["test_acc"] for history in histories])
            epochs.columns += 1
            line = axis.plot(epochs.columns, epochs.mean(), **style, markersize=4)
            lines[style["label"]] = line[0]
            band = (epochs.columns, epochs.min(), epochs.max())
            axis.fill_between(*band, color=style["color"], alpha=0.2, linewidth=0)
            axis.set_xticks(range(0, len(epochs.T) + 1, 5))
        axis.set(title=frames.RECIPE_TITLES[recipe], xlabel="epoch")
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel=ACCURACY, ylim=(50, None))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    return figure


def draw_curves(compared: pd.DataFrame, recipes: Sequence[str] = ("reference", "muon")) -> Figure:
    """Draw accuracy and loss by epoch, means of the runs: training dashed, test solid."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    rows = (("acc", "accuracy (%)"), ("loss", "mean negative log likelihood"))
    axes = figure.subplots(2, len(recipes), sharex=True, sharey="row", squeeze=False)
    for row, (measure, label) in zip(axes, rows, strict=True):
        row[0].set_ylabel(label)
        for axis, recipe in zip(row, recipes, strict=True):
            for arm in COMPARED:
                histories = select(compared, recipe=recipe, arm=arm).history
                color = get_style(arm)["color"]
                for part, line in (("clean_train", "--"), ("test", "-")):
                    means = pd.DataFrame([h[f"{part}_{measure}"] for h in histories]).mean()
                    name = f"{LABELS[arm]}, {'test' if part == 'test' else 'training'}"
                    axis.plot(means.index + 1, means, line, color=color, label=name)
            axis.set_xticks(range(0, len(means) + 1, -(-len(means) // 4)))
            axis.grid(alpha=0.3)
    for axis, recipe in zip(axes[0], recipes, strict=True):
        axis.set(title=frames.RECIPE_TITLES.get(recipe, recipe), ylim=(50, None))
    for axis in axes[1]:
        axis.set(xlabel="epoch", ylim=(None, 1.4))
    lines = axes[0, 0].get_lines()
    names = [line.get_label() for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncols=3)
    return figure


def draw_mistakes(compared: pd.DataFrame, data: Data, recipe="muon", columns=8) -> Figure:
    """Draw test images that one normalization gets right more often, and some that all get wrong.

    A row shows the images that most runs of its norm get right, and fewest runs of the others.
    """
    images, labels = (tensor.cpu() for tensor in data.test.tensors)
    right, guesses = {}, []
    for arm in COMPARED:
        results = select(compared, recipe=recipe, arm=arm).result
        digits = [list(map(int, result["test_predictions"])) for result in results]
        guesses += digits
        right[arm] = (torch.tensor(digits) == labels).sum(0)
    usual, total = torch.tensor(guesses).mode(0).values, sum(right.values())
    rows = {f"More often right with {LABELS[a]}": 3 * right[a] - total for a in COMPARED}
    rows["Wrong with all three"] = -total
    figure = Figure(figsize=(12, 2 * len(rows)), layout="constrained")
    for row, (name, score) in zip(figure.subfigures(len(rows), 1), rows.items(), strict=True):
        row.suptitle(name, fontsize=12)
        chosen = score.argsort(descending=True, stable=True)[:columns].tolist()
        captions = []
        for index in chosen:
            counts = ", ".join(f"{arm} {right[arm][index]}" for arm in COMPARED)
            said = counts if total[index] else f"taken for {data.classes[usual[index]]}"
            captions.append(f"{data.classes[labels[index]]}\n{said}")
        draw_images(row.subplots(1, columns), images[chosen], captions, 9)
    return figure


def draw_values(frame: pd.DataFrame, what: str, title: str, place: str) -> Figure:
    """Draw test accuracy by value: means as lines, runs as dashes, diverged runs as crosses."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for arm, means in frames.get_means(frame).iterrows():
        part, style = select(frame, arm=arm), get_style(arm)
        axis.plot(means.index, means, linewidth=1.8, **style)
        axis.scatter(part.value, part.test, s=60, color=style["color"], marker="_")
        lost = part[part.test.isna()]
        axis.scatter(lost.value, [CHANCE] * len(lost), s=90, color=style["color"], marker="x")
    values = sorted(set(frame.value))
    axis.set(xscale="log", xlabel=what, ylabel=ACCURACY, title=title)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(loc=place)
    return figure


def draw_optimizers(compared: pd.DataFrame) -> Figure:
    """Draw test accuracy by optimizer and arm, one marker per run; diverged runs are at CHANCE.

    Accuracies below 75 % are on a separate axis with a smaller scale.
    """
    recipes = [recipe for recipe in frames.RECIPE_TITLES if recipe != "reference"]
    figure = Figure(figsize=(9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for shift, arm in enumerate(get_arms(compared), -2):
        runs = select(compared, arm=arm).fillna({"test": CHANCE})
        runs = runs[runs.recipe.isin(recipes)]
        look = {key: get_style(arm)[key] for key in ("color", "marker", "label")}
        for axis in (upper, lower):
            axis.scatter(runs.recipe.map(recipes.index) + 0.13 * shift, runs.test, s=25, **look)
    upper.set(ylabel=ACCURACY, ylim=(75, None))
    lower.set(ylabel="(smaller scale)", ylim=(5, 75), yticks=(10, 30, 50, 70))
    lower.set_xticks(range(len(recipes)), [frames.RECIPE_TITLES[recipe] for recipe in recipes])
    for axis in (upper, lower):
        axis.grid(alpha=0.3, axis="y")
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def draw_robustness(rows: pd.DataFrame) -> Figure:
    """Draw accuracy, loss and calibration error on changed images, means over seeds."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(3, 3, sharex="col", sharey="row")
    measures = {"test": "accuracy (%)", "test_loss": "loss", "ece": "calibration error (%)"}
    amounts = ("noise (deviation, of white)", "blur (deviation, pixels)", "contrast lost (share)")
    for column, kind, amount in zip(axes.T, AMOUNTS, amounts, strict=True):
        part = rows[rows.corruption.isin(("none", kind))]
        for axis, measure in zip(column, measures, strict=True):
            for arm in get_arms(part):
                means = select(part, arm=arm).groupby("amount")[measure].mean()
                axis.plot(means.index, means, **get_style(arm))
            axis.grid(alpha=0.3)
        column[-1].set_xlabel(amount)
    for axis, label in zip(axes[:, 0], measures.values(), strict=True):
        axis.set_ylabel(label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_scales(scales: pd.DataFrame) -> Figure:
    """Draw the channels' deviations by layer, before and after training, averaged over seeds.

    Lines are medians, and bands reach from the 10th to the 90th percentile.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, moment in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        for arm in get_arms(scales):
            layers = select(scales, arm=arm, moment=moment).groupby("layer", sort=False)
            means, style = layers[["low", "median", "high"]].mean(), get_style(arm)
            axis.plot(means.index, means["median"], **style)
            band = (means.index, means.low, means.high)
            axis.fill_between(*band, color=style["color"], alpha=0.12, linewidth=0)
        axis.set(title=f"{moment} training", xlabel="layer", yscale="log")
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="standard deviation of a channel's output")
    figure.axes[0].set_ylim(bottom=1e-5)  # after training `none` lies below, with C10 at 0
    figure.axes[0].legend()
    return figure


def draw_figures(frame: pd.DataFrame, data: Data | None = None) -> dict[str, Figure]:
    """Return all figures by name; `mistakes` needs `data`, which is CIFAR-10."""
    compared = frames.get_compared(frame)
    crosses = "After 4 epochs (line: mean, dash: one run, cross: a run that diverged)"
    grown = "After 5 epochs, the rate in proportion to the batch (line: mean, dash: one run)"
    rates = (frames.get_claim(frame, "rates"), "peak learning rate of SGD", crosses)
    drawn = {"mistakes": draw_mistakes(compared, data)} if data else {}
    return drawn | {
        "curves": draw_curves(compared),
        "accuracy": draw_accuracies(compared[compared.arm.isin(COMPARED)], COMPARED_RECIPES),
        "baseline": draw_accuracies(compared, ("onecycle", "muon")),
        "optimizers": draw_optimizers(compared),
        "robustness": draw_robustness(frames.get_robustness(frame)),
        "rates": draw_values(*rates, "center left"),
        "batches": draw_values(
            frames.get_claim(frame, "batches"), "images per batch", grown, "lower center"
        ),
        "scales": draw_scales(frames.get_scales(frame)),
        "cubes": utils.post_cubes(),
    }
