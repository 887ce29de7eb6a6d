"""What all tests share: the notebooks' recipe, small runs, and where the real CIFAR-10 lies."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import utils
from models import Session8Net

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
NOTEBOOKS = {
    norm: ROOT / f"ERA_Session8_{name}Normalization.ipynb"
    for norm, name in (("bn", "Batch"), ("gn", "Group"), ("ln", "Layer"))
}

os.environ["RECIPE"] = "smoke"  # nbval's kernels inherit it: the notebooks run in seconds
os.environ["SEED"] = "1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run each test in a folder of its own, so that none writes into the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cifar10_root():
    """The folder that holds the real CIFAR-10; the test is skipped where it does not."""
    root = ROOT / os.environ.get("CIFAR10_ROOT", "data")
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {root}: set CIFAR10_ROOT to the folder that holds it")
    return root


def draw_images(n=16, height=32, width=32):
    """Draw uint8 images, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def make_dataset(n=70):
    return TensorDataset(draw_images(n), torch.arange(n) % 10)


def make_run(recipe="onecycle", norm="bn", seed=1, **changes):
    """Return a run of that recipe with some of its fields changed."""
    return utils.Run(dataclasses.replace(utils.get_recipe(recipe), **changes), norm, seed)


def prepare(run, dataset=None, test_dataset=None):
    """Return all that `utils.fit` takes behind the run."""
    dataset = dataset or make_dataset()
    recipe = run.recipe
    transforms = utils.get_train_transforms(recipe)
    train_loader = utils.get_loader(dataset, transforms, recipe.batch_size, shuffle=True)
    test_loader = utils.get_loader(
        test_dataset or dataset, utils.get_test_transforms(), recipe.batch_size
    )
    utils.set_seed(run.seed)
    model = Session8Net(run.norm, dropout=recipe.dropout)
    model = model.to(memory_format=torch.channels_last)
    optimizer = utils.get_optimizer(model, recipe)
    scheduler = utils.get_scheduler(optimizer, recipe, len(train_loader))
    return model, train_loader, test_loader, optimizer, scheduler, utils.get_loss(recipe)
