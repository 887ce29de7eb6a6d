"""Show three normalizations side by side: curves, a table, and the images on which they disagree.

    python -m experiments.compare --recipe muon --seed 1

It takes the results and weights that the three notebooks left in results/; the variables RECIPE,
SEED and PRECISION choose them as they do for the notebooks. CIFAR-10 is read from the folder
CIFAR10_ROOT (default the repository's data). The table is printed; the figure is written to a file.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.data import TensorDataset

import utils
from cifar10 import CIFAR
from experiments import results as records
from experiments.replicate import expand, parse_seed
from experiments.results import COMPARED, NAMES, ROOT

COLUMNS = 6  # images on which one normalization alone is right


def load_runs(recipe: str, seed: int, precision: str) -> dict[str, dict]:
    """Return the results by norm. Raises FileNotFoundError that names what is missing."""
    runs = (utils.Run(utils.get_recipe(recipe), norm, seed, precision) for norm in COMPARED)
    paths = [run.get_path(ROOT / "results", ".json") for run in runs]
    files = [*paths, *(path.with_suffix(".pt") for path in paths)]
    if missing := [file for file in files if not file.exists()]:
        raise FileNotFoundError(
            f"There is no {' and no '.join(map(str, missing))}. Run the three notebooks with "
            f"RECIPE={recipe} SEED={seed} PRECISION={precision}, or choose runs that are there by "
            "--recipe, --seed and the variable PRECISION."
        )
    return dict(zip(COMPARED, map(records.load_result, paths), strict=True))


def predict(results: Mapping[str, dict], test: TensorDataset) -> dict[str, torch.Tensor]:
    """Return each network's log-probabilities (N, 10) of the test images, on the CPU."""
    loader = utils.get_loader(test, utils.get_test_transforms(), 128)
    predictions = {}
    for norm, result in results.items():
        precision = result["environment"]["precision"]
        predictions[norm] = utils.predict(records.load_model(result), loader, precision)[0].cpu()
    return predictions


def find_alone(
    predictions: Mapping[str, torch.Tensor], labels: torch.Tensor, norm: str
) -> torch.Tensor:
    """Return the images (indices, int64) that `norm` has right and all others wrong.

    Those of which it is most sure come first.
    """
    right = {name: p.argmax(dim=1) == labels for name, p in predictions.items()}
    others = torch.stack([hits for name, hits in right.items() if name != norm]).any(dim=0)
    alone = (right[norm] & ~others).nonzero().flatten()
    sure = predictions[norm][alone, labels[alone]]
    return alone[sure.argsort(descending=True, stable=True)]


def make_table(
    results: Mapping[str, dict], predictions: Mapping[str, torch.Tensor], labels: torch.Tensor
) -> str:
    """Return final accuracies (%) and the number of images that one network alone has right."""
    lines = [f"{'':6}{'train':>8}{'test':>8}{'right alone':>13}{'minutes':>9}"]
    for norm, result in results.items():
        train, test = (result["history"][f"{part}_acc"][-1] for part in ("train", "test"))
        alone = len(find_alone(predictions, labels, norm))
        minutes = sum(result["history"]["seconds"]) / 60
        lines.append(f"{norm:6}{train:8.2f}{test:8.2f}{alone:13,}{minutes:9.1f}")
    return "\n".join(lines)


def draw(
    results: Mapping[str, dict],
    predictions: Mapping[str, torch.Tensor],
    test: TensorDataset,
    classes: Sequence[str],
) -> Figure:
    """Return the three curves, and under them images that one network alone has right.

    A caption has the true class, and what each network took the image for, with its probability.
    """
    images, labels = test.tensors
    figure = Figure(figsize=(12, 14), layout="constrained")
    curves, *rows = figure.subfigures(1 + len(results), 1, height_ratios=[4] + [3.3] * len(results))
    draw_curves(curves.subplots(), results)
    for row, norm in zip(rows, results, strict=True):
        alone = find_alone(predictions, labels, norm)
        row.suptitle(f"Right with {NAMES[norm].lower()} normalization alone: {len(alone):,} images")
        for axis in (axes := row.subplots(1, COLUMNS)):
            axis.axis("off")
        for axis, index in zip(axes, alone.tolist(), strict=False):
            axis.imshow(images[index].permute(1, 2, 0).numpy())
            guesses = (
                f"{name}: {classes[p[index].argmax()]} ({p[index].exp().max():.0%})"
                for name, p in predictions.items()
            )
            caption = "\n".join([f"true: {classes[labels[index]]}", *guesses])
            axis.set_title(caption, fontsize=9)
    return figure


def draw_curves(axis: Axes, results: Mapping[str, dict]) -> None:
    """Draw test accuracy by epoch, a line for each result."""
    for norm, result in results.items():
        accuracy = result["history"]["test_acc"]
        label = f"{NAMES[norm]}: {accuracy[-1]:.2f} %"
        axis.plot(range(1, len(accuracy) + 1), accuracy, label=label, **utils.STYLES[norm])
    result = next(iter(results.values()))
    what = (f"recipe {result['recipe']['name']}", f"seed {result['seed']}")
    title = " | ".join([result["data"]["name"], *what, result["environment"]["precision"]])
    axis.set(title=title, xlabel="epoch", ylabel="accuracy on the test images (%)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")


def parse_figure(text: str) -> Path:
    """Return the path of a figure that can be written there: known before anything is computed."""
    path, known = expand(text), Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(sorted(known))}")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be a file in a folder that is there")
    return path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    recipes = [name for name, recipe in utils.RECIPES.items() if recipe.data == CIFAR]
    chosen = {name: (os.environ.get(name) or "").strip() for name in ("RECIPE", "SEED")}
    parser.add_argument("--recipe", default=chosen["RECIPE"] or "muon")
    parser.add_argument("--seed", type=parse_seed, default=chosen["SEED"] or "1")
    parser.add_argument("--output", type=parse_figure, default="comparison.png", metavar="FILE")
    options = parser.parse_args(arguments)
    if options.recipe not in recipes:  # argparse does not look at a default
        parser.error(f"the recipe is {options.recipe!r}, but must be one of {', '.join(recipes)}")
    return options


def main() -> None:
    options = parse()
    results = load_runs(options.recipe, options.seed, records.get_precision())
    data = records.get_data(utils.get_recipe(options.recipe))
    predictions = predict(results, data.test)
    data = data.to(torch.device("cpu"))
    print(make_table(results, predictions, data.test.tensors[1]))
    draw(results, predictions, data.test, data.classes).savefig(options.output, dpi=110)
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
