"""The tables of the pages, as Markdown, by the names of their markers."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from experiments import comparisons, frames, stats
from experiments.comparisons import PAIRS
from experiments.frames import get_arms, select, tabulate
from experiments.results import BARE, COMPARED, COMPARED_RECIPES
from runs import LABELS, RECIPES, Recipe

EPOCH, TEST_EPOCH = 391, 79  # steps: CIFAR-10 in batches of 128
MEDIANS = "median of the steps"
SHOWN = [f"change {layer}" for layer in ("C5", "C8", "C10")] + ["smoothness"]  # of MEASURES
TITLES = {  # of tables, by claim or family
    "rates": "arm",
    "batches": "images per batch",
    "batch-differences": "images per batch",
    "ghosts": "images per part",
    "depth": "3x3 convolutions",
    "depth-differences": "3x3 convolutions",
}
TRAINED, COLLAPSED = 20.0, 10.0  # in percent, and in points: see `format_tests`
EQUIVALENT = 0.5  # the smaller margin, in points


def make_markdown(frame: pd.DataFrame) -> str:
    """Return the frame and its index as Markdown, with two decimals, and dashes for NaN."""
    frame = frame.rename(lambda v: f"{LABELS[v]} (`{v}`)" if v in LABELS else v).reset_index()
    align = ["right" if pd.api.types.is_numeric_dtype(t) else "left" for t in frame.dtypes]
    frame = frame.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).replace("nan", "–")
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def quote(cells: pd.DataFrame, title: str) -> str:
    """Return a table with the names of columns and rows as code; `title` heads the rows."""
    columns = [f"`{name}`" if isinstance(name, str) else f"{name:g}" for name in cells]
    return make_markdown(cells.set_axis(columns, axis=1).rename("`{}`".format).rename_axis(title))


def format_mean(values: Iterable[float], places: tuple[str, str] = (".2f", ".2f")) -> str:
    """Return the mean and its 95 % interval, ignoring NaNs; a dash if nothing is left."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    mean = format(sum(values) / len(values), places[0])
    _, low, high, _ = stats.contrast([values], [1])
    return mean if len(values) == 1 else f"{mean} ± {(high - low) / 2:{places[1]}}"


def format_tests(tests: pd.Series) -> str:
    """Return the mean and its interval; if a run did not train, how many did, and the median.

    A run trained if it ended above TRAINED, and at most COLLAPSED below the median of all.
    """
    ends, diverged = tests.fillna(frames.CHANCE), tests.isna().sum()
    trained = ((ends > TRAINED) & (ends >= ends.median() - COLLAPSED)).sum()
    if trained == len(tests):
        return format_mean(tests)
    words = [f"{trained} of {len(tests)} trained"]
    words += [f"median {ends.median():.1f}"] * bool(trained)
    return ", ".join(words + [f"{diverged} diverged"] * bool(diverged))


def format_digits(number: float) -> str:
    """Return the number to three significant digits, with commas between thousands."""
    return f"{float(f'{number:.3g}'):,g}".replace("inf", "∞")


def format_factors(factors: pd.Series) -> str:
    """Return the geometric mean, with the lowest and the highest in parentheses."""
    mean = np.exp(np.log(factors).mean())
    low, middle, high = map(format_digits, (factors.min(), mean, factors.max()))
    return f"{middle} ({low} to {high})"


def format_difference(row) -> str:
    """Return a difference and its interval; a significant one is bold."""
    mean = f"**{row.mean:+.2f}**" if row.corrected < 0.05 else f"{row.mean:+.2f}"
    return f"{mean} ({row.low:+.2f} to {row.high:+.2f})"


def format_found(row) -> str:
    """Return a difference that was not declared, with its interval and uncorrected p."""
    digits = "+.2f" if abs(row.mean) > 0.1 else "+.3f"
    mean, low, high = (format(value, digits) for value in (row.mean, row.low, row.high))
    return f"{mean} ({low} to {high}), p {row.p:.2g}"


def format_comparisons(answers: pd.DataFrame, title: str, write=format_difference) -> str:
    """Return a table of differences, each formatted by `write`."""
    cells: dict[str, dict[str, str]] = {}
    for row in answers.dropna(subset="mean").itertuples():
        cells.setdefault(row.row, {})[row.column] = write(row)
    return make_markdown(pd.DataFrame.from_dict(cells, "index").rename_axis(title).fillna("–"))


PUBLISHED = {"bn": (81.10, 78.86), "gn": (80.30, 77.88), "ln": (79.91, 76.94)}  # one run each


def make_results(compared: pd.DataFrame) -> str:
    """Return the front page's table of final accuracies, on training and on test images."""
    cells = {}
    for recipe in ("reference", "muon"):
        for column, part in (("clean", "training"), ("test", "test")):
            groups = select(compared, recipe=recipe).groupby("arm")[column]
            cells[f"{frames.RECIPE_TITLES[recipe]}: {part}"] = groups.agg(format_mean)
    for place, part in enumerate(("training", "test")):
        cells[f"published: {part}"] = {arm: pair[place] for arm, pair in PUBLISHED.items()}
    return make_markdown(pd.DataFrame(cells).reindex(COMPARED).rename_axis("normalization"))


