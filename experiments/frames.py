"""Select and summarize runs for tables and figures; frames come from `results.load_frame`."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from experiments import robustness
from experiments.claims import ARMS, WATCHED
from experiments.results import COMPARED, ROOT

CHANCE = 10.0  # accuracy of guessing, in percent
FIRST = ROOT / "results" / "first-set.csv"  # accuracies of the runs that were replaced later
RECIPE_TITLES = {
    "reference": "original recipe",
    "onecycle": "tuned SGD",
    "adamw": "AdamW",
    "normalized": "normalized steps",
    "muon": "Muon",
}
STRONGEST = tuple(amounts[-1] for amounts in robustness.AMOUNTS.values())
MEASURES = {  # what `shift` measures, with names for tables
    **{f"change {layer}": f"change of {layer}'s gradient" for layer in WATCHED},
    **{f"cosine {layer}": f"cosine, {layer}" for layer in WATCHED},
    "range": "range of the loss",
    "change": "largest change of the gradient",
    "smoothness": "largest change of the gradient by step length",
}


def select(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows that have the wanted value in each named column."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def get_arms(frame: pd.DataFrame) -> list[str]:
    """Return the frame's arms in the order of ARMS, each followed by its "recomputed" variant."""
    known = [name for arm in ARMS for name in (arm, f"{arm} recomputed")]
    return [arm for arm in known if arm in set(frame.arm)]


def get_claim(frame: pd.DataFrame, claim: str) -> pd.DataFrame:
    """Return a claim's runs with numeric `value`, for `depth` the number of 3x3 convolutions.

    Runs of `bn` that were also tested with recomputed statistics appear again as `bn recomputed`.
    """
    runs = select(frame, claim=claim)
    runs = runs.assign(value=runs.value.astype(float) * (8 if claim == "depth" else 1))
    again = select(runs, arm="bn")
    again = again.assign(arm="bn recomputed", test=again.result.str["recomputed_acc"])
    return pd.concat([runs, again]) if again.test.notna().any() else runs


def get_robustness(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per evaluation in `robustness`; `test` is accuracy (%), `row` a name."""
    rows = []
    for run in select(frame, claim="robustness").itertuples():
        for row in run.result.get("rows", []):
            arm = f"{run.arm} recomputed" if row["recomputed"] else run.arm
            name = f"{row['corruption']} {row['amount']:g}" if row["amount"] else "unchanged"
            rows.append({"arm": arm, "seed": run.seed, "row": name, "test": row["test_acc"]} | row)
    columns = ["arm", "seed", "row", "test", "corruption", "amount", "test_loss", "ece"]
    return pd.DataFrame(rows, columns=columns)


def get_trials(frame: pd.DataFrame, claim: str) -> pd.DataFrame:
    """Return the runs of `search`, `baseline` or `optimizers`, named by optimizer, with their rate.

    SGD is `onecycle`. A diverged trial has a validation accuracy of CHANCE.
    """
    trials = select(frame, claim=claim).fillna({"validation": CHANCE})
    recipes = trials.result.str["recipe"]
    names = recipes.str["optimizer"].replace("sgd", "onecycle")
    return trials.assign(recipe=names, rate=recipes.str["lr"])


def get_compared(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the notebooks' runs in float32, and those of `baseline` and `optimizers`.

    Of the latter, only those at the best rate in `search`; `gn` uses the rate of `bn`.
    """
    means = get_trials(frame, "search").groupby(["recipe", "arm", "rate"]).validation.mean()
    best = means.unstack().idxmax(axis=1)
    others = pd.concat([get_trials(frame, claim) for claim in ("baseline", "optimizers")])
    pairs = pd.MultiIndex.from_arrays([others.recipe, others.arm.replace({"gn": "bn"})])
    norms = select(frame, claim="", precision="float32")
    return pd.concat([norms[norms.arm.isin(COMPARED)], others[others.rate == pairs.map(best)]])


def get_sets(compared: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the first set of runs, the second (the compared ones), and both, by name.

    The first has only recipe, arm, seed and test accuracy (nan if the run diverged).
    """
    first = pd.read_csv(FIRST)
    return {"first set": first, "second set": compared, "both sets": pd.concat([first, compared])}


def tabulate(frame: pd.DataFrame, column: str, cell: str | Callable) -> pd.DataFrame:
    """Aggregate test accuracy by `cell`: one row per arm, one column per value of `column`."""
    return frame.groupby(["arm", column]).test.agg(cell).unstack().reindex(get_arms(frame))


def get_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean test accuracy (%) by arm and value; a diverged run counts as CHANCE."""
    return tabulate(frame.fillna({"test": CHANCE}), "value", "mean")


def get_scales(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the 10th (low), 50th (median) and 90th (high) percentile of channels' deviations.

    One row per (arm, seed, moment, layer); the moment is "before" or "after" training.
    """
    rows = [
        (run.arm, run.seed, moment, layer, *np.percentile(deviations, (10, 50, 90)))
        for run in select(frame, claim="scales").itertuples()
        for moment in ("before", "after")
        for layer, deviations in run.result.get(moment, {}).items()  # empty if it diverged
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "moment", "layer", "low", "median", "high"])


def get_shift_medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return medians over the steps of each run of `shift`: one row per (arm, seed, measure).

    Steps at which a measure was not finite do not count.
    """
    rows = []
    for run in select(frame, claim="shift").itertuples():
        for row in run.result.get("rows", []):
            low, high = (math.nan if x is None else x for x in row["loss_range"])
            flat = {f"{k} {at}": v for at, both in row["shift"].items() for k, v in both.items()}
            rows.append({"arm": run.arm, "seed": run.seed, "range": high - low} | row | flat)
    steps = pd.DataFrame(rows, columns=["arm", "seed", *MEASURES]).rename(columns=MEASURES)
    steps = steps.astype(dict.fromkeys(MEASURES.values(), float))
    medians = steps.groupby(["arm", "seed"]).median()
    return medians.melt(ignore_index=False, var_name="measure").reset_index()


def interpolate(losses: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return the value at which the losses first reach `level` from above, or NaN if never.

    Interpolates linearly; `values` may be longer than `losses`.
    """
    if losses[0] <= level:
        return values[0]
    for (before, first), (loss, value) in pairwise(zip(losses, values, strict=False)):
        if loss <= level:
            return value + (first - value) * (level - loss) / (before - loss)
    return math.nan


def find_crossing(history: Sequence[float], goal: float) -> float:
    """Return the epochs until accuracy first reaches `goal` (%), from CHANCE on, or NaN."""
    errors = [-accuracy for accuracy in (CHANCE, *history)]
    return interpolate(errors, range(len(errors)), -goal)


def measure_fits(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `epochs` to 70 % test accuracy and `at loss`, test accuracy at equal training loss.

    That loss, in evaluation mode, is the highest final one of the recipe's runs with a norm.
    """
    losses = frame.history.map(lambda history: history.get("clean_train_loss", [math.nan]))
    levels = losses.str[-1][frame.arm.isin(COMPARED)].groupby(frame.recipe).max()
    tests = frame.history.map(lambda history: history.get("test_acc", [math.nan]))
    found = map(interpolate, losses, tests, frame.recipe.map(levels))
    return frame.assign(**{"epochs": [find_crossing(t, 70) for t in tests], "at loss": [*found]})
