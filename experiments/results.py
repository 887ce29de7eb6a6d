"""Read the results of runs; define names that the modules of experiments/ share."""

import json
import math
import os
from pathlib import Path

import torch
from torch import nn

import utils
from cifar10 import Data, get_root
from runs import LABELS, Recipe, Run, is_same_recipe

ROOT = Path(__file__).resolve().parents[1]
SPEED = ROOT / "results" / "speed"  # what experiments.benchmark measures
COMPARED = ("bn", "gn", "ln")  # norms, each with a notebook
BARE = ("he", "none")  # arms without a normalization
NOTEBOOKS = {n: ROOT / f"ERA_Session8_{LABELS[n]}Normalization.ipynb" for n in COMPARED}
SEEDS = (1, 2, 3, 4, 5)  # the pages ignore runs of other seeds
COMPARED_RECIPES = ("reference", "onecycle", "muon")  # of 20 epochs, in float32
PARTS = ("train", "test", "validation")
NO_RUNS = ("speed", ".ipynb_checkpoints")  # folders in results/


def load_data(recipe: Recipe) -> Data:
    """Return the recipe's data, on the device."""
    return utils.get_data(recipe, find_root(), utils.get_device())


def find_root() -> Path:
    """Return the folder of CIFAR-10: CIFAR10_ROOT, by default data/ in the repository."""
    return get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")


def choose_precision() -> str:
    """Return the precision that the variable PRECISION asks for."""
    return utils.get_precision(os.environ.get("PRECISION"), utils.get_device())


def load_result(path: Path) -> dict:
    """Return the result in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def make_row(result: dict, folder: str) -> dict:
    """Return a row of `load_frame` from a result in a folder of results/."""
    name, history = result["recipe"]["name"], result["history"]
    first, _, value = name.partition("-")
    claim = {"claims": first, "tuning": folder}.get(folder, "")
    last = {part: history.get(f"{part}_acc", [math.nan])[-1] for part in PARTS}
    last["clean"] = result.get("clean_train_acc", math.nan)
    last["clean_gap"] = last["clean"] - last["test"]
    key = {"recipe": name, "claim": claim, "value": value, "arm": result["norm"]}
    key |= {"seed": result["seed"], "precision": result["environment"]["precision"]}
    return key | last | {"history": history, "result": result}


def load_frame(folder: Path = ROOT / "results"):
    """Return a pandas DataFrame with one row per run of SEEDS in `folder`.

    `claim` is a claim's name, "tuning", or "" for a notebook's run; `value` is what the claim
    varies; `arm` is the norm, or "he". `train`, `test`, `validation` and `clean` (all training
    images, not augmented) are final accuracies in percent, NaN if absent; `clean_gap` is clean -
    test.
    """
    import pandas as pd  # benchmark.py runs without experiments/requirements.txt

    paths = sorted(p for p in folder.rglob("*.json") if p.parent.name not in NO_RUNS)
    rows = (make_row(load_result(path), path.relative_to(folder).parts[0]) for path in paths)
    return pd.DataFrame(row for row in rows if row["seed"] in SEEDS)


def load_speed() -> dict | None:
    """Return what experiments.benchmark measured, preferably in bfloat16, or None."""
    paths = sorted(SPEED.glob("*.json"))
    return json.loads(paths[0].read_text(encoding="utf-8")) if paths else None


def load_model(path: Path) -> nn.Module:
    """Return the network of the result at `path`, on the device, with the weights beside it."""
    result, weights = load_result(path), path.with_suffix(".pt")
    model = utils.make_model(result["norm"], Recipe(**result["recipe"]))
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return model.to(utils.get_device(), memory_format=torch.channels_last)


def is_done(run: Run, folder: Path) -> bool:
    """Return whether `folder` has the run's result; ValueError if it is of another recipe."""
    path = run.get_path(folder, ".json")
    if not path.exists():
        return False
    if not is_same_recipe(load_result(path)["recipe"], run.recipe):
        raise ValueError(f"{path} is of another recipe of that name: move it away")
    return True