def make_accuracies(compared: pd.DataFrame) -> str:
    """Return the final test accuracies of all arms, by recipe."""
    table = tabulate(compared, "recipe", format_tests).reindex([*COMPARED, *BARE])
    table = table.reindex(columns=list(frames.RECIPE_TITLES)).rename(columns=frames.RECIPE_TITLES)
    return make_markdown(table.rename_axis("normalization"))


def make_tuning(trials: pd.DataFrame) -> str:
    """Return accuracy on held-out images by trial and norm, the best mean first."""
    groups = trials.assign(trial="`" + trials.recipe + "`").groupby(["trial", "arm"])
    table = groups.validation.mean().unstack().reindex(columns=list(COMPARED))
    table.insert(0, "seeds", groups.size().groupby("trial").max())
    table["mean"] = table[list(COMPARED)].mean(axis=1, skipna=False)
    return make_markdown(table.sort_values("mean", ascending=False, kind="stable"))


def make_speed(compared: pd.DataFrame) -> str:
    """Return the epochs to 70 % by arm and recipe; if not all runs get there, how many do."""

    def count(epochs: pd.Series) -> str:
        there = epochs.notna().sum()
        return format_mean(epochs) if there == len(epochs) else f"{there} of {len(epochs)} runs"

    fits = frames.measure_fits(compared).groupby(["arm", "recipe"]).epochs
    recipes = [recipe for recipe in COMPARED_RECIPES if recipe in set(compared.recipe)]
    table = fits.agg(count).unstack().reindex(get_arms(compared))[recipes]
    return quote(table.fillna("–"), "epochs to 70 %")


def get_minutes(steps: Mapping, recipe: Recipe, kind: str = "ours") -> float:
    """Return the minutes of the recipe's epochs, each with two evaluations of 10,000 images.

    `steps` has the milliseconds per step of one norm, by kind of loop: see `results.load_speed`.
    """
    whole, small, test = (
        steps[kind + what]["median"] for what in ("", ", small images", ", evaluation")
    )
    train = (recipe.epochs - recipe.small_epochs) * whole + recipe.small_epochs * small
    return (EPOCH * train + recipe.epochs * 2 * TEST_EPOCH * test) / 60_000


def make_minutes(frame: pd.DataFrame, speed: Mapping) -> str:
    """Return the minutes to a final accuracy by norm; `speed` is from `results.load_speed`.

    For the textbook loop these are the epochs until a run of `reference` first comes within 0.1
    points of its last accuracy, without evaluation. For `quick` they are all epochs, with two
    evaluations each.
    """
    frame, rows = select(frame, claim=""), {}
    ours = {"ours": speed["environment"]["precision"], "ours, float32": "float32"}
    for norm, steps in speed["steps"].items():
        published = select(frame, recipe="reference", arm=norm, precision="float32")
        tests = [history["test_acc"] for history in published.history]
        ends = [next(i for i, acc in enumerate(t, 1) if acc >= t[-1] - 0.1) for t in tests]
        epochs = pd.Series(ends, dtype=float).mean()
        textbook = min(steps[f"textbook, {workers} workers"]["median"] for workers in (0, 2))
        usual = epochs * EPOCH * textbook / 60_000
        rows[norm] = [f"{epochs:.1f}", f"{usual:.1f}", f"{published.test.mean():.2f}"]
        for kind, precision in ours.items():
            minutes = get_minutes(steps, RECIPES["quick"], kind)
            accuracy = select(frame, recipe="quick", arm=norm, precision=precision).test.mean()
            rows[norm] += [f"{minutes:.1f}", f"{usual / minutes:.1f}", f"{accuracy:.2f}"]
    columns = ["`reference`: epochs", "textbook (min)", "accuracy (%)"]
    for precision in ours.values():
        columns += [f"`quick`, {precision} (min)", "ratio", "accuracy (%)"]
    return make_markdown(pd.DataFrame.from_dict(rows, "index", None, columns).rename_axis("norm"))


def make_scales(scales: pd.DataFrame) -> str:
    """Return by arm how the scale changes with depth and how much a layer's channels differ."""
    rows = {f"`{arm}`": {} for arm in get_arms(scales)}
    for (arm, moment), part in scales.groupby(["arm", "moment"], sort=False):
        medians = part.pivot(index="seed", columns="layer", values="median")
        spreads = np.log(part.high / part.low).groupby(part.seed).mean()
        rows[f"`{arm}`"][f"C1 / C10 {moment}"] = format_factors(medians.C1 / medians.C10)
        rows[f"`{arm}`"][f"spread {moment}"] = format_factors(np.exp(spreads))
    return make_markdown(pd.DataFrame.from_dict(rows, "index").rename_axis("arm"))


