"""Tables and figures of what a normalization is said to do for accuracy, from runs."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise, product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import utils
from experiments import results as records
from experiments.claims import ARMS
from experiments.intervals import format_differences, format_mean, make_markdown
from experiments.results import COMPARED, NAMES, SEEDS

CHANCE, TRAINS = 10.0, 20.0  # % right by guessing, and above which a network has learned something
WITHIN = 2.0  # points below its best at which an arm still counts as good
LABELS = {"none": "None", "he": "None, first weights of He", **{n: NAMES[n] for n in COMPARED}}
STYLES = utils.STYLES | {"he": {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1)), "marker": "v"}}


def get_arms(frame: pd.DataFrame) -> list[str]:
    """Return the arms that the frame has, in the order of ARMS."""
    return [arm for arm in ARMS if arm in set(frame.arm)]


def make_frame(results: records.Results, claim: str) -> pd.DataFrame:
    """Return a row a run of the claim: arm, value (a rate or a batch size), seed, and accuracies.

    `test` is the final accuracy (%) on the test images, nan where the run diverged; `history` has
    one for each epoch. A seed is left out of a value at which it lacks an arm.
    """
    rows = []
    for (recipe, arm, seed), result in results.items():
        if re.match(rf"{claim}-\d", recipe) and seed in SEEDS:
            history = result["history"].get("test_acc", [])
            test = math.nan if "diverged" in result else history[-1]
            value = float(recipe.removeprefix(f"{claim}-"))
            rows.append((arm, value, seed, test, history))
    frame = pd.DataFrame(rows, columns=["arm", "value", "seed", "test", "history"])
    sizes = frame.groupby(["value", "seed"]).arm.transform("size")
    return frame[sizes == frame.arm.nunique()]


# --- Larger learning rates -----------------------------------------------------------------------


def get_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean accuracy (%) by arm and value; a run that diverged counts as a guess."""
    means = frame.fillna({"test": CHANCE}).groupby(["arm", "value"]).test.mean()
    return means.unstack().loc[get_arms(frame)]


def find_range(means: pd.Series) -> list[float]:
    """Return the unbroken range of values around the best that are WITHIN it."""
    values, good = list(means.index), list(means >= means.max() - WITHIN)
    first = last = values.index(means.idxmax())
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(values) and good[last + 1]:
        last += 1
    return values[first : last + 1]


def make_rates(frame: pd.DataFrame) -> str:
    """Return, by arm, the best peak rate, the accuracy there, and which rates work."""
    rows = {}
    for arm, means in get_means(frame).iterrows():
        runs = frame[frame.arm == arm].fillna({"test": CHANCE})
        best = runs[runs.value == means.idxmax()].test
        good = find_range(means) if means.max() > TRAINS else []
        lowest = runs.groupby("value").test.min()
        trained = lowest[lowest > TRAINS].index
        rows[f"`{arm}`"] = {
            "best rate": f"{means.idxmax():g}" if good else "–",
            "test accuracy there": format_mean(best.tolist()),
            f"rates within {WITHIN:g} points": ", ".join(f"{rate:g}" for rate in good) or "–",
            f"highest, all seeds above {TRAINS:g} %": f"{max(trained, default=math.nan):g}",
            "runs diverged": f"{frame[frame.arm == arm].test.isna().sum()} of {len(runs)}",
        }
    return make_markdown(pd.DataFrame.from_dict(rows, "index").rename_axis("arm"))


def make_rate_means(frame: pd.DataFrame) -> str:
    """Return `get_means` as a table."""
    means = get_means(frame).rename("`{}`".format).rename(columns="{:g}".format)
    return make_markdown(means.rename_axis("arm"))


