"""The comparisons of the pages: those declared before their runs, and those found later."""

import math
from collections.abc import Sequence
from itertools import combinations, product

import pandas as pd

from experiments import frames
from experiments.frames import select
from experiments.results import BARE, COMPARED, COMPARED_RECIPES
from experiments.stats import Comparison

PAIRS = list(combinations(COMPARED, 2))
BN_PAIRS = PAIRS[:2]  # those with `bn`
# Recipes whose steps don't depend on the gradient's size.
SCALE_FREE = ("normalized", "adamw", "muon")


def gather(frame: pd.DataFrame, row: str, column: str = "test") -> pd.Series:
    """Return lists of a column's values, without NaN, indexed by `row` and arm."""
    return frame.dropna(subset=column).groupby([row, "arm"], sort=False)[column].agg(list)


def pair_up(table: str, samples: pd.Series, pairs: Sequence[tuple], family="") -> list[Comparison]:
    """Compare each pair of arms in each row of `samples` (see `gather`) that has both.

    By default each row is its own family.
    """
    found = []
    for row, (one, other) in product(dict.fromkeys(row for row, _ in samples.index), pairs):
        if {(row, one), (row, other)} <= {*samples.index}:
            two = samples[row, one], samples[row, other]
            found.append(Comparison(table, family or row, row, f"{one} - {other}", two))
    return found


def declare_leads(table: str, tests: pd.Series, runs="") -> list[Comparison]:
    """Compare the norms under each recipe, and the lead of `bn` under two recipes.

    `tests` is indexed by recipe and arm; `runs` is appended to the names of rows.
    """
    found = pair_up(table, tests.rename(lambda recipe: recipe + runs, level=0), PAIRS)
    return found + pair_recipes(table, tests, "reference", "muon", runs)


def pair_recipes(table: str, tests: pd.Series, one: str, other: str, runs="") -> list[Comparison]:
    """Compare the leads of `bn` under one recipe with those under the other."""
    found, name = [], f"{one} minus {other}{runs}"
    for pair in BN_PAIRS:
        four = [tests.get((recipe, arm), []) for recipe in (one, other) for arm in pair]
        found.append(Comparison(table, name, name, " - ".join(pair), four, (1, -1, -1, 1)))
    return found


def declare_both(frame: pd.DataFrame) -> list[Comparison]:
    """Compare the norms under `onecycle`, averaged over both precisions."""
    found, onecycle = [], select(frame, claim="", recipe="onecycle")
    keys = list(product(("float32", "bfloat16"), COMPARED))
    tests, name = gather(onecycle, "precision"), "onecycle, both precisions"
    for one, other in PAIRS:
        weights = [((arm == one) - (arm == other)) / 2 for _, arm in keys]
        cell = ("differences", name, name, f"{one} - {other}")
        found.append(Comparison(*cell, [tests.get(key, []) for key in keys], weights, pooled=True))
    return found


def find(frame: pd.DataFrame, compared: pd.DataFrame, both: pd.DataFrame) -> list[Comparison]:
    """Return the comparisons that were not declared; `both` has both sets of runs."""
    tests, both, table = gather(compared, "recipe"), gather(both, "recipe"), "found"
    found = pair_recipes(table, tests, "reference", "onecycle")
    found += pair_recipes(table, tests, "onecycle", "muon")
    found += pair_recipes(table, both, "onecycle", "muon", ", both sets")
    quick = select(frame, claim="", precision="float32", recipe="quick")
    found += pair_up(table, gather(quick, "recipe"), BN_PAIRS)
    losses = compared.history.map(lambda history: history.get("test_loss", [math.nan])[-1])
    muon = compared.assign(loss=losses, row="muon: test loss").query("recipe == 'muon'")
    found += pair_up(table, gather(muon, "row", "loss"), BN_PAIRS)
    batches = frames.get_claim(frame, "batches")
    batches = batches.assign(row=batches.value.map("batches of {:g}".format)).sort_values("value")
    tests, few, many = gather(batches, "row"), "batches of 2", "batches of 64"
    found += pair_up(table, tests[tests.index.isin((many, "batches of 256"), 0)], BN_PAIRS)
    return found + pair_recipes(table, tests, few, many)


