"""What all tests share: the notebooks' recipe, and where the real CIFAR-10 lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {
    norm: ROOT / f"ERA_Session8_{name}Normalization.ipynb"
    for norm, name in (("bn", "Batch"), ("gn", "Group"), ("ln", "Layer"))
}

os.environ["RECIPE"] = "smoke"  # nbval's kernels inherit it: the notebooks run in seconds
os.environ["SEED"] = "1"


@pytest.fixture
def cifar10_root():
    """The folder that holds the real CIFAR-10; the test is skipped where it does not."""
    root = Path(os.environ.get("CIFAR10_ROOT", ROOT / "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {root}: set CIFAR10_ROOT to the folder that holds it")
    return root