def draw_rates(frame: pd.DataFrame) -> Figure:
    """Return test accuracy by peak rate: an arm's mean as a line, its runs as points.

    A run that diverged is a cross, at the accuracy of a guess.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    draw_values(axis, frame, {arm: (LABELS[arm], STYLES[arm]) for arm in get_arms(frame)})
    axis.set_xlabel("peak learning rate of SGD")
    axis.set_title("After 4 epochs (line: mean, dash: one run, cross: a run that diverged)")
    axis.legend(loc="center left")
    return figure


def draw_values(axis: Axes, frame: pd.DataFrame, arms: Mapping[str, tuple[str, dict]]) -> None:
    """Draw test accuracy by value for the arms, each with its label and style."""
    for arm, (label, style) in arms.items():
        runs, color = frame[frame.arm == arm], style["color"]
        means = runs.fillna({"test": CHANCE}).groupby("value").test.mean()
        axis.plot(means.index, means, label=label, linewidth=1.8, **style)
        axis.scatter(runs.value, runs.test, s=60, color=color, marker="_")
        lost = runs[runs.test.isna()]
        axis.scatter(lost.value, [CHANCE] * len(lost), s=90, color=color, marker="x")
    values = sorted(set(frame.value))
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.set_xticks([], minor=True)
    axis.set_ylabel("accuracy on the test images (%)")
    axis.grid(alpha=0.3)


# --- Faster training -----------------------------------------------------------------------------


def find_crossing(history: Sequence[float], goal: float) -> float:
    """Return after how many epochs an accuracy first reaches `goal`, linear between two epochs.

    Before the first it is that of a guess. Returns nan if it never does.
    """
    errors = [-accuracy for accuracy in (CHANCE, *history)]
    return interpolate(errors, range(len(errors)), -goal)


def interpolate(losses: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return the value where `losses` first falls to `level`, linear between two epochs, or nan."""
    pairs = list(zip(losses, values, strict=True))
    for (before, first), (loss, value) in pairwise(pairs):
        if loss <= level < before:
            return value + (first - value) * (level - loss) / (before - loss)
    return math.nan


def get_histories_at_best(frame: pd.DataFrame) -> dict[str, list[Sequence[float]]]:
    """Return the histories of each arm's runs at its best value, under the names of both."""
    best = get_means(frame).idxmax(axis="columns")
    return {
        f"`{arm}`, {value:g}": frame[(frame.arm == arm) & (frame.value == value)].history.tolist()
        for arm, value in best.items()
    }


def make_speed(histories: Mapping[str, Sequence[Sequence[float]]], goals: Sequence[float]) -> str:
    """Return the epochs to each goal (%): mean and 95 % interval, or how many runs get there."""
    rows = {}
    for name, runs in histories.items():
        crossings = {goal: [find_crossing(run, goal) for run in runs] for goal in goals}
        rows[name] = {f"to {goal} %": format_epochs(crossings[goal]) for goal in goals}
    return make_markdown(pd.DataFrame.from_dict(rows, "index").rename_axis("arm"))


def format_epochs(epochs: Sequence[float]) -> str:
    there = [epoch for epoch in epochs if not math.isnan(epoch)]
    if len(there) < len(epochs):
        return f"{len(there)} of {len(epochs)} runs"
    return format_mean(there)


# --- What it costs to do without -----------------------------------------------------------------

BASES = {"sgd": "onecycle", "muon": "muon"}  # the recipe that a value of `baseline` begins with
WITHOUT = ("he", "none")  # arms without a normalization


def make_search_frame(results: records.Results) -> pd.DataFrame:
    """Return a row a run of `search`: recipe, arm, rate, and accuracy (%) as `validation`.

    A run that diverged counts as a guess.
    """
    rows = []
    for (name, arm, seed), result in results.items():
        if (match := re.fullmatch(r"search-(\w+)-([\d.]+)", name)) and seed in SEEDS:
            last = CHANCE if "diverged" in result else result["history"]["validation_acc"][-1]
            rows.append((BASES[match[1]], arm, float(match[2]), last))
    return pd.DataFrame(rows, columns=["recipe", "arm", "rate", "validation"])


def make_search(frame: pd.DataFrame) -> str:
    """Return accuracy on the held-out images by recipe, rate and arm.

    The best rate of an arm that learned something is in bold.
    """
    means = frame.groupby(["recipe", "rate", "arm"]).validation.mean().unstack()[get_arms(frame)]
    best = (means == means.groupby("recipe").transform("max")) & (means > TRAINS)
    cells = means.map("{:.2f}".format).where(~best, means.map("**{:.2f}**".format))
    cells = cells.rename(lambda name: f"`{name}`" if isinstance(name, str) else f"{name:g}")
    return make_markdown(cells.rename(columns="`{}`".format))


def choose_rates(frame: pd.DataFrame) -> pd.Series:
    """Return the best rate on the held-out images by recipe and arm."""
    means = frame.groupby(["recipe", "arm", "rate"]).validation.mean()
    return means.unstack().idxmax(axis="columns")