def declare(frame: pd.DataFrame) -> list[Comparison]:
    """Return the comparisons declared before their runs, and those of `shift`, which were not."""
    compared = frames.measure_fits(frames.get_compared(frame))
    compared = pd.concat([select(compared, recipe=recipe) for recipe in COMPARED_RECIPES])
    tests = gather(compared, "recipe")
    sets = frames.get_sets(compared)
    found = declare_leads("differences", tests) + declare_both(frame)
    for name in ("first set", "both sets"):
        found += declare_leads("differences", gather(sets[name], "recipe"), f", {name}")
    known = {"muon": tests, "muon, both sets": gather(sets["both sets"], "recipe")}
    for (name, runs), bare in product(known.items(), BARE):
        four = [runs.get(("muon", arm), []) for arm in (*COMPARED, bare)]
        cell = ("costs", name, name, f"mean of the norms - {bare}")
        found.append(Comparison(*cell, four, (1 / 3, 1 / 3, 1 / 3, -1)))
    epochs = gather(select(compared, recipe="onecycle"), "recipe", "epochs")
    found += pair_up("epochs", epochs, [(norm, "he") for norm in COMPARED])
    for column, title in (("clean_gap", "train minus test"), ("at loss", "test at equal loss")):
        named = compared.assign(row=compared.recipe + f": {title}")
        found += pair_up("gaps", gather(named, "row", column), BN_PAIRS)
    batches = frames.get_claim(frame, "batches").sort_values("value")
    few = batches[batches.value < 16]
    small = gather(few.assign(value=few.value.map("{:g}".format)), "value")
    found += pair_up("batch-differences", small, BN_PAIRS, "small")
    shift = gather(frames.get_shift_medians(frame), "measure", "value")
    found += pair_up("shift", shift, BN_PAIRS, "shift")
    found += compare_optimizers(frame) + compare_ghosts(frame) + compare_depths(frame)
    return found + compare_robustness(frame)


def compare_optimizers(frame: pd.DataFrame) -> list[Comparison]:
    """Compare the cost of leaving out the normalization under three optimizers."""
    tests, found = gather(frames.get_compared(frame), "recipe"), []
    cost = {
        recipe: [tests.get((recipe, arm), []) for arm in ("bn", "none")] for recipe in SCALE_FREE
    }
    for recipe in SCALE_FREE[:2]:
        found.append((recipe, "bn - none", cost[recipe], (1, -1)))
    for recipe in SCALE_FREE[:2]:
        row, four = f"{recipe} minus muon", cost[recipe] + cost["muon"]
        found.append((row, "bn - none", four, (1, -1, -1, 1)))
    bare = [cost[recipe][1] for recipe in SCALE_FREE[:2]]
    found.append(("normalized minus adamw", "none", bare, (1, -1)))
    return [Comparison("optimizers", "optimizers", *what) for what in found]


def compare_ghosts(frame: pd.DataFrame) -> list[Comparison]:
    """Compare `bn` using statistics of whole batches with `bn` using those of their parts."""
    tests = gather(frames.get_claim(frame, "ghosts"), "value")
    whole = tests.get((128, "bn"), [])
    parts = {f"{n} images": [whole, tests.get((n, "bn"), [])] for n in (2, 4, 16, 64)}
    cell = ("ghost-differences", "ghosts", "whole batch minus parts of")
    return [Comparison(*cell, column, two) for column, two in parts.items()]


def compare_depths(frame: pd.DataFrame) -> list[Comparison]:
    """Compare `bn` with `none` at each depth, and that difference at 32 and at 8 convolutions."""
    tests = gather(frames.get_claim(frame, "depth").sort_values("value"), "value")
    names = tests.rename("{:g}".format, level=0)
    found = pair_up("depth-differences", names, [("bn", "none")], "depth")
    four = [tests.get((depth, arm), []) for depth in (32, 8) for arm in ("bn", "none")]
    cell = ("depth-differences", "depth", "32 minus 8", "bn - none")
    return [*found, Comparison(*cell, four, (1, -1, -1, 1))]


def compare_robustness(frame: pd.DataFrame) -> list[Comparison]:
    """Compare `bn`, also with recomputed statistics, with `gn` and `ln` on the worst images."""
    rows = frames.get_robustness(frame)
    tests = gather(rows[rows.amount.isin(frames.STRONGEST)], "row")
    pairs = list(product(("bn", "bn recomputed"), ("gn", "ln")))
    return pair_up("robustness-differences", tests, pairs, "robustness")
