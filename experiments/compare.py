"""Show three normalizations side by side: their curves, and the images on which they disagree.

    python -m experiments.compare --recipe muon --seed 1

It reads the results of your three notebooks in runs/ or, if one is missing, the committed results
in results/. The notebooks' environment variables apply: RECIPE, SEED, PRECISION and CIFAR10_ROOT.
The figures are written to comparison.png and comparison-images.png.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import results as records
from experiments.figures import draw_curves, draw_mistakes
from experiments.results import COMPARED, ROOT
from runs import RECIPES, Run, get_recipe, get_seed

# Parts that should agree between results; the program names those that differ.
SAME = ("recipe", "data", "optimizer", "scheduler", "loss", "environment")


def find_results(recipe: str, seed: int, folders: Sequence[Path]) -> list[dict]:
    """Return one result per norm, from the first folder that has all three."""
    for folder in folders:
        runs = (Run(get_recipe(recipe), norm, seed, folder.name) for norm in COMPARED)
        paths = [run.get_path(folder.parent, ".json") for run in runs]
        if all(path.exists() for path in paths):
            print(f"The runs are those in {folder}.")
            return [records.load_result(path) for path in paths]
    raise FileNotFoundError(
        f"No folder has all three runs of {recipe} with seed {seed}: {', '.join(map(str, folders))}"
        f". Run the three notebooks with RECIPE={recipe} SEED={seed} (`smoke` leaves no result), "
        "or choose runs that are there by --recipe, --seed and the variable PRECISION."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Show three normalizations side by side.")
    chosen = {name: os.environ.get(name, "").strip() for name in ("RECIPE", "SEED")}
    parser.add_argument("--recipe", choices=RECIPES, default=chosen["RECIPE"] or "muon")
    parser.add_argument("--seed", type=get_seed, default=chosen["SEED"] or "1")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    folders = [ROOT / name / records.choose_precision() for name in ("runs", "results")]
    if not os.environ.get("PRECISION", "").strip():
        folders.append(ROOT / "results" / "float32")  # otherwise, committed runs
    results = find_results(options.recipe, options.seed, folders)
    for part in SAME:
        if any(result.get(part) != results[0].get(part) for result in results):
            print(f"Besides the norm, these runs differ in: {part}")
    frame = pd.DataFrame(records.make_row(result, "") for result in results)
    data = records.load_data(get_recipe(options.recipe))
    figures = {
        "comparison.png": draw_curves(frame, [options.recipe]),
        "comparison-images.png": draw_mistakes(frame, data, options.recipe),
    }
    for name, figure in figures.items():
        figure.savefig(name, dpi=110)
        print(f"Written: {name}")


if __name__ == "__main__":
    main()
