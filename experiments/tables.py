"""The tables of both pages, as Markdown, by the names of their markers."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from experiments import frames, stats
from experiments.frames import get_arms, select, tabulate
from experiments.results import COMPARED, COMPARED_RECIPES
from experiments.stats import Comparison
from runs import LABELS, RECIPES

BARE = ("he", "none")  # arms without a normalization
PAIRS = list(combinations(COMPARED, 2))
BN_PAIRS = PAIRS[:2]  # those of `bn`
EPOCH, TEST_EPOCH = 391, 79  # steps: CIFAR-10 in batches of 128
MEDIANS = "median of the steps"
ROWS = {"batch-differences": "images a batch", "shift-differences": MEDIANS}  # titles


def make_markdown(frame: pd.DataFrame) -> str:
    """Return the frame and its index as Markdown, with two decimals, and dashes for NaN."""
    frame = frame.rename(lambda v: f"{LABELS[v]} (`{v}`)" if v in LABELS else v).reset_index()
    align = ["right" if pd.api.types.is_numeric_dtype(t) else "left" for t in frame.dtypes]
    frame = frame.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).replace("nan", "–")
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def quote(cells: pd.DataFrame, title: str) -> str:
    """Return a table with names as code in its columns and in its index, under `title`."""
    columns = [f"`{name}`" if isinstance(name, str) else f"{name:g}" for name in cells]
    return make_markdown(cells.set_axis(columns, axis=1).rename("`{}`".format).rename_axis(title))


def format_mean(values: Iterable[float], places: tuple[str, str] = (".2f", ".2f")) -> str:
    """Return the mean and its 95 % interval, ignoring NaNs; a dash if nothing is left."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    mean = format(sum(values) / len(values), places[0])
    return mean if len(values) == 1 else f"{mean} ± {stats.get_half_width(values):{places[1]}}"


def format_tests(tests: pd.Series) -> str:
    """Return the mean and interval of the runs that finished, and how many diverged."""
    diverged = tests.isna().sum()
    return format_mean(tests) + (f", {diverged} diverged" if diverged else "")


def format_digits(number: float) -> str:
    """Return the number to three significant digits, with commas between thousands."""
    return f"{float(f'{number:.3g}'):,g}".replace("inf", "∞")


def format_factors(factors: pd.Series) -> str:
    """Return the geometric mean, with the lowest and the highest in parentheses."""
    mean = np.exp(np.log(factors).mean())
    low, middle, high = map(format_digits, (factors.min(), mean, factors.max()))
    return f"{middle} ({low} to {high})"


def format_comparisons(answers: pd.DataFrame, title: str) -> str:
    """Return a table of differences and their intervals; significant ones are bold."""
    cells: dict[str, dict[str, str]] = {}
    for row in answers.dropna(subset="mean").itertuples():
        mean = f"**{row.mean:+.2f}**" if row.corrected < 0.05 else f"{row.mean:+.2f}"
        cells.setdefault(row.row, {})[row.column] = f"{mean} ({row.low:+.2f} to {row.high:+.2f})"
    return make_markdown(pd.DataFrame.from_dict(cells, "index").rename_axis(title).fillna("–"))


PUBLISHED = {"bn": (81.10, 78.86), "gn": (80.30, 77.88), "ln": (79.91, 76.94)}  # of one run each


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


def make_spreads(norms: pd.DataFrame) -> str:
    """Return the spread over seeds of test accuracy and of the gap, by recipe and norm."""
    half, all_of = stats.get_half_width, functools.partial(pd.Series.mean, skipna=False)
    columns = {"seeds": ("seed", "size"), "test mean": ("test", "mean"), "s.d.": ("test", "std")}
    columns |= {"± 95 %": ("test", half), "train minus test": ("clean_gap", all_of)}
    groups = norms.rename(columns={"arm": "norm"}).groupby(["recipe", "norm"])
    return make_markdown(groups.agg(**columns, **{"± 95 % ": ("clean_gap", half)}))


