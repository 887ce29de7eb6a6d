"""Statistics over the runs in results/: renew both pages' tables and figures from them.

    pip install -r experiments/requirements.txt
    python -m experiments.evidence

It needs CIFAR-10 in the folder CIFAR10_ROOT (default: data/ of the repository).
"""

import argparse
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

import utils
from cifar10 import Data
from experiments import internals, reasons
from experiments import results as records
from experiments.claims import ARMS, CLAIMS
from experiments.claims import is_done as is_claimed
from experiments.compare import draw as draw_comparison
from experiments.compare import predict
from experiments.intervals import format_differences, get_half_width, make_markdown, mcnemar
from experiments.results import COMPARED, NAMES, RECIPES, ROOT, SEEDS, SHOWN, Results
from models import Session8Net, get_norm
from runs import write_whole

PUBLISHED = {"bn": 78.86, "gn": 77.88, "ln": 76.94}  # test accuracy (%)


def make_frame(results: Results) -> pd.DataFrame:
    """Return a row a run: recipe, norm, seed, and final accuracies (%), never the best epoch's.

    `gap` is train minus test, in points; `clean` is the accuracy on the training images as they
    are, nan where a run has none, and `clean_gap` that minus test. Norms that are not COMPARED, and
    seeds that are not SEEDS, are left out.
    """
    rows = []
    for (recipe, norm, seed), run in results.items():
        if seed in SEEDS and norm in COMPARED:
            last = {k: v[-1] for k, v in run["history"].items() if k.endswith("_acc")}
            last["clean"] = run.get("clean_train_acc", math.nan)
            rows.append({"recipe": recipe, "norm": norm, "seed": seed} | last)
    frame = pd.DataFrame(rows).rename(columns=lambda name: name.removesuffix("_acc"))
    if "test" not in frame:
        return frame
    return frame.assign(gap=frame.train - frame.test, clean_gap=frame.clean - frame.test)


def get_accuracies(results: Results) -> dict[str, list[list[float]]]:
    """Return the test accuracies (%) by epoch of each recipe's and arm's runs, under a name.

    A run that diverged is left out.
    """
    histories = {
        f"`{recipe}`, `{arm}`": [
            history["test_acc"] for history in reasons.get_histories(results, recipe, arm)
        ]
        for recipe, arm in product(RECIPES, ARMS)
    }
    return {name: runs for name, runs in histories.items() if runs}


def get_hits(result: dict, labels: Sequence[int]) -> list[bool]:
    """Return which test images the run's final network has right."""
    digits = result["test_predictions"]
    return [int(digit) == label for digit, label in zip(digits, labels, strict=True)]


# --- Tables --------------------------------------------------------------------------------------


def make_table(frame: pd.DataFrame, baseline: pd.DataFrame) -> str:
    """Return the final test accuracy, mean and 95 % interval, beside what was published.

    The arms without a normalization are those of `reasons.make_baseline_frame`.
    """
    without = baseline[baseline.arm.isin(reasons.WITHOUT)].rename(columns={"arm": "norm"})
    groups = pd.concat([frame, without]).groupby(["recipe", "norm"])
    means = groups.test.agg(reasons.format_runs)
    table = pd.DataFrame({"published": {norm: PUBLISHED[norm] for norm in COMPARED}})
    table = table.reindex([*COMPARED, *reasons.WITHOUT])
    for recipe in SHOWN:
        table[f"`{recipe}`"] = means[recipe]
    table = table.rename(lambda arm: f"{reasons.LABELS[arm]} (`{arm}`)")
    return make_markdown(table.rename_axis("normalization"))


def make_seeds(frame: pd.DataFrame) -> str:
    """Return mean, standard deviation and 95 % interval over the seeds, by recipe and norm."""
    whats = {"mean": "mean", "s.d.": "std", "± 95 %": get_half_width}
    columns = {f"{p} {what}": (p, f) for p in ("train", "test") for what, f in whats.items()}
    groups = frame[frame.recipe.isin(SHOWN)].groupby(["recipe", "norm"])
    return make_markdown(groups.agg(seeds=("seed", "size"), **columns))


