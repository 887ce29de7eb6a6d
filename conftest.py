"""Whatever pytest collects here, a notebook alone, too, is `smoke`, and writes nothing here."""

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

# Before torch is imported, and for kernels and other processes, which inherit it: with two threads
# a step takes up to 50 times as long where another process is busy.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent
from cifar10 import get_root  # noqa: E402

torch.set_num_threads(1)
for name, default in (("RECIPE", "smoke"), ("SEED", "1")):  # notebooks inherit all of these
    os.environ[name] = os.environ.get(name, "").strip() or default
# Absolute: what is meant is relative to this folder, not to the one in which a test runs.
CIFAR10_ROOT = get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")
os.environ["CIFAR10_ROOT"] = str(CIFAR10_ROOT)


def pytest_configure(config):
    with contextlib.suppress(ImportError):
        start_kernels_elsewhere(config)


def start_kernels_elsewhere(config):
    """Have nbval's kernels start in a temporary folder, whatever the recipe: they write there."""
    import nbval.plugin

    folder = tempfile.TemporaryDirectory(prefix="notebooks-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    RunningKernel = nbval.plugin.RunningKernel

    def start(kernel_name, cwd=None, **options):
        with mock.patch.dict(os.environ, PYTHONPATH=path):  # a kernel inherits it
            return RunningKernel(kernel_name, cwd=folder.name, **options)

    nbval.plugin.RunningKernel = start


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run each test in a folder of its own, so that none writes into the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cifar10_root():
    """The folder that holds the real CIFAR-10; the test is skipped where it does not."""
    if not (CIFAR10_ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {CIFAR10_ROOT}: set CIFAR10_ROOT to the folder that holds it")
    return CIFAR10_ROOT