def make_tuning(trials: pd.DataFrame) -> str:
    """Return accuracy on held-out images by trial and norm, best mean first."""
    groups = trials.assign(trial="`" + trials.recipe + "`").groupby(["trial", "arm"])
    table = groups.validation.mean().unstack().reindex(columns=list(COMPARED))
    table.insert(0, "seeds", groups.size().groupby("trial").max())
    table["mean"] = table[list(COMPARED)].mean(axis=1, skipna=False)
    return make_markdown(table.sort_values("mean", ascending=False, kind="stable"))


def make_speed(compared: pd.DataFrame) -> str:
    """Return the epochs to 70 % by arm and recipe, or how many runs get there if not all do."""

    def count(epochs: pd.Series) -> str:
        there = epochs.notna().sum()
        return format_mean(epochs) if there == len(epochs) else f"{there} of {len(epochs)} runs"

    fits = frames.measure_fits(compared.dropna(subset="test")).groupby(["arm", "recipe"]).epochs
    recipes = [recipe for recipe in COMPARED_RECIPES if recipe in set(compared.recipe)]
    table = fits.agg(count).unstack().reindex(get_arms(compared))[recipes]
    return quote(table.fillna("–"), "epochs to 70 %")


def make_minutes(frame: pd.DataFrame, speed: Mapping) -> str:
    """Return the minutes to a final accuracy by norm; `speed` is that of `results.load_speed`.

    The textbook loop is charged for the epochs until a run of `reference` is within 0.1 points of
    its last accuracy and for no evaluation, `quick` for all its epochs and two evaluations each.
    """
    frame, quick, rows = select(frame, claim=""), RECIPES["quick"], {}
    ours = {"ours": speed["environment"]["precision"], "ours, float32": "float32"}
    for norm, kinds in speed["steps"].items():
        ms = {kind: times["median"] for kind, times in kinds.items()}
        published = select(frame, recipe="reference", arm=norm, precision="float32")
        tests = [history["test_acc"] for history in published.history]
        ends = [next(i for i, acc in enumerate(t, 1) if acc >= t[-1] - 0.1) for t in tests]
        epochs, textbook = pd.Series(ends, dtype=float).mean(), "textbook, {} workers".format
        usual = epochs * EPOCH * min(ms[textbook(0)], ms[textbook(2)]) / 60_000
        rows[norm] = [f"{epochs:.1f}", f"{usual:.1f}", f"{published.test.mean():.2f}"]
        for kind, precision in ours.items():
            whole, small, test = (ms[kind + k] for k in ("", ", small images", ", evaluation"))
            train = (quick.epochs - quick.small_epochs) * whole + quick.small_epochs * small
            minutes = (EPOCH * train + quick.epochs * 2 * TEST_EPOCH * test) / 60_000
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


def make_shift(medians: pd.DataFrame) -> str:
    """Return each measure of `shift` by arm: the mean over seeds of the runs' medians, ± 95 %."""
    groups = medians.groupby(["measure", "arm"], sort=False).value
    cells = groups.agg(lambda values: format_mean(values, (".3g", ".2g"))).unstack()
    cells = cells.reindex(index=list(frames.MEASURES.values()), columns=get_arms(medians))
    return make_markdown(cells.rename(columns="`{}`".format).rename_axis(MEDIANS))


def make_equivalence(compared: pd.DataFrame) -> str:
    """Return Holm's p of a difference beyond each of two margins (points), by pairs of `muon`."""
    tests = select(compared, recipe="muon").dropna(subset="test").groupby("arm").test.agg(list)
    pairs = list(combinations([arm for arm in (*COMPARED, *BARE) if arm in tests.index], 2))
    table = pd.DataFrame(index=pd.Index([f"{one} - {other}" for one, other in pairs], name="muon"))
    for margin in (1, 0.5):
        ps = [stats.equivalent(tests[one], tests[other], margin) for one, other in pairs]
        table[f"p, within {margin} points"] = [f"{p:.4f}" for p in stats.holm(ps)]
    return make_markdown(table)