def make_gaps(frame: pd.DataFrame) -> str:
    """Return accuracy on the training images as they are, minus test: mean and 95 % interval.

    It is of the recipes of which all runs have it.
    """
    frame = frame[frame.recipe.isin(RECIPES)]
    frame = frame[frame.clean.notna().groupby(frame.recipe).transform("all")]
    columns = {"train images as they are": ("clean", "mean"), "minus test": ("clean_gap", "mean")}
    groups = frame.groupby(["recipe", "norm"])
    columns["± 95 %"] = ("clean_gap", get_half_width)
    return make_markdown(groups.agg(seeds=("seed", "size"), **columns))


def make_gap_differences(frame: pd.DataFrame) -> str:
    """Return how the gaps of `muon` differ between norms; bold is what is shown."""
    muon = frame[frame.recipe == "muon"]
    pairs = {
        (f"{one} - {other}",): [muon[muon.norm == norm] for norm in (one, other)]
        for one, other in combinations(COMPARED, 2)
    }
    return format_differences(["difference"], pairs, {"clean_gap": "train as it is minus test"})


def make_differences(frame: pd.DataFrame) -> str:
    """Return the differences between norms, in points; bold is what is shown."""
    pairs = {
        (f"`{recipe}`", f"{one} - {other}"): [
            frame[(frame.recipe == recipe) & (frame.norm == norm)] for norm in (one, other)
        ]
        for recipe in RECIPES
        for one, other in combinations(COMPARED, 2)
    }
    return format_differences(["recipe", "difference"], pairs)


def make_precisions(float32: pd.DataFrame, bfloat16: pd.DataFrame) -> str:
    """Return how `onecycle` in float32 differs from it in bfloat16; bold is what is shown."""
    pairs = {
        (norm,): [
            frame[(frame.recipe == "onecycle") & (frame.norm == norm)]
            for frame in (float32, bfloat16)
        ]
        for norm in COMPARED
    }
    return format_differences(["float32 - bfloat16"], pairs)


def make_mcnemar(results: Results, labels: Sequence[int]) -> str:
    """Return McNemar's test of each two norms, on the test predictions of seed 1."""
    rows = []
    for recipe in RECIPES:
        for pair in combinations(COMPARED, 2):
            hits = (get_hits(results[recipe, norm, 1], labels) for norm in pair)
            only_one, only_other, p = mcnemar(*hits)
            p = f"{p:.3f}" if p >= 0.001 else "< 0.001"
            rows.append([f"`{recipe}`", ", ".join(pair), only_one, only_other, p])
    columns = ["recipe", "first, second", "only the first right", "only the second right", "p"]
    return make_markdown(pd.DataFrame(rows, columns=columns).set_index("recipe"))


def make_tuning(frame: pd.DataFrame) -> str:
    """Return final accuracy on the held-out images by trial of tune.py and norm, best mean first.

    A number is the mean over the seeds that all norms have. A trial that lacks a norm has no mean,
    and stands at the end.
    """
    frame = frame[frame.norm.isin(COMPARED)]
    whole = frame.groupby(["recipe", "seed"]).norm.transform("size") == len(COMPARED)
    frame = frame[whole | ~whole.groupby(frame.recipe).transform("any")]
    trials = frame.assign(trial="`" + frame.recipe + "`").groupby(["trial", "norm"])
    table = trials.validation.mean().unstack().reindex(columns=list(COMPARED))
    table.insert(0, "seeds", trials.size().groupby("trial").max())
    table["mean"] = table[list(COMPARED)].mean(axis=1, skipna=False)
    return make_markdown(table.sort_values("mean", ascending=False, kind="stable"))


