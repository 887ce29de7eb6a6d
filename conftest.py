"""Whatever pytest collects here, a notebook alone, too, is `smoke`, and writes nothing here."""

import os
import tempfile
from pathlib import Path

# Before torch is imported, and for kernels and other processes, which inherit it: with two threads
# a step takes up to 50 times as long where another process is busy.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent
from cifar10 import get_root  # noqa: E402

torch.set_num_threads(1)
# Not what is exported, which is meant for notebooks: tests would train that recipe for hours.
os.environ |= {"RECIPE": "smoke", "SEED": "1"}
os.environ.pop("PRECISION", None)
# Absolute: what is meant is relative to this folder, not to the one in which a test runs.
CIFAR10_ROOT = get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")
os.environ["CIFAR10_ROOT"] = str(CIFAR10_ROOT)


def pytest_configure(config):
    """Have IPython move nbval's kernels to a temporary folder first of all: they write there."""
    folder = tempfile.TemporaryDirectory(prefix="notebooks-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    startup = Path(folder.name, "profile_default", "startup", "move.py")
    startup.parent.mkdir(parents=True)
    code = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nos.chdir({folder.name!r})\n"
    code += "import cifar10\n_all = cifar10.load_sample()\n"  # of which 200 photographs are enough
    code += "_few = [type(part)(*part[:200]) for part in (_all.train, _all.test)]\n"
    code += "cifar10.load_sample = lambda: cifar10.Data(_all.classes, *_few)\n"
    startup.write_text(code, encoding="utf-8")
    os.environ["IPYTHONDIR"] = folder.name


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run each test in a folder of its own, so that none writes into the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IPYTHONDIR")  # that of nbval's kernels, not of those that a test starts


@pytest.fixture
def cifar10_root():
    """The folder that holds the real CIFAR-10; the test is skipped where it does not."""
    if not (CIFAR10_ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {CIFAR10_ROOT}: set CIFAR10_ROOT to the folder that holds it")
    return CIFAR10_ROOT
