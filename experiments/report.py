"""Renew the tables, the figures and the marked numbers of both pages from results/.

    pip install -r experiments/requirements.txt
    python -m experiments.report

It needs CIFAR-10 in the folder CIFAR10_ROOT (default: data/ of the repository).
"""

import argparse
import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import utils
from experiments import stats
from experiments.claims import ARMS, WATCHED
from experiments.results import COMPARED, COMPARED_RECIPES, ROOT, get_data, load_frame
from experiments.stats import format_comparisons, format_mean, make_markdown
from runs import write_whole

PAGES = ROOT / "README.md", ROOT / "experiments" / "README.md"
CHANCE = 10.0  # % right by guessing
COLUMNS = {"reference": "original recipe", "onecycle": "tuned SGD", "muon": "Muon"}
BASES = {"sgd": "onecycle", "muon": "muon"}  # the recipe that a value of `baseline` begins with
WITHOUT = ("he", "none")  # arms without a normalization
PAIRS = list(combinations(COMPARED, 2))
LABELS = utils.LABELS | {"bn recomputed": "Batch, recomputed"}
STYLES = utils.STYLES | {"bn recomputed": {"color": "#56B4E9", "linestyle": ":", "marker": "x"}}

# --- The runs of a table -------------------------------------------------------------------------


def take(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows that have these values in the columns of these names."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def get_arms(frame: pd.DataFrame) -> list[str]:
    """Return the arms of the frame in the order of ARMS, each before its "recomputed" one."""
    known = [name for arm in ARMS for name in (arm, f"{arm} recomputed")]
    return [arm for arm in known if arm in set(frame.arm)]


def get_claim(frame: pd.DataFrame, claim: str) -> pd.DataFrame:
    """Return the runs of a claim by number, but for a seed that lacks an arm at that value."""
    runs = take(frame, claim=claim)
    sizes = runs.groupby(["value", "seed"]).arm.transform("size")
    return runs[sizes == runs.arm.nunique()].assign(value=lambda runs: runs.value.astype(float))


def get_batches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of `batches`, and again those of `bn` with its statistics recomputed."""
    bn = take(frame, claim="batches", arm="bn")
    tests = [result.get("recomputed_acc", math.nan) for result in bn.result]
    return get_claim(pd.concat([frame, bn.assign(arm="bn recomputed", test=tests)]), "batches")


def get_trials(frame: pd.DataFrame, claim: str) -> pd.DataFrame:
    """Return the runs of `search` or `baseline` with the recipe they begin with, and the rate."""
    runs = take(frame, claim=claim).fillna({"validation": CHANCE})  # of one that diverged
    parts = runs.value.str.split("-")
    return runs.assign(recipe=parts.str[0].map(BASES), rate=parts.str[1].astype(float))


def get_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the notebooks' runs in float32, and those of `baseline` at the best rates."""
    means = get_trials(frame, "search").groupby(["recipe", "arm", "rate"]).validation.mean()
    best, baseline = means.unstack().idxmax(axis=1), get_trials(frame, "baseline")
    rates = pd.MultiIndex.from_frame(baseline[["recipe", "arm"]]).map(best)
    runs = take(frame, claim="", precision="float32")
    return pd.concat([runs[runs.arm.isin(COMPARED)], baseline[baseline.rate == rates]])


def tabulate(runs: pd.DataFrame, column: str, cell: str | Callable) -> pd.DataFrame:
    """Return that aggregate of test accuracy (%), a row an arm; none is nan."""
    return runs.groupby(["arm", column]).test.agg(cell).unstack().reindex(get_arms(runs))


def get_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean accuracy (%) by arm and value; a run that diverged counts as a guess."""
    return tabulate(runs.fillna({"test": CHANCE}), "value", "mean")


def get_scales(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row an arm, seed, moment and layer: percentiles of its channels' deviations."""
    rows = [
        (run.arm, run.seed, moment, layer, *np.percentile(deviations, (10, 50, 90)))
        for run in take(frame, claim="scales").itertuples()
        for moment in ("before", "after")
        for layer, deviations in run.result.get(moment, {}).items()  # none where it diverged
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "moment", "layer", "low", "median", "high"])


