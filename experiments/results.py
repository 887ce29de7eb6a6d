"""Read the results of runs; names that the modules of experiments/ share."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import utils
from cifar10 import CIFAR, Data, get_root, load_cifar10
from runs import Recipe, Run, is_same_recipe

ROOT = Path(__file__).resolve().parents[1]
SPEED = ROOT / "results" / "speed"  # what experiments.benchmark measures
COMPARED = ("bn", "gn", "ln")  # norms, each with a notebook
SEEDS = (1, 2, 3, 4, 5)  # of the pages; runs of other seeds are ignored
COMPARED_RECIPES = ("reference", "onecycle", "muon")  # of 20 epochs, in float32
PARTS = ("train", "test", "validation")
NO_RUNS = ("speed", ".ipynb_checkpoints")  # folders in results/


def load_data(recipe: Recipe) -> Data:
    """Return the recipe's data, on the device."""
    return utils.get_data(recipe, find_root(), utils.get_device())


def find_root() -> Path:
    """Return the folder of CIFAR-10: CIFAR10_ROOT, by default data/ of the repository."""
    return get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")


def choose_precision() -> str:
    """Return the precision that the variable PRECISION asks for."""
    return utils.get_precision(os.environ.get("PRECISION"), utils.get_device())


def fetch_data(runs: Iterable[Run]) -> None:
    """Download or check CIFAR-10 once, before many runs, if any of them needs it."""
    if any(run.recipe.data == CIFAR for run in runs):
        load_cifar10(find_root())


def load_result(path: Path) -> dict:
    """Return the result in that file; ValueError if it is not of the run the file is named for."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        result = json.loads(path.read_text(encoding="utf-8"))
        recipe, precision = result["recipe"]["name"], result["environment"]["precision"]
        name = f"{recipe}-{result['norm']}-seed{result['seed']}.json"
        if path.parts[-2:] == (precision, name):
            return result
    raise ValueError(f"{path} is not the result of the run of that name: move it away")


def make_row(result: dict, folder: str) -> dict:
    """Return a result of that folder in results/ as a row of `load_frame`."""
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
    import pandas as pd  # compare.py and benchmark.py run without experiments/requirements.txt

    paths = sorted(p for p in folder.rglob("*.json") if p.parent.name not in NO_RUNS)
    rows = (make_row(load_result(path), path.relative_to(folder).parts[0]) for path in paths)
    return pd.DataFrame(row for row in rows if row["seed"] in SEEDS)


def load_speed() -> dict | None:
    """Return what experiments.benchmark measured, if it has run: bfloat16 goes before float32."""
    paths = sorted(SPEED.glob("*.json"))
    return json.loads(paths[0].read_text(encoding="utf-8")) if paths else None


def load_model(path: Path, test: TensorDataset | None = None) -> nn.Module:
    """Return the network of the result at `path`, on the device, with the weights beside it.

    With `test`, raises ValueError unless its first predictions are the result's.
    """
    result, weights = load_result(path), path.with_suffix(".pt")
    model = utils.make_model(result["norm"], Recipe(**result["recipe"]))
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model = model.to(utils.get_device(), memory_format=torch.channels_last)
    if test is not None:
        first = TensorDataset(*(tensor[:500] for tensor in test.tensors))
        loader = utils.Loader(first, utils.get_test_transforms(), 500)
        digits = utils.predict(model, loader, result["environment"]["precision"])[0].argmax(dim=1)
        said = torch.tensor(list(map(int, result["test_predictions"][:500]))).to(digits.device)
        if (digits != said).sum() > 10:  # two runs differ in 48 or more, two machines in a few
            raise ValueError(f"{weights} has the weights of another run than {path}: run it again")
    return model


def is_done(run: Run, folder: Path, protocol: Mapping | None = None) -> bool:
    """Return whether `folder` has the run's result.

    Raises ValueError if that is of another recipe or another protocol.
    """
    path = run.get_path(folder, ".json")
    if not path.exists():
        return False
    result = load_result(path)
    if not is_same_recipe(result["recipe"], run.recipe):
        raise ValueError(f"{path} is of other hyperparameters than the recipe has: move it away")
    if protocol is not None and result.get("protocol", protocol) != protocol:
        known = f"{result['protocol']}, and asked for is {protocol}"
        raise ValueError(f"{path} is of another protocol: move it away (its is {known})")
    return True