def make_tables(
    results: Results, bfloat16: Results, trials: Results, claimed: Results
) -> dict[str, str]:
    """Return the lab book's tables, but McNemar's, by the names of their markers."""
    frame, shift = make_frame(results), internals.make_shift_frame(claimed)
    rates, batches = reasons.make_frame(claimed, "rates"), reasons.make_batch_frame(claimed)
    search, runs = reasons.make_search_frame(claimed), reasons.get_baseline(results, claimed)
    baseline, without = reasons.make_baseline_frame(runs), product(COMPARED, reasons.WITHOUT)
    return {
        "seeds": make_seeds(frame),
        "differences": make_differences(frame),
        "gaps": make_gaps(frame),
        "gap-differences": make_gap_differences(frame),
        "precisions": make_precisions(frame, make_frame(bfloat16)),
        "tuning": make_tuning(make_frame(trials)),
        "rates": reasons.make_rates(rates),
        "rate-means": reasons.make_rate_means(rates),
        "rates-speed": reasons.make_speed(reasons.get_histories_at_best(rates), (60, 70)),
        "speed": reasons.make_speed(get_accuracies(runs), (60, 70, 80)),
        "search": reasons.make_search(search),
        "baseline": reasons.make_baseline(baseline),
        "costs": reasons.make_costs(baseline),
        "batches": reasons.make_batches(batches),
        "batch-differences": reasons.make_batch_differences(batches),
        "equal-loss": reasons.make_equal_loss(results, RECIPES, combinations(COMPARED, 2)),
        "equal-loss-without": reasons.make_equal_loss(runs, ["muon"], without),
        "scales": internals.make_scales(internals.make_scale_frame(claimed)),
        "shift": internals.make_shift(shift),
        "shift-differences": internals.make_shift_differences(shift),
    }