STEPS = "median of the steps"  # a title
MEASURES = {
    **{f"change {layer}": f"change of {layer}'s gradient" for layer in WATCHED},
    **{f"cosine {layer}": f"cosine, {layer}" for layer in WATCHED},
    "range": "range of the loss",
    "change": "largest change of the gradient",
    "smoothness": "largest change by its distance",
}


def get_shift(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row a measured step of `shift`: arm, seed, step, MEASURES (nan: not finite)."""
    rows = []
    for run in take(frame, claim="shift").itertuples():
        for row in run.result.get("rows", []):
            low, high = (math.nan if x is None else x for x in row["loss_range"])
            flat = {f"{k} {at}": v for at, both in row["shift"].items() for k, v in both.items()}
            rows.append({"arm": run.arm, "seed": run.seed, "range": high - low} | row | flat)
    frame = pd.DataFrame(rows, columns=["arm", "seed", "step", *MEASURES])
    return frame.astype(dict.fromkeys(MEASURES, float))


def get_medians(shift: pd.DataFrame) -> pd.DataFrame:
    """Return a row a measure, arm and seed of `shift`: the median of its steps."""
    medians = shift.rename(columns=MEASURES).groupby(["arm", "seed"])[list(MEASURES.values())]
    return medians.median().melt(ignore_index=False, var_name=STEPS).reset_index()


def interpolate(losses: Sequence[float], values: Sequence[float], level: float) -> float:
    """Return the value where `losses` first is at or below `level`, linear between two, or nan."""
    if losses[0] <= level:
        return values[0]
    for (before, first), (loss, value) in pairwise(zip(losses, values, strict=False)):
        if loss <= level:
            return value + (first - value) * (level - loss) / (before - loss)
    return math.nan


def find_crossing(history: Sequence[float], goal: float) -> float:
    """Return after how many epochs, from a guess on, an accuracy first reaches `goal`, or nan."""
    errors = [-accuracy for accuracy in (CHANCE, *history)]
    return interpolate(errors, range(len(errors)), -goal)


# --- Tables --------------------------------------------------------------------------------------


def format_runs(tests: pd.Series) -> str:
    """Return the mean of the runs that ended and its 95 % interval, and how many diverged."""
    diverged = tests.isna().sum()
    return format_mean(tests) + (f", {diverged} diverged" if diverged else "")


def format_factors(factors: pd.Series) -> str:
    """Return the geometric mean, and in brackets the lowest and the highest, to three digits."""
    mean = np.exp(np.log(factors).mean())
    low, middle, high = (f"{float(f'{x:.3g}'):,g}" for x in (factors.min(), mean, factors.max()))
    return f"{middle} ({low} to {high})".replace("inf", "∞")


def make_rows(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of these cells, a row an arm."""
    return make_markdown(pd.DataFrame.from_dict(rows, "index").rename_axis("arm"))


def quote(cells: pd.DataFrame, title: str) -> str:
    """Return a table with names as code in its index, under `title`, and in its columns."""
    columns = [f"`{name}`" if isinstance(name, str) else f"{name:g}" for name in cells]
    return make_markdown(cells.set_axis(columns, axis=1).rename("`{}`".format).rename_axis(title))


def make_results(runs: pd.DataFrame) -> str:
    """Return the front page's table of final test accuracies."""
    table = tabulate(runs, "recipe", format_runs).reindex([*COMPARED, *WITHOUT])
    table = table.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    return make_markdown(table.rename_axis("normalization"))


def make_spreads(norms: pd.DataFrame) -> str:
    """Return the spread of test accuracy, and the gap to it, by recipe and norm."""
    half, all_of = stats.get_half_width, functools.partial(pd.Series.mean, skipna=False)
    columns = {"seeds": ("seed", "size"), "test mean": ("test", "mean"), "s.d.": ("test", "std")}
    columns |= {"± 95 %": ("test", half), "train minus test": ("clean_gap", all_of)}
    groups = norms.rename(columns={"arm": "norm"}).groupby(["recipe", "norm"])
    return make_markdown(groups.agg(**columns, **{"± 95 % ": ("clean_gap", half)}))


def make_tuning(trials: pd.DataFrame) -> str:
    """Return accuracy on held-out images by trial and norm."""
    groups = trials.assign(trial="`" + trials.recipe + "`").groupby(["trial", "arm"])
    table = groups.validation.mean().unstack().reindex(columns=list(COMPARED))
    table.insert(0, "seeds", groups.size().groupby("trial").max())
    table["mean"] = table[list(COMPARED)].mean(axis=1, skipna=False)
    return make_markdown(table.sort_values("mean", ascending=False, kind="stable"))


def make_speed(runs: pd.DataFrame) -> str:
    """Return the epochs to 70 % by arm and recipe, or how many of the runs that ended get there."""

    def count(epochs: pd.Series) -> str:
        there = epochs.notna().sum()
        return format_mean(epochs) if there == len(epochs) else f"{there} of {len(epochs)} runs"

    fits = measure_fits(runs.dropna(subset="test")).groupby(["arm", "recipe"]).epochs
    recipes = [recipe for recipe in COMPARED_RECIPES if recipe in set(runs.recipe)]
    table = fits.agg(count).unstack().reindex(get_arms(runs))[recipes]
    return quote(table.fillna("–"), "epochs to 70 %")


def make_scales(scales: pd.DataFrame) -> str:
    """Return, by arm, how the scale changes with depth and how unlike a layer's channels are."""
    rows = {f"`{arm}`": {} for arm in get_arms(scales)}
    for (arm, moment), part in scales.groupby(["arm", "moment"], sort=False):
        medians = part.pivot(index="seed", columns="layer", values="median")
        spreads = np.log(part.high / part.low).groupby(part.seed).mean()
        rows[f"`{arm}`"][f"C1 / C10 {moment}"] = format_factors(medians.C1 / medians.C10)
        rows[f"`{arm}`"][f"spread {moment}"] = format_factors(np.exp(spreads))
    return make_rows(rows)


def make_shift(medians: pd.DataFrame) -> str:
    """Return each measure by arm: the median of a run's steps, its mean over the seeds, ± 95 %."""
    groups = medians.groupby([STEPS, "arm"], sort=False).value
    cells = groups.agg(lambda values: format_mean(values, (".3g", ".2g"))).unstack()
    cells = cells.reindex(index=list(MEASURES.values()), columns=get_arms(medians))
    return make_markdown(cells.rename(columns="`{}`".format))


def gather(frame: pd.DataFrame, row: str, column: str = "test") -> pd.Series:
    """Return the values of a column as lists, by those of `row` and by arm."""
    return frame.dropna(subset=column).groupby([row, "arm"], sort=False)[column].agg(list)


def pair_up(samples: pd.Series, pairs: Sequence[tuple[str, str]]) -> dict:
    """Return the comparisons of two arms in each row of what `gather` returns."""
    return {
        (row, f"{one} - {other}"): ([samples[row, one], samples[row, other]], (1, -1))
        for row, (one, other) in product(dict.fromkeys(row for row, _ in samples.index), pairs)
        if {(row, one), (row, other)} <= {*samples.index}
    }


def measure_fits(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with `epochs` to 70 %, and `at loss`: test accuracy at equal training loss.

    That is the highest with which a norm of the recipe ends, in evaluation mode.
    """
    losses = runs.history.map(lambda history: history.get("clean_train_loss", [math.nan]))
    levels = losses.str[-1][runs.arm.isin(COMPARED)].groupby(runs.recipe).max()
    tests = runs.history.map(lambda history: history.get("test_acc", [math.nan]))
    found = map(interpolate, losses, tests, runs.recipe.map(levels))
    return runs.assign(**{"epochs": [find_crossing(t, 70) for t in tests], "at loss": [*found]})


def ask_best(frame: pd.DataFrame, tests: pd.Series) -> dict[str, dict]:
    """Return the families of comparisons that tell which norm is best."""
    recipes = tests.index.get_level_values(0)
    families = {recipe: pair_up(tests[recipes == recipe], PAIRS) for recipe in COMPARED_RECIPES}
    onecycle = take(frame, claim="", recipe="onecycle").groupby(["arm", "precision"]).test.agg(list)
    both, lead = "onecycle, both precisions", "reference minus muon"
    families[both], families[lead] = {}, {}
    strata = onecycle.index.unique("precision").size
    for one, other in PAIRS:
        weights = [((arm == one) - (arm == other)) / strata for arm, _ in onecycle.index]
        families[both][both, f"{one} - {other}"] = (onecycle.tolist(), weights, True)
    for one, other in PAIRS[:2]:
        four = [tests.get((r, a), []) for r in ("reference", "muon") for a in (one, other)]
        families[lead][lead, f"{one} - {other}"] = (four, (1, -1, -1, 1))
    return families


def ask(frame: pd.DataFrame) -> dict[str, dict]:
    """Return the comparisons that were declared, by table and family: see stats.compare."""
    runs, bn_and = measure_fits(get_runs(frame)), PAIRS[:2]
    tests, onecycle = gather(runs, "recipe"), take(runs, recipe="onecycle")
    weights, three = (1 / 3, 1 / 3, 1 / 3, -1), [tests.get(("muon", arm), []) for arm in COMPARED]
    costs = {
        ("muon", f"mean of the norms - {arm}"): ([*three, tests.get(("muon", arm), [])], weights)
        for arm in WITHOUT
    }
    gaps = {}
    for column, title in (("clean_gap", "train minus test"), ("at loss", "test at equal loss")):
        for recipe in COMPARED_RECIPES:
            named = take(runs, recipe=recipe).assign(row=f"{recipe}: {title}")
            gaps[recipe, column] = pair_up(gather(named, "row", column), bn_and)
    sizes = get_batches(frame).sort_values("value")
    few = sizes[sizes.value < 16]
    small = gather(few.assign(value=few.value.map("{:g}".format)), "value")
    shift = gather(get_medians(get_shift(frame)), STEPS, "value")
    against_he = [(norm, "he") for norm in COMPARED]
    return {
        "differences": ask_best(frame, tests),
        "costs": {"costs": costs},
        "epochs": {"epochs": pair_up(gather(onecycle, "recipe", "epochs"), against_he)},
        "gaps": gaps,
        "batch-differences": {"small": pair_up(small, bn_and)},
        "shift-differences": {"shift": pair_up(shift, bn_and)},
    }


def make_equivalence(runs: pd.DataFrame) -> str:
    """Return Holm's p, for two margins (points), of a larger difference of two arms with `muon`."""
    tests = take(runs, recipe="muon").dropna(subset="test").groupby("arm").test.agg(list)
    pairs = list(combinations([arm for arm in (*COMPARED, *WITHOUT) if arm in tests.index], 2))
    table = pd.DataFrame(index=pd.Index([f"{one} - {other}" for one, other in pairs], name="muon"))
    for margin in (1, 0.5):
        ps = [stats.equivalent(tests[one], tests[other], margin) for one, other in pairs]
        table[f"p, within {margin} points"] = [f"{p:.4f}" for p in stats.holm(ps)]
    return make_markdown(table)


def make_images(runs: pd.DataFrame, labels: np.ndarray) -> str:
    """Return what seeds and what test images add to the error of the differences with `muon`."""
    muon, rows, right = take(runs, recipe="muon"), {}, {}
    for arm in COMPARED:
        digits = [r["test_predictions"].encode() for r in take(muon, arm=arm).result]
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


def make_tables(frame: pd.DataFrame, labels: np.ndarray | None = None) -> dict[str, str]:
    """Return all tables by the names of their markers; `images` needs the test images' labels."""
    runs, rates, trials = get_runs(frame), get_claim(frame, "rates"), take(frame, claim="tuning")
    norms = runs[runs.arm.isin(COMPARED)]
    titles = {"batch-differences": "images a batch", "shift-differences": STEPS}
    tables = {
        name: format_comparisons(stats.compare(families), titles.get(name, ""))
        for name, families in ask(frame).items()
    }
    if labels is not None:
        tables["images"] = make_images(runs, labels)
    return tables | {
        "results": make_results(runs),
        "seeds": make_spreads(norms),
        "tuning": make_tuning(trials[trials.arm.isin(COMPARED)]),
        "rates": quote(tabulate(rates, "value", format_runs), "arm"),
        "speed": make_speed(runs),
        "batches": quote(tabulate(get_batches(frame), "value", format_runs), "images a batch"),
        "scales": make_scales(get_scales(frame)),
        "shift": make_shift(get_medians(get_shift(frame))),
        "equivalence": make_equivalence(runs),
    }


# --- Numbers in sentences ------------------------------------------------------------------------


def numbers(frame: pd.DataFrame) -> dict[str, str]:
    """Return the numbers that sentences and notebooks may hold, each by its name.

    `muon.bn` is a mean final test accuracy (%), `muon.bn-gn` and `bn.muon-reference` differences of
    two (points); `batches-2` or `rates-1` can stand for a recipe. `gap` is training minus test
    accuracy with `muon`, `epochs-70` the epochs to 70 % (of runs that get there), `scales` how many
    times smaller the deviation of a channel is in C10 than in C1, `shift` C10's gradient's change.
    """
    claims = {"batches": get_batches(frame), "rates": get_claim(frame, "rates")}
    named = [c.assign(recipe=[f"{name}-{v:g}" for v in c.value]) for name, c in claims.items()]
    runs = get_runs(frame)
    means = pd.concat([runs, *named]).groupby(["recipe", "arm"]).test.mean().unstack()
    known = {f"{recipe}.{arm}": f"{mean:.2f}" for (recipe, arm), mean in means.stack().items()}
    for name, row in [*means.iterrows(), *means.T.iterrows()]:
        for (one, mean), (other, less) in permutations(row.dropna().items(), 2):
            known[f"{name}.{one}-{other}"] = f"{round(mean - less, 1) + 0.0:.1f}"  # no -0.0
    best = get_means(claims["rates"])
    for arm, rate in best.idxmax(axis=1).items():
        at_best = take(claims["rates"], arm=arm, value=rate).dropna(subset="test").history
        epochs = np.mean([find_crossing(history["test_acc"], 60) for history in at_best])
        known[f"epochs-60.rates.{arm}"] = f"{epochs:.1f}"
        known[f"rates-gaps.{arm}"] = f"{best.loc['bn'].max() - best.loc[arm].max():.1f}"
    for (recipe, arm), part in measure_fits(runs.dropna(subset="test")).groupby(["recipe", "arm"]):
        known[f"epochs-70.{recipe}.{arm}"] = f"{part.epochs.mean():.1f}"
        if recipe == "muon":
            known[f"gap.{arm}"] = f"{part.clean_gap.mean():.1f}"
    scales = take(get_scales(frame), moment="before").set_index("layer")
    for arm, part in scales.groupby("arm"):
        factors = np.log(part.loc["C1", "median"].values / part.loc["C10", "median"].values)
        known[f"scales.{arm}"] = f"{float(f'{np.exp(factors.mean()):.3g}'):,g}"
    shift = get_shift(frame).groupby(["arm", "seed"])["change C10"].median()
    for arm, change in shift.groupby("arm").mean().items():
        known[f"shift.{arm}"] = f"{change:.2f}"
    return known


MARKED = re.compile(r"([-+]?[\d.,]*)<!--= (.+?) -->")  # a number, and behind it its name


def find_stale(text: str, known: Mapping[str, str]) -> list[str]:
    """Return which marked numbers `renew` changes, each with its old and new value."""
    pairs = [(name, old, known[name]) for old, name in MARKED.findall(text)]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def renew(text: str, tables: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Return a page with the tables between their markers and the numbers before theirs."""
    for name, table in tables.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(pattern, lambda _, new=table: f"\n{new}\n\n", text, flags=re.DOTALL)
    return MARKED.sub(lambda match: f"{known[match[2]]}<!--= {match[2]} -->", text)


# --- Figures -------------------------------------------------------------------------------------


def draw_accuracies(runs: pd.DataFrame, recipes: Sequence[str]) -> Figure:
    """Return test accuracy by epoch: an arm's mean, and a band from lowest to highest run."""
    figure, lines = Figure(figsize=(9, 4.5), layout="constrained"), {}
    for axis, recipe in zip(figure.subplots(1, len(recipes), sharey=True), recipes, strict=True):
        ended = take(runs, recipe=recipe).dropna(subset="test")
        for arm in get_arms(ended):
            histories, style = take(ended, arm=arm).history, STYLES[arm]
            epochs = pd.DataFrame([history["test_acc"] for history in histories])
            epochs.columns += 1
            (lines[LABELS[arm]],) = axis.plot(epochs.columns, epochs.mean(), **style, markersize=4)
            band = (epochs.columns, epochs.min(), epochs.max())
            axis.fill_between(*band, color=style["color"], alpha=0.2, linewidth=0)
            axis.set_xticks(range(0, len(epochs.T) + 1, 5))
        axis.set(title=COLUMNS[recipe], xlabel="epoch")
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="accuracy on the test images (%)", ylim=(50, None))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines))
    return figure


