"""Show three normalizations side by side: their curves, and the images on which they disagree.

    python -m experiments.compare --recipe muon --seed 1

It takes what your three notebooks left in runs/ or, if one is missing there, the committed runs in
results/. The notebooks' variables apply: RECIPE, SEED, PRECISION and CIFAR10_ROOT. The figure is
written to a file.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

import utils
from cifar10 import Data
from experiments import results as records
from experiments.results import COMPARED, ROOT, load_model, load_result
from plots import draw_images
from runs import LABELS, RECIPES, Run, get_recipe, get_seed

COLUMNS = 6  # images that one normalization alone gets right
OWN = ("norm", "network", "history", "clean_train_acc", "test_predictions")  # of each result


def find_runs(recipe: str, seed: int, folders: Sequence[Path]) -> dict[str, Path]:
    """Return the results' files by norm, from the first of the folders that has all three."""
    lacks = []
    for folder in folders:
        runs = (Run(get_recipe(recipe), n, seed, folder.name) for n in COMPARED)
        paths = [run.get_path(folder.parent, ".json") for run in runs]
        files = [*paths, *(path.with_suffix(".pt") for path in paths)]
        if not (missing := [file.name for file in files if not file.exists()]):
            return dict(zip(COMPARED, paths, strict=True))
        lacks.append(f"{folder} has no {' and no '.join(missing)}")
    raise FileNotFoundError(
        f"{lacks[0]}. Run the three notebooks with RECIPE={recipe} SEED={seed}, or choose runs "
        "that are there by --recipe, --seed and the variable PRECISION."
    )


def name_differences(results: Mapping[str, dict]) -> str:
    """Return a sentence that names what differs between the results besides the norm, or ""."""
    first, *others = results.values()
    names = dict.fromkeys(name for result in results.values() for name in result if name not in OWN)
    differ = [n for n in names if any(other.get(n) != first.get(n) for other in others)]
    return f"Besides the norm, these runs differ in: {', '.join(differ)}" if differ else ""


def find_alone(predictions: Mapping, labels: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the indices of the images that `norm` alone gets right, the surest first."""
    right = {name: p.argmax(dim=1) == labels for name, p in predictions.items()}
    others = torch.stack([hits for name, hits in right.items() if name != norm]).any(dim=0)
    alone = (right[norm] & ~others).nonzero().flatten()
    sure = predictions[norm][alone, labels[alone]]
    return alone[sure.argsort(descending=True, stable=True)]


def draw(results: Mapping[str, dict], predictions: Mapping, data: Data) -> Figure:
    """Return the three curves, and below them test images that one network alone gets right."""
    (images, labels), classes = data.test.tensors, data.classes
    figure = Figure(figsize=(12, 14), layout="constrained")
    curves, *rows = figure.subfigures(1 + len(results), 1, height_ratios=[4] + [3.3] * len(results))
    axis = curves.subplots()
    for norm, result in results.items():
        accuracy, name = result["history"]["test_acc"], result["recipe"]["name"]
        minutes, train = sum(result["history"]["seconds"]) / 60, result["clean_train_acc"]
        ends = f"{accuracy[-1]:.2f} % (train {train:.2f} %, {minutes:.1f} min)"
        style = {"label": f"{LABELS[norm]}: {ends}"} | utils.STYLES[norm]
        axis.plot(range(1, len(accuracy) + 1), accuracy, **style)
    title = f"{len(accuracy)} epochs of {name}, seed {result['seed']}\n{name_differences(results)}"
    axis.set(title=title.strip(), xlabel="epoch", ylabel="accuracy on the test images (%)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    for row, norm in zip(rows, results, strict=True):
        alone = find_alone(predictions, labels, norm)
        row.suptitle(f"Right with {LABELS[norm]} normalization alone: {len(alone):,} images")
        captions = []
        for index in alone[:COLUMNS].tolist():
            guesses = (
                f"{name}: {classes[p[index].argmax()]} ({p[index].exp().max():.0%})"
                for name, p in predictions.items()
            )
            captions.append("\n".join([f"label: {classes[labels[index]]}", *guesses]))
        draw_images(row.subplots(1, COLUMNS), images[alone[:COLUMNS]], captions, 9)
    return figure


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Show three normalizations side by side.")
    chosen = {name: os.environ.get(name, "").strip() for name in ("RECIPE", "SEED")}
    parser.add_argument("--recipe", choices=RECIPES, default=chosen["RECIPE"] or "muon")
    parser.add_argument("--seed", type=get_seed, default=chosen["SEED"] or "1")
    parser.add_argument("--output", type=Path, default="comparison.png", metavar="FILE")
    options = parser.parse_args(arguments)
    if options.recipe == "smoke":
        parser.error("a smoke run leaves no result to compare: choose another RECIPE or --recipe")
    return options


def main() -> None:
    options = parse()
    folders = [ROOT / name / records.choose_precision() for name in ("runs", "results")]
    if not os.environ.get("PRECISION", "").strip():
        folders.append(ROOT / "results" / "float32")  # the committed ones, on any machine
    paths = find_runs(options.recipe, options.seed, folders)
    options.output.parent.mkdir(parents=True, exist_ok=True)  # fails before the slow part
    data = records.load_data(get_recipe(options.recipe))
    loader = utils.Loader(data.test, utils.get_test_transforms(), 128)
    results, predictions = {norm: load_result(path) for norm, path in paths.items()}, {}
    for norm, path in paths.items():
        model = load_model(path, data.test)
        predictions[norm] = utils.predict(model, loader, path.parent.name)[0].cpu()
    data = data.to(torch.device("cpu"))
    draw(results, predictions, data).savefig(options.output, dpi=110)
    print(name_differences(results) or "These runs differ in their norm alone.")
    found = paths["bn"].parent.relative_to(ROOT).as_posix()
    print(f"Written: {options.output}, of the runs in {found}/")


if __name__ == "__main__":
    main()