def get_baseline(results: records.Results, claims: records.Results) -> records.Results:
    """Return runs of 20 epochs: those of the norms, and those of `baseline` at the best rates.

    Both are under the recipe's name, the arm, and the seed. The best rates are those of `search`.
    """
    rates = choose_rates(make_search_frame(claims))
    runs = {key: run for key, run in results.items() if key[1] in COMPARED}
    for (optimizer, recipe), arm, seed in product(BASES.items(), WITHOUT, SEEDS):
        key = (f"baseline-{optimizer}-{rates[recipe, arm]:g}", arm, seed)
        if key in claims:
            runs[recipe, arm, seed] = claims[key]
    return runs


def get_histories(results: records.Results, recipe: str, arm: str) -> list[dict]:
    """Return the histories of the recipe's and arm's runs, but of those that diverged."""
    return [run["history"] for run in records.pick(results, recipe, arm) if "diverged" not in run]


def make_baseline_frame(runs: records.Results) -> pd.DataFrame:
    """Return a row a run of `get_baseline`: recipe, arm, and final accuracy (%) as `test`.

    It is nan where the run diverged.
    """
    rows = [
        (recipe, arm, math.nan if "diverged" in run else run["history"]["test_acc"][-1])
        for recipe, arm in product(BASES.values(), ARMS)
        for run in records.pick(runs, recipe, arm)
    ]
    return pd.DataFrame(rows, columns=["recipe", "arm", "test"])


def make_baseline(frame: pd.DataFrame) -> str:
    """Return test accuracy by arm and recipe as `format_runs` does, and the number of runs."""
    groups = frame.groupby(["arm", "recipe"]).test
    cells = groups.agg(lambda tests: f"{format_runs(tests)} ({len(tests)})")
    table = cells.unstack().loc[get_arms(frame), list(BASES.values())]
    return make_markdown(table.rename("`{}`".format).rename(columns="`{}`".format))


def format_runs(tests: pd.Series) -> str:
    """Return the mean of the runs that ended and its 95 % interval, and how many diverged."""
    diverged = tests.isna().sum()
    return format_mean(tests.dropna().tolist()) + (f", {diverged} diverged" if diverged else "")


def make_costs(frame: pd.DataFrame) -> str:
    """Return how test accuracy differs between the norms and the arms without one.

    It is of the runs that ended. Bold is what is shown.
    """
    pairs = {
        (f"`{recipe}`", f"{one} - {other}"): [
            frame[(frame.recipe == recipe) & (frame.arm == arm)] for arm in (one, other)
        ]
        for recipe in BASES.values()
        for one, other in [*product(COMPARED, WITHOUT), ("he", "none")]
    }
    return format_differences(["recipe", "difference"], pairs, {"test": "test"})


def draw_epochs(axis: Axes, histories: Sequence[Sequence[float]], label: str, style: dict) -> None:
    """Draw accuracy by epoch: the mean of the runs, and a band from the lowest to the highest."""
    epochs = pd.DataFrame(histories)
    epochs.columns += 1
    axis.plot(
        epochs.columns, epochs.mean(), label=label, **style | {"markersize": 4, "linewidth": 1.8}
    )
    band = (epochs.columns, epochs.min(), epochs.max())
    axis.fill_between(*band, color=style["color"], alpha=0.2, linewidth=0)
    axis.set(xlabel="epoch", xticks=range(0, len(epochs.T) + 1, 5))
    axis.grid(alpha=0.3)


