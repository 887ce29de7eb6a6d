"""Tables and figures of what a normalization is said to do inside the network, from claims.py."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import results as records
from experiments.claims import WATCHED
from experiments.intervals import format_differences, format_mean, make_markdown
from experiments.reasons import LABELS, STYLES, get_arms
from experiments.results import SEEDS

# --- Features on one scale -----------------------------------------------------------------------


def make_scale_frame(results: records.Results) -> pd.DataFrame:
    """Return a row an arm, seed, moment and layer: of its channels' deviations, three percentiles.

    `moment` is "before" or "after" training; the percentiles are the 10th, 50th and 90th.
    """
    rows = [
        (arm, seed, moment, layer, *np.percentile(deviations, (10, 50, 90)))
        for (recipe, arm, seed), result in results.items()
        if recipe.startswith("scales-") and seed in SEEDS
        for moment in ("before", "after")
        if moment in result  # not where it diverged
        for layer, deviations in result[moment].items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "moment", "layer", "low", "median", "high"])


def make_scales(frame: pd.DataFrame) -> str:
    """Return, by arm, how the scale changes with depth and how unlike a layer's channels are.

    `C1 / C10` is the quotient of the medians; `spread` is the 90th by the 10th percentile, in the
    geometric mean of the layers. Both are the geometric mean of the seeds, with the range.
    """
    rows = {}
    for arm in get_arms(frame):
        rows[f"`{arm}`"] = row = {}
        for moment in ("before", "after"):
            part = frame[(frame.arm == arm) & (frame.moment == moment)]
            medians = part.pivot(index="seed", columns="layer", values="median")
            spreads = np.log(part.high / part.low).groupby(part.seed).mean()
            row[f"C1 / C10 {moment}"] = format_factors(medians.C1 / medians.C10)
            row[f"spread {moment}"] = format_factors(np.exp(spreads))
    return make_markdown(pd.DataFrame.from_dict(rows, "index").rename_axis("arm"))


def format_factors(factors: pd.Series) -> str:
    """Return the geometric mean, and in brackets the lowest and the highest, to three digits."""
    mean = np.exp(np.log(factors).mean())
    low, middle, high = (f"{float(f'{x:.3g}'):,g}" for x in (factors.min(), mean, factors.max()))
    return f"{middle} ({low} to {high})".replace("inf", "∞")


def draw_scales(frame: pd.DataFrame) -> Figure:
    """Return the deviations of the channels by layer, before and after training, of each arm.

    A line is the median channel, a band goes from the 10th to the 90th percentile; both are means
    of the seeds.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    layers = list(dict.fromkeys(frame.layer))
    for axis, moment in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        for arm in get_arms(frame):
            part = frame[(frame.arm == arm) & (frame.moment == moment)]
            means = part.groupby("layer")[["low", "median", "high"]].mean().loc[layers]
            axis.plot(layers, means["median"], label=LABELS[arm], **STYLES[arm])
            band = (layers, means.low, means.high)
            axis.fill_between(*band, color=STYLES[arm]["color"], alpha=0.12, linewidth=0)
        axis.set(title=f"{moment} training", xlabel="layer", yscale="log")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("standard deviation of a channel's output")
    figure.axes[0].legend()
    return figure


# --- Internal covariate shift --------------------------------------------------------------------


def make_shift_frame(results: records.Results) -> pd.DataFrame:
    """Return a row a measured step of each run: arm, seed, step, and the measures, nan for none.

    These are `change C2` and the like, `cosine C2` and the like, and along the step the `range` of
    the loss, the `change` of the gradient, and the `smoothness`.
    """
    rows = []
    for (recipe, arm, seed), result in results.items():
        if recipe.startswith("shift-") and seed in SEEDS:
            for row in result.get("rows", []):
                low, high = (math.nan if x is None else x for x in row["loss_range"])
                flat = {
                    f"{what} {layer}": value
                    for layer, both in row["shift"].items()
                    for what, value in both.items()
                }
                flat |= {"range": high - low, "change": row["change"]}
                flat |= {"smoothness": row["smoothness"], "step": row["step"]}
                rows.append({"arm": arm, "seed": seed} | flat)
    return pd.DataFrame(rows).astype({"range": float, "change": float, "smoothness": float})


MEASURES = {
    **{f"change {layer}": f"change of {layer}'s gradient" for layer in WATCHED},
    **{f"cosine {layer}": f"cosine, {layer}" for layer in WATCHED},
    "range": "range of the loss",
    "change": "largest change of the gradient",
    "smoothness": "largest change by its distance",
}


def make_shift(frame: pd.DataFrame) -> str:
    """Return each measure by arm: the median of a run's steps, its mean over the seeds, ± 95 %."""
    medians = frame.groupby(["arm", "seed"])[list(MEASURES)].median()
    arms = get_arms(frame)
    cells = {
        f"`{arm}`": [
            format_mean(values.tolist(), (".3g", ".2g")) for _, values in medians.loc[arm].items()
        ]
        for arm in arms
    }
    table = pd.DataFrame(cells, index=list(MEASURES.values()))
    return make_markdown(table.rename_axis("median of the steps"))


def make_shift_differences(frame: pd.DataFrame) -> str:
    """Return how each measure of `bn` differs from that of `gn` and `ln`; bold is what is shown."""
    medians = frame.groupby(["arm", "seed"])[list(MEASURES)].median().unstack("arm")
    others, pairs = ["gn", "ln"], {}
    for name, title in MEASURES.items():
        values = medians[name]  # a row a seed, a column an arm
        pairs[(title,)] = [pd.DataFrame(dict.fromkeys(others, values.bn)), values[others]]
    names = {norm: f"bn - {norm}" for norm in others}
    return format_differences(["median of the steps"], pairs, names)


def draw_shift(frame: pd.DataFrame) -> Figure:
    """Return how much gradients change, by step: four layers' by the shift, and along the step.

    A line is the mean of the seeds, each value the median of five steps measured after another.
    `none` is left out: it stands still.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    names = [f"change {layer}" for layer in WATCHED]
    panels = figure.subplot_mosaic([names, ["range", "range", "smoothness", "smoothness"]])
    for name, axis in panels.items():
        for arm in get_arms(frame[frame.arm != "none"]):
            means = frame[frame.arm == arm].groupby("step")[name].mean()
            line = means.rolling(5, center=True, min_periods=1).median()
            style = STYLES[arm] | {"marker": ""}
            axis.plot(line.index, line, label=LABELS[arm], **style)
        axis.set(title=MEASURES[name], xlabel="step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    panels[names[0]].set_ylabel("share of the gradient's length")
    panels["range"].set_ylabel("loss, highest minus lowest")
    panels["smoothness"].set_ylabel("share of its length, by steps")
    labels = panels["range"].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(labels[1]))
    return figure