def make_shift(medians: pd.DataFrame, answers: pd.DataFrame) -> str:
    """Return measures of `shift` by arm: the mean over seeds of a run's median, ± 95 %."""
    groups = medians.groupby(["measure", "arm"], sort=False).value
    cells = groups.agg(lambda values: format_mean(values, (".3g", ".2g"))).unstack()
    cells = cells.reindex(columns=get_arms(medians)).rename(columns="`{}`".format)
    pair = select(answers.dropna(subset="mean"), column="bn - gn").set_index("row")
    cells["bn - gn"] = pd.Series({row.Index: format_difference(row) for row in pair.itertuples()})
    shown = cells.reindex([frames.MEASURES[key] for key in SHOWN]).fillna("–")
    return make_markdown(shown.rename_axis(MEDIANS))


def make_robustness(rows: pd.DataFrame) -> str:
    """Return accuracy (%), loss and calibration error (%) by arm, on clean and worst images."""
    hard, cells = rows[rows.amount.isin((0, *frames.STRONGEST))], {}
    for (row, arm), part in hard.groupby(["row", "arm"], sort=False):
        accuracy, loss, error = format_mean(part.test), part.test_loss.mean(), part.ece.mean()
        cells.setdefault(f"`{arm}`", {})[row] = f"{accuracy} / {loss:.2f} / {error:.1f}"
    return make_markdown(pd.DataFrame(cells).rename_axis("images"))


def make_equivalence(sets: Mapping[str, pd.DataFrame]) -> str:
    """Return the 90 % intervals of differences between arms of `muon`, by set of runs.

    Bold: equivalent within EQUIVALENT by two one-sided tests, corrected by Holm over all pairs.
    """
    columns = {}
    for name, runs in sets.items():
        tests = select(runs, recipe="muon").dropna(subset="test").groupby("arm").test.agg(list)
        arms = [arm for arm in (*COMPARED, *BARE) if len(tests.get(arm, ())) > 1]
        samples = {f"{a} - {b}": (tests[a], tests[b]) for a, b in combinations(arms, 2)}
        ps = stats.holm([stats.equivalent(*two, EQUIVALENT) for two in samples.values()])
        columns[name] = {}
        for (pair, two), p in zip(samples.items(), ps, strict=True):
            low, high = ttest_ind(*two, equal_var=False).confidence_interval(0.9)
            cell = f"{low:+.2f} to {high:+.2f}"
            columns[name][pair] = f"**{cell}**" if p < 0.05 else cell
    return make_markdown(pd.DataFrame(columns, dtype=object).fillna("–").rename_axis("muon"))


def make_images(compared: pd.DataFrame, labels: np.ndarray) -> str:
    """Return the error that seeds and test images add to differences between arms of `muon`."""
    muon, rows, right = select(compared, recipe="muon"), {}, {}
    for arm in COMPARED:
        digits = [r["test_predictions"].encode() for r in select(muon, arm=arm).result]
        hits = [np.frombuffer(text, np.uint8) - ord("0") == labels for text in digits]
        right[arm] = np.array(hits)
    for one, other in PAIRS:
        ways = ((True, True), (True, False), (False, True))
        both, *alone = (stats.resample(right[one], right[other], *way) for way in ways)
        low, high = np.percentile(both, (2.5, 97.5))
        deviations = [f"{differences.std():.2f}" for differences in alone]
        rows[f"{one} - {other}"] = [f"{low:+.2f} to {high:+.2f}", *deviations]
    columns = ["95 %, seeds and images", "s.d. by seeds", "by images"]
    return make_markdown(pd.DataFrame.from_dict(rows, "index", None, columns).rename_axis("muon"))


def make_tables(frame: pd.DataFrame, labels=None, speed=None) -> dict[str, str]:
    """Return all tables by name.

    A table without runs is left out, as is `images` without the labels of the test images, and
    `minutes` without a measured speed.
    """
    compared, trials = frames.get_compared(frame), select(frame, claim="tuning")
    sets, answers = frames.get_sets(compared), stats.answer(comparisons.declare(frame))
    found = stats.answer(comparisons.find(frame, compared, sets["both sets"]))
    tables = {
        name: format_comparisons(part, TITLES.get(name, ""))
        for name, part in answers.groupby("table")
    }
    tables["found"] = format_comparisons(found, "", format_found)
    for claim in ("rates", "batches", "ghosts", "depth"):
        cells = tabulate(frames.get_claim(frame, claim), "value", format_tests)
        tables[claim] = quote(cells, TITLES[claim])
    if labels is not None:
        tables["images"] = make_images(compared, labels)
    if speed is not None:
        tables["minutes"] = make_minutes(frame, speed)
    tables |= {
        "results": make_results(compared),
        "accuracies": make_accuracies(compared),
        "tuning": make_tuning(trials[trials.arm.isin(COMPARED)]),
        "speed": make_speed(compared),
        "robustness": make_robustness(frames.get_robustness(frame)),
        "scales": make_scales(frames.get_scales(frame)),
        "shift": make_shift(frames.get_shift_medians(frame), select(answers, table="shift")),
        "equivalence": make_equivalence(sets),
    }
    return {name: table for name, table in tables.items() if table.count("\n") > 1}