def draw_values(runs: pd.DataFrame, what: str, title: str, place: str) -> Figure:
    """Return test accuracy by value, with crosses for runs that diverged, at that of a guess."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for arm, means in get_means(runs).iterrows():
        part, color = take(runs, arm=arm), STYLES[arm]["color"]
        axis.plot(means.index, means, label=LABELS[arm], linewidth=1.8, **STYLES[arm])
        axis.scatter(part.value, part.test, s=60, color=color, marker="_")
        lost = part[part.test.isna()]
        axis.scatter(lost.value, [CHANCE] * len(lost), s=90, color=color, marker="x")
    values = sorted(set(runs.value))
    axis.set(xscale="log", xlabel=what, ylabel="accuracy on the test images (%)", title=title)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(loc=place)
    return figure


def draw_scales(scales: pd.DataFrame) -> Figure:
    """Return the channels' deviations by layer: the median, a band from 10th to 90th percentile."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, moment in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        for arm in get_arms(scales):
            layers = take(scales, arm=arm, moment=moment).groupby("layer", sort=False)
            means = layers[["low", "median", "high"]].mean()
            axis.plot(means.index, means["median"], label=LABELS[arm], **STYLES[arm])
            band = (means.index, means.low, means.high)
            axis.fill_between(*band, color=STYLES[arm]["color"], alpha=0.12, linewidth=0)
        axis.set(title=f"{moment} training", xlabel="layer", yscale="log")
        axis.grid(alpha=0.3)
    figure.axes[0].set(ylabel="standard deviation of a channel's output")
    figure.axes[0].set_ylim(bottom=1e-5)  # below is `none` after training, in C10 at 0
    figure.axes[0].legend()
    return figure


