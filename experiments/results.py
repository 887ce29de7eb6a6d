"""Read the results of runs; the names that all of experiments/ share."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

import utils
from cifar10 import CIFAR, Data, get_root, load_cifar10
from models import Session8Net
from runs import PRECISIONS, Progress, is_same_recipe

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"bn": "Batch", "gn": "Group", "ln": "Layer", "none": "No"}  # ... normalization
COMPARED = ("bn", "gn", "ln")  # those that are compared; each has a notebook
SEEDS = (1, 2, 3, 4, 5)  # those of the pages; a run of another one changes no page
RECIPES = ("reference", "onecycle", "muon")  # of 20 epochs, which are compared, in float32
SHOWN = (*RECIPES, "quick")

Results = Mapping[tuple[str, str, int], dict]  # by recipe, norm and seed


def get_data(recipe: utils.Recipe) -> Data:
    """Return the recipe's data on the device."""
    return utils.get_data(recipe, find_root(), utils.get_device())


def find_root() -> Path:
    """Return CIFAR-10's folder, by default the repository's own."""
    return get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")


def get_precision() -> str:
    """Return the precision that PRECISION asks for; an unknown one ends the program."""
    try:
        return utils.get_precision(os.environ.get("PRECISION"), utils.get_device())
    except ValueError as error:
        sys.exit(str(error))


def fetch_data(runs: Iterable[utils.Run]) -> None:
    """Download or check CIFAR-10 if a run needs it; else each run would find out for itself."""
    if any(run.recipe.data == CIFAR for run in runs):
        load_cifar10(find_root(), Progress)


def load_result(path: Path) -> dict:
    """Return the result in that file.

    Raises ValueError if it holds something else, a number that is not finite, or another run's
    result than its name and its folder say.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        name = f"{result['recipe']['name']}-{result['norm']}-seed{result['seed']}"
        whole = {"history", "environment"} <= result.keys()
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not the result of a run. Move it away.")
    precision = result["environment"].get("precision")
    if path.parent.name in PRECISIONS and path.parent.name != precision:
        raise ValueError(f"{path} is the result of a run in {precision}: move it away.")
    if path.stem != name:
        raise ValueError(f"{path} is the result of {name}: give it that name, or move it away.")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no result")


def load_results(folder: Path) -> Results:
    """Return the results in `folder`, each under its (recipe, norm, seed)."""
    results = map(load_result, sorted(folder.glob("*.json")))
    return {(r["recipe"]["name"], r["norm"], r["seed"]): r for r in results}


def pick(results: Results, recipe: str, norm: str) -> list[dict]:
    """Return the results of that recipe and norm that are there, in the order of SEEDS."""
    return [results[recipe, norm, seed] for seed in SEEDS if (recipe, norm, seed) in results]


def load_model(result: dict) -> Session8Net:
    """Return the trained network of a result, from the weights in results/, on the device."""
    recipe = utils.Recipe(**result["recipe"])
    run = utils.Run(recipe, result["norm"], result["seed"], result["environment"]["precision"])
    model = Session8Net(run.norm, recipe.groups, recipe.dropout)
    path = run.get_path(ROOT / "results", ".pt")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.to(utils.get_device(), memory_format=torch.channels_last)


def is_done(run: utils.Run, folder: Path) -> bool:
    """Tell whether the run's result is in `folder`; ValueError if another recipe's is there."""
    path = run.get_path(folder, ".json")
    if not path.exists():
        return False
    if not is_same_recipe(load_result(path)["recipe"], run.recipe):
        raise ValueError(
            f"{path} is of other hyperparameters than recipe {run.recipe.name!r} has now. "
            "Move it away to run it anew."
        )
    return True