def draw_baseline(runs: records.Results) -> Figure:
    """Return test accuracy by epoch with SGD and with Muon, of all arms, as `draw_epochs` does."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(BASES))
    for axis, recipe in zip(axes, BASES.values(), strict=True):
        for arm in ARMS:
            if histories := get_histories(runs, recipe, arm):
                tests = [history["test_acc"] for history in histories]
                draw_epochs(axis, tests, LABELS[arm], STYLES[arm])
        axis.set(title=f"recipe {recipe}", ylabel="accuracy on the test images (%)")
        axis.legend()
    return figure


# --- Small batches -------------------------------------------------------------------------------


def make_batch_frame(results: records.Results) -> pd.DataFrame:
    """Return `make_frame` of `batches`, and again what `bn` has with statistics computed anew."""
    anew = {
        (recipe, "bn anew", seed): result
        if "diverged" in result
        else {"history": {"test_acc": [result["recomputed_acc"]]}}
        for (recipe, arm, seed), result in results.items()
        if arm == "bn" and recipe.startswith("batches-")
    }
    return make_frame({**results, **anew}, "batches")


def make_batches(frame: pd.DataFrame) -> str:
    """Return test accuracy by arm and batch size: the mean of the seeds and its 95 % interval."""
    frame = frame.fillna({"test": CHANCE})
    table = {
        f"`{arm}`": {
            f"{value:g}": format_mean(part.test.tolist())
            for value, part in frame[frame.arm == arm].groupby("value")
        }
        for arm in BATCH_ARMS
    }
    return make_markdown(pd.DataFrame.from_dict(table, "index").rename_axis("images a batch"))


def make_batch_differences(frame: pd.DataFrame) -> str:
    """Return how test accuracy differs between `bn` and the others, by batch size.

    Bold is what is shown.
    """
    frame = frame.fillna({"test": CHANCE})
    pairs = {
        (f"{size:g}", f"bn - {other}"): [
            frame[(frame.value == size) & (frame.arm == arm)] for arm in ("bn", other)
        ]
        for size in sorted(set(frame.value))
        for other in ("gn", "ln")
    }
    return format_differences(["images a batch", "difference"], pairs, {"test": "test"})


def draw_batches(frame: pd.DataFrame) -> Figure:
    """Return test accuracy by batch size, as `draw_rates` does."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    draw_values(axis, frame, BATCH_ARMS)
    axis.set_xlabel("images a batch")
    axis.set_title(
        "After 5 epochs, the rate in proportion to the batch (line: mean, dash: one run)"
    )
    axis.legend(loc="lower center")
    return figure


BATCH_ARMS = {
    "bn": ("Batch", STYLES["bn"]),
    "bn anew": (
        "Batch, statistics computed anew",
        STYLES["bn"] | {"linestyle": ":", "marker": "x"},
    ),
    "gn": ("Group", STYLES["gn"]),
    "ln": ("Layer", STYLES["ln"]),
}


# --- Regularization ------------------------------------------------------------------------------


def make_equal_loss(
    results: records.Results, recipes: Sequence[str], arms: Iterable[tuple[str, str]]
) -> str:
    """Return how test accuracy (%) at equal training loss differs between these pairs of arms.

    The loss of a recipe is the lowest that all runs of these arms reach. Bold is what is shown.
    """
    arms = list(arms)
    rows = []
    for recipe in recipes:
        by_arm = {arm: get_histories(results, recipe, arm) for arm in chain.from_iterable(arms)}
        level = max(min(run["train_loss"]) for run in chain.from_iterable(by_arm.values()))
        for arm, histories in by_arm.items():
            for history in histories:
                test = interpolate(history["train_loss"], history["test_acc"], level)
                rows.append((f"`{recipe}`", f"{level:.3f}", arm, test))
    frame = pd.DataFrame(rows, columns=["recipe", "training loss", "arm", "test"])
    pairs = {
        (recipe, level, f"{one} - {other}"): [part[part.arm == arm] for arm in (one, other)]
        for (recipe, level), part in frame.groupby(["recipe", "training loss"], sort=False)
        for one, other in arms
    }
    names = ["recipe", "training loss", "difference"]
    return format_differences(names, pairs, {"test": "test accuracy at that loss"})


def draw_losses(results: records.Results, recipes: Sequence[str]) -> Figure:
    """Return test loss by training loss along a run, from the third epoch on: means of the seeds.

    The training loss is that of an epoch's augmented images, while the weights move. An arm that
    learns nothing is left out.
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axis, recipe in zip(
        figure.subplots(1, len(recipes), squeeze=False)[0], recipes, strict=True
    ):
        for arm in ARMS:
            histories = get_histories(results, recipe, arm)
            if all(history["test_acc"][-1] < TRAINS for history in histories):
                continue
            train, test = (
                pd.DataFrame([history[f"{part}_loss"] for history in histories]).mean()[2:]
                for part in ("train", "test")
            )
            axis.plot(train, test, label=LABELS[arm], **STYLES[arm] | {"markersize": 4})
        axis.set(title=f"recipe {recipe}", xlabel="training loss")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.axes[0].set_ylabel("loss on the test images")
    return figure
