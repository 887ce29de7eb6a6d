"""What pytest sees to, whatever is exported: `smoke`, in a temporary folder."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from common import ROOT


def test_notebooks_train_smoke_and_write_elsewhere_whatever_is_exported(tmp_path):
    pytest.importorskip("nbval")
    code = """
import importlib.util, os, pathlib
assert importlib.util.find_spec("cifar10")
assert [os.environ.get(k) for k in ("RECIPE", "SEED", "PRECISION")] == ["smoke", "1", None]
pathlib.Path("checkpoints").mkdir()
"""
    cells = [nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    stubs = {"cifar10": "from pathlib import Path as get_root", "torch": "set_num_threads = print"}
    for name, text in stubs.items():  # which take no seconds to import
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    exported = {**os.environ, "RECIPE": "muon", "SEED": "7", "PRECISION": "bfloat16"}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "one.ipynb"]
    done = subprocess.run(command, env=exported, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout
    assert not (tmp_path / "checkpoints").exists()