def draw_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """Return the figures of many runs, each by its name."""
    runs = get_runs(frame)
    crosses = "After 4 epochs (line: mean, dash: one run, cross: a run that diverged)"
    grown = "After 5 epochs, the rate in proportion to the batch (line: mean, dash: one run)"
    rates = (get_claim(frame, "rates"), "peak learning rate of SGD", crosses)
    return {
        "accuracy": draw_accuracies(runs[runs.arm.isin(COMPARED)], COMPARED_RECIPES),
        "baseline": draw_accuracies(runs, list(BASES.values())),
        "rates": draw_values(*rates, "center left"),
        "batches": draw_values(get_batches(frame), "images a batch", grown, "lower center"),
        "scales": draw_scales(get_scales(frame)),
    }


def main() -> None:
    what = "Renew the tables, figures and marked numbers of both pages from results/."
    argparse.ArgumentParser(description=what).parse_args()  # --help alone
    frame, labels = load_frame(), get_data(utils.get_recipe("muon")).test.tensors[1]
    tables = make_tables(frame, labels.cpu().numpy())
    known, contents = numbers(frame), {}
    for page in (*PAGES, *sorted(ROOT.glob("ERA_*.ipynb"))):
        text = page.read_text(encoding="utf-8")
        for line in find_stale(text, known):
            print(line)
        contents[page] = renew(text, tables, known).encode()
    figures = draw_figures(frame)
    figures["cubes"] = utils.post_cubes()
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        contents[ROOT / "images" / f"{name}.png"] = buffer.getvalue()
    write_whole(contents)


if __name__ == "__main__":
    main()
