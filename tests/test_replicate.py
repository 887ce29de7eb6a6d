"""Many runs at a time: each is the one that was asked for."""

import os
import re
import shutil
from unittest import mock

import nbformat
import pytest

from common import NOTEBOOKS, ROOT, make_run, write_result
from experiments import replicate


def test_a_run_is_its_notebook_with_its_parameters(tmp_path, monkeypatch, capsys):
    pytest.importorskip("papermill", reason="needs experiments/requirements.txt")
    copy = tmp_path / "repository"  # since a run leaves its checkpoint beside the notebook
    shutil.copytree(ROOT / "experiments", copy / "experiments")
    for path in (*ROOT.glob("*.py"), ROOT / "sample.png"):
        shutil.copy(path, copy)
    code = (ROOT / "runs.py").read_text(encoding="utf-8").replace("epochs=5", "epochs=2")  # smoke's
    (copy / "runs.py").write_text(code, encoding="utf-8")
    code = (ROOT / "cifar10.py").read_text(encoding="utf-8")  # of the sample, 200 images per part
    code = code.replace("*parts)", "*(TensorDataset(*part[:200]) for part in parts))")
    (copy / "cifar10.py").write_text(code, encoding="utf-8")
    skipped = "post_|losses|nets|C1|shown|layer ="  # takes time, or needs what does
    notebook = nbformat.read(NOTEBOOKS["bn"], 4)  # which a norm without one of its own takes
    notebook.cells = [
        c for c in notebook.cells if "import" in c.source or not re.search(skipped, c.source)
    ]
    nbformat.write(notebook, copy / NOTEBOOKS["bn"].name)
    kept, make = tmp_path / "kept.ipynb", replicate.make_job
    replace = {os.devnull: str(kept)}
    monkeypatch.setattr(replicate, "make_job", lambda run: [replace.get(x, x) for x in make(run)])
    monkeypatch.setattr(replicate, "ROOT", copy)
    options = ["--recipes", "smoke", "--norms", "none", "--seeds", "3"]
    monkeypatch.setattr("sys.argv", ["replicate", *options])
    monkeypatch.setenv("PRECISION", "float32")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # ipykernel keeps the terminal from such a kernel
    replicate.main()
    said = capsys.readouterr().out
    assert said.startswith("0 of 1 runs are done already.\n")
    assert re.search(r"^smoke-none-seed3 is done, after .* \[1 of 1, about 0 min", said, re.M)
    cells = nbformat.read(kept, 4).cells
    assert any('results = "results"' in cell.source for cell in cells)
    text = "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
    for epoch in (1, 2):  # in the terminal as it comes, and in the notebook
        assert re.search(rf"^smoke-none-seed3: +{epoch}\b", said, re.M)
        assert re.search(rf"^ +{epoch} ", text, re.M)
    assert "No normalization, 2 epochs of smoke, seed 3" in text
    assert "convolutions in float32\n" in text
    assert "Total params: 48,448" in text
    assert "ScaleAndShift-3" in text


def test_a_run_that_has_its_result_is_not_started_and_data_are_fetched_once(
    tmp_path, monkeypatch, capsys
):
    write_result(tmp_path / "results", make_run("smoke", "gn", 2))
    fetched = []
    monkeypatch.setattr(replicate, "load_cifar10", fetched.append)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    started = mock.Mock(return_value="It is done.")
    monkeypatch.setattr(replicate, "run_job", started)
    monkeypatch.setattr(replicate, "ROOT", tmp_path)
    monkeypatch.setenv("PRECISION", "float32")
    options = ["--recipes", "smoke", "--norms", "gn", "--seeds", "2", "3"]
    monkeypatch.setattr("sys.argv", ["replicate", *options])
    replicate.main()
    assert [call.args[0] for call in started.call_args_list] == ["smoke-gn-seed3"]
    assert capsys.readouterr().out.startswith("1 of 2 runs are done already.\n")
    assert fetched == [], "smoke needs none"
    monkeypatch.setattr("sys.argv", ["replicate", "--recipes", "quick", "--seeds", "2", "3"])
    replicate.main()
    assert fetched == [tmp_path]


def test_a_job_that_fails_stops_no_other_and_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", "data")
    jobs = {
        "wrong": "print('begun'); 1 / 0",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "right": "import os; print(*map(os.environ.get, ['OMP_NUM_THREADS', 'CIFAR10_ROOT']))",
    }
    for name, code in jobs.items():
        (tmp_path / f"job_{name}.py").write_text(code, encoding="utf-8")
    with pytest.raises(SystemExit, match="2 of 3 runs failed; to go on, give the same command"):
        replicate.run_all({name: [f"job_{name}"] for name in jobs}, processes=2, threads=7)
    said = capsys.readouterr().out
    assert "wrong: begun\n" in said
    assert "wrong failed (status 1): ZeroDivisionError: division by zero [" in said
    assert [f"[{n} of 3" in said for n in (1, 2, 3)] == [True] * 3
    assert "killed failed (status -9)" in said
    assert f"right: 7 {tmp_path / 'data'}\n" in said  # absolute: it runs elsewhere
    assert "right is done" in said
