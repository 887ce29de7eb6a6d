"""What the tests share: notebooks and pages, drawn images, and small runs."""

import dataclasses
import re

import torch
from torch.utils.data import TensorDataset

import cifar10
import runs
import utils
from experiments.results import NOTEBOOKS as NOTEBOOKS
from experiments.results import ROOT

CPU = torch.device("cpu")
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "experiments/README.md")
}

OUR_NORMS = ("bn", "gn", "ln", "none")  # whatever else a user adds

# Fields of a recipe that trains by Muon.
MUON = {"optimizer": "muon", "lr": 0.03, "momentum": 0.95, "weight_decay": 0.05}


def get_rows(page, marker):
    """Return the cells of each row of a page's table."""
    table = re.search(rf"<!-- {marker} -->(.*?)<!-- /{marker} -->", page, re.DOTALL)[1]
    return read_table(table.strip())


def read_table(text):
    """Return the cells of a Markdown table's rows, without its header."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n")]
    return rows[2:]


def make_frame(tests, folder="claims", **more):
    """Return a frame of made-up runs, as `results.load_frame` does.

    `tests` has the final accuracies by recipe and arm, seed by seed, None for a diverged run.
    `more` has further fields of a result, each a function of recipe, arm and accuracy.
    """
    import pandas as pd

    from experiments.claims import CLAIMS
    from experiments.results import make_row

    known = {r.name: dataclasses.asdict(r) for c in CLAIMS.values() for r in c.recipes.values()}
    rows = []
    for (recipe, arm), accuracies in tests.items():
        for seed, accuracy in enumerate(accuracies, 1):
            result = {"recipe": known.get(recipe, {"name": recipe}), "norm": arm, "seed": seed}
            result |= {"environment": {"precision": "float32"}, "history": {}}
            if accuracy is not None:
                part = "validation" if "search" in recipe or folder == "tuning" else "test"
                result["history"] = {f"{part}_acc": [50.0, accuracy]}
            result |= {key: make(recipe, arm, accuracy) for key, make in more.items()}
            rows.append(make_row(result, folder))
    return pd.DataFrame(rows)


def draw_images(n=16, height=32, width=32):
    """Draw uint8 images, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def make_dataset(n=70):
    return TensorDataset(draw_images(n), torch.arange(n) % 10)


def make_run(recipe="onecycle", norm="bn", seed=1, precision="float32", **changes):
    """Return a run of that recipe with some of its fields changed."""
    recipe = dataclasses.replace(runs.get_recipe(recipe), **changes)
    return runs.Run(recipe, norm, seed, precision)


def write_result(folder, run, **changes):
    """Write a result of the run into `folder`, and return its path."""
    result = {"recipe": dataclasses.asdict(run.recipe), "norm": run.norm, "seed": run.seed}
    result |= {"history": {}, "environment": {"precision": run.precision}} | changes
    path = run.get_path(folder, ".json")
    runs.write_whole({path: runs.make_json(result)})
    return path


def prepare(run, dataset=None, test_dataset=None):
    """Return what trains the run, on drawn images unless others are given."""
    dataset = dataset or make_dataset()
    return utils.assemble(run, cifar10.Data(tuple("abcdefghij"), dataset, test_dataset or dataset))
