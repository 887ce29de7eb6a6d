"""Three normalizations side by side: which runs are taken, and what is missing or differs."""

from pathlib import Path

import pytest
from matplotlib.image import imread

import utils
from cifar10 import load_sample
from common import make_run, write_result
from experiments import compare

NORMS = ("bn", "gn", "ln")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes results of `quick`, seed 7, into a folder of the repository."""
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare.records, "load_data", lambda recipe: load_sample())
    monkeypatch.setenv("RECIPE", "quick")
    monkeypatch.setenv("SEED", " 7")
    monkeypatch.setattr("sys.argv", ["compare"])
    history = {column: [60.0, 70.0, 80.0, 85.0] for column in utils.COLUMNS}

    def write(folder, *norms, **fields):
        made = {"history": history, "test_predictions": "0123456789" * 50} | fields
        for norm in norms:
            write_result(tmp_path / folder, make_run("quick", norm, 7), **made)

    return write


def test_ones_own_runs_are_taken_where_there_are_three(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRECISION", "float32")
    folders = [tmp_path / name / "float32" for name in ("runs", "results")]
    write("runs", "bn", "ln")
    with pytest.raises(FileNotFoundError, match="RECIPE=quick SEED=7") as error:
        compare.main()
    assert all(str(folder) in str(error.value) for folder in folders)
    for folder, norms in (("results", NORMS), ("runs", ["gn"])):
        write(folder, *norms)
        compare.find_results("quick", 7, folders)
        assert f"those in {tmp_path / folder}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["compare", "--recipe", "muon", "--seed", "2"])
    with pytest.raises(FileNotFoundError, match="of muon with seed 2"):
        compare.main()


def test_committed_runs_are_shown_on_any_machine_and_what_differs_is_said(
    write, monkeypatch, capsys
):
    monkeypatch.setattr(utils, "get_precision", lambda name, device: name or "bfloat16")
    write("results", *NORMS)
    compare.main()
    assert "differ" not in capsys.readouterr().out
    for name in ("comparison.png", "comparison-images.png"):
        assert imread(Path(name)).std() > 0, "something is drawn"
    write("results", "gn", loss={"class": "another"})  # which the others' results do not tell
    compare.main()
    assert "Besides the norm, these runs differ in: loss\n" in capsys.readouterr().out
    monkeypatch.setenv("PRECISION", "bfloat16")
    with pytest.raises(FileNotFoundError):
        compare.main()
