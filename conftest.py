"""Make everything that pytest collects, even one notebook, run `smoke` and write elsewhere."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

# Set before torch is imported, and inherited by kernels and other processes. With two threads a
# step takes up to 50 times as long while another process is busy.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent
from cifar10 import get_root  # noqa: E402

torch.set_num_threads(1)
# Override variables exported for notebooks: training their recipe could take hours.
os.environ |= {"RECIPE": "smoke", "SEED": "1"}
os.environ.pop("PRECISION", None)
# Make it absolute, since every test runs in its own folder.
CIFAR10_ROOT = get_root(os.environ.get("CIFAR10_ROOT"), ROOT / "data")
os.environ["CIFAR10_ROOT"] = str(CIFAR10_ROOT)

WHOLE = all(map(find_spec, ("hypothesis", "pandas", "scipy", "tabulate")))
NEEDING = ("compare", "figures", "frames", "report", "results", "robustness", "stats", "tables")
collect_ignore = [] if WHOLE else [f"tests/test_{name}.py" for name in NEEDING]


def pytest_report_header():
    return [] if WHOLE else "Without experiments/requirements.txt, its tests are left out."


def pytest_configure(config):
    """Make IPython start nbval's kernels in a temporary folder, since they write files."""
    folder = tempfile.TemporaryDirectory(prefix="notebooks-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    startup = Path(folder.name, "profile_default", "startup", "move.py")
    startup.parent.mkdir(parents=True)
    code = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nos.chdir({folder.name!r})\n"
    code += "import cifar10\n_all = cifar10.load_sample()\n"  # 200 images per part are enough
    code += "_few = [type(part)(*part[:200]) for part in (_all.train, _all.test)]\n"
    code += "cifar10.load_sample = lambda: cifar10.Data(_all.classes, *_few)\n"
    startup.write_text(code, encoding="utf-8")
    os.environ["IPYTHONDIR"] = folder.name


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run each test in its own folder, so that none writes into the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IPYTHONDIR")  # meant for nbval's kernels, not for those that a test starts


@pytest.fixture
def cifar10_root():
    """Return the folder that holds the real CIFAR-10; skip the test if there is none."""
    if not (CIFAR10_ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {CIFAR10_ROOT}: set CIFAR10_ROOT to the folder that holds it")
    return CIFAR10_ROOT