def renew(text: str, tables: Mapping[str, str]) -> str:
    """Return `text` with what stands between the markers of each table's name replaced by it."""
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        lines = f"\n{table}\n\n"
        text, count = re.subn(
            pattern, lambda m, new=lines: m[1] + new + m[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the text has {count} places marked <!-- {name} -->, not one")
    return text


def renew_page(page: Path, tables: Mapping[str, str]) -> bytes:
    """Return the page with the tables at their markers."""
    return renew(page.read_text(encoding="utf-8"), tables).encode()


# --- Figures -------------------------------------------------------------------------------------


def draw_accuracy(results: Results) -> Figure:
    """Return test accuracy by epoch: the mean of the seeds, and a band from lowest to highest."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, len(RECIPES), sharey=True)
    for axis, recipe in zip(axes, RECIPES, strict=True):
        for norm in COMPARED:
            runs = records.pick(results, recipe, norm)
            histories = [run["history"]["test_acc"] for run in runs]
            label = f"{NAMES[norm]}, {len(runs)} seed" + "s" * (len(runs) != 1)
            reasons.draw_epochs(axis, histories, label, utils.STYLES[norm])
        axis.set_title(f"recipe {recipe}")
        axis.legend(loc="lower right")
    figure.axes[0].set_ylabel("accuracy on the test images (%)")
    return figure


def draw_normalization(data: Data) -> Figure:
    """Return what each normalization does to the first layer's output, as in the notebooks."""
    utils.set_seed(1)
    block = Session8Net("bn").layers.C1
    images = utils.get_test_transforms()(data.test.tensors[0][:32].cpu())
    with torch.inference_mode():
        before = block.relu(block.conv(images))
        after = {f"after {norm}": get_norm(norm, 16)(before) for norm in COMPARED}
    title = "The first layer's activations (C1, untrained), before and after each normalization"
    return utils.post_normalization({"before": before, **after}, title)


def make_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of the pages' size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_run(result: dict, prediction: torch.Tensor, data: Data) -> dict[str, Figure]:
    """Return the figures of one run, each under its name; `prediction` is of the test images."""
    norm, precision = result["norm"], result["environment"]["precision"]
    what = f"recipe {result['recipe']['name']}, seed {result['seed']}, {precision}"
    title = f"{NAMES[norm]} normalization, {what}"
    labels = data.test.tensors[1]
    return {
        f"curves-{norm}": utils.post_accuracyplots(result["history"], title, norm),
        f"misclassified-{norm}": utils.post_misclassified(
            data.test, prediction, data.classes, title
        ),
        f"confusion-{norm}": utils.post_confusion(prediction, labels, data.classes, title),
    }


def check(claimed: Results, folder: Path) -> None:
    """Raise an error for a run that the pages need and that can't be taken.

    FileNotFoundError for one that is not there, ValueError for one of other hyperparameters, or of
    another protocol of a claim.
    """
    for precision, recipes in (("float32", SHOWN), ("bfloat16", ("onecycle", "quick"))):
        for recipe, norm, seed in product(recipes, COMPARED, SEEDS):
            run = utils.Run(utils.get_recipe(recipe), norm, seed, precision)
            if not records.is_done(run, folder):
                path = run.get_path(folder, ".json")
                raise FileNotFoundError(f"{path} is missing: replicate.py makes it.")
    for name, arm, seed in claimed:
        claim, _, value = name.partition("-")
        if claim not in CLAIMS or value not in CLAIMS[claim].recipes:
            raise ValueError(f"claims.py has no {name!r} (any more): move its results away.")
        run = utils.Run(CLAIMS[claim].recipes[value], arm, seed, "float32")
        is_claimed(claim, run, folder / "claims")
    there = {(name, arm) for name, arm, seed in claimed if seed in SEEDS}
    for claim, arm in [(name, arm) for name in CLAIMS for arm in CLAIMS[name].arms]:
        names = {recipe.name for recipe in CLAIMS[claim].recipes.values()}
        missing = {name for name in names if (name, arm) not in there}
        # `baseline` has runs at the best rates alone.
        if missing and (claim != "baseline" or missing == names):
            raise FileNotFoundError(
                f"{folder / 'claims'} has no run of {min(missing)!r} with {arm!r}: "
                f"claims.py {claim} --arms {arm} makes it."
            )


def draw_figures(results: Results, claimed: Results, data: Data) -> dict[str, Figure]:
    """Return the pages' figures, each under its name."""
    quoted = {norm: results["muon", norm, 1] for norm in COMPARED}  # the notebooks' runs
    predictions = predict(quoted, data.test)
    data, runs = data.to(torch.device("cpu")), reasons.get_baseline(results, claimed)
    figures = {
        "accuracy": draw_accuracy(results),
        "normalization": draw_normalization(data),
        "comparison": draw_comparison(quoted, predictions, data.test, data.classes),
        "losses": reasons.draw_losses(runs, RECIPES),
        "baseline": reasons.draw_baseline(runs),
        "rates": reasons.draw_rates(reasons.make_frame(claimed, "rates")),
        "batches": reasons.draw_batches(reasons.make_batch_frame(claimed)),
        "scales": internals.draw_scales(internals.make_scale_frame(claimed)),
        "shift": internals.draw_shift(internals.make_shift_frame(claimed)),
    }
    for norm in COMPARED:
        figures |= draw_run(quoted[norm], predictions[norm], data)
    return figures


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()  # --help alone
    folder = ROOT / "results"
    claimed = records.load_results(folder / "claims" / "float32")
    check(claimed, folder)
    results, bfloat16 = (records.load_results(folder / name) for name in utils.PRECISIONS)
    trials = records.load_results(folder / "tuning" / "bfloat16")
    data = records.get_data(utils.get_recipe("muon"))
    baseline = reasons.make_baseline_frame(reasons.get_baseline(results, claimed))
    tables = make_tables(results, bfloat16, trials, claimed)
    tables["mcnemar"] = make_mcnemar(results, data.test.tensors[1].tolist())
    front, lab = ROOT / "README.md", ROOT / "experiments" / "README.md"
    contents = {
        front: renew_page(front, {"results": make_table(make_frame(results), baseline)}),
        lab: renew_page(lab, tables),
    }
    for name, figure in draw_figures(results, claimed, data).items():
        contents[ROOT / "images" / f"{name}.png"] = make_png(figure)
    write_whole(contents)


if __name__ == "__main__":
    main()