def make_images(compared: pd.DataFrame, labels: np.ndarray) -> str:
    """Return what seeds and test images add to the error of `muon`'s differences."""
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


def gather(frame: pd.DataFrame, row: str, column: str = "test") -> pd.Series:
    """Return the values of a column as lists, by the values of `row` and by arm."""
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


def declare_best(frame: pd.DataFrame, tests: pd.Series) -> list[Comparison]:
    """Return the comparisons that tell which norm is best; `tests` are by recipe and arm."""
    found = pair_up("differences", tests, PAIRS)
    declared = functools.partial(Comparison, "differences")
    onecycle = gather(select(frame, claim="", recipe="onecycle"), "precision")
    keys = list(product(("float32", "bfloat16"), COMPARED))
    samples, name = [onecycle.get(key, []) for key in keys], "onecycle, both precisions"
    for one, other in PAIRS:
        weights = [((arm == one) - (arm == other)) / 2 for _, arm in keys]
        found.append(declared(name, name, f"{one} - {other}", samples, weights, pooled=True))
    name = "reference minus muon"
    for one, other in BN_PAIRS:
        four = [tests.get((r, arm), []) for r in ("reference", "muon") for arm in (one, other)]
        found.append(declared(name, name, f"{one} - {other}", four, (1, -1, -1, 1)))
    return found


def declare(frame: pd.DataFrame) -> list[Comparison]:
    """Return all comparisons, as declared before the runs."""
    compared = frames.measure_fits(frames.get_compared(frame))
    compared = pd.concat([select(compared, recipe=recipe) for recipe in COMPARED_RECIPES])
    tests = gather(compared, "recipe")
    found = declare_best(frame, tests)
    for bare in BARE:
        four = [tests.get(("muon", arm), []) for arm in (*COMPARED, bare)]
        cell = ("costs", "muon", f"mean of the norms - {bare}")
        found.append(Comparison("costs", *cell, four, (1 / 3, 1 / 3, 1 / 3, -1)))
    epochs = gather(select(compared, recipe="onecycle"), "recipe", "epochs")
    found += pair_up("epochs", epochs, [(norm, "he") for norm in COMPARED])
    for column, title in (("clean_gap", "train minus test"), ("at loss", "test at equal loss")):
        named = compared.assign(row=compared.recipe + f": {title}")
        found += pair_up("gaps", gather(named, "row", column), BN_PAIRS)
    batches = frames.get_batches(frame).sort_values("value")
    few = batches[batches.value < 16]
    small = gather(few.assign(value=few.value.map("{:g}".format)), "value")
    found += pair_up("batch-differences", small, BN_PAIRS, "small")
    shift = gather(frames.get_shift_medians(frame), "measure", "value")
    return found + pair_up("shift-differences", shift, BN_PAIRS, "shift")


def make_tables(frame: pd.DataFrame, labels=None, speed=None) -> dict[str, str]:
    """Return all tables by name.

    `images` needs the labels of the test images, `minutes` a measured speed: else they are absent.
    """
    compared, trials = frames.get_compared(frame), select(frame, claim="tuning")
    rates = tabulate(frames.get_claim(frame, "rates"), "value", format_tests)
    batches = tabulate(frames.get_batches(frame), "value", format_tests)
    tables = {
        name: format_comparisons(answers, ROWS.get(name, ""))
        for name, answers in stats.answer(declare(frame)).groupby("table")
    }
    if labels is not None:
        tables["images"] = make_images(compared, labels)
    if speed is not None:
        tables["minutes"] = make_minutes(frame, speed)
    return tables | {
        "results": make_results(compared),
        "accuracies": make_accuracies(compared),
        "seeds": make_spreads(compared[compared.arm.isin(COMPARED)]),
        "tuning": make_tuning(trials[trials.arm.isin(COMPARED)]),
        "rates": quote(rates, "arm"),
        "speed": make_speed(compared),
        "batches": quote(batches, "images a batch"),
        "scales": make_scales(frames.get_scales(frame)),
        "shift": make_shift(frames.get_shift_medians(frame)),
        "equivalence": make_equivalence(compared),
    }
