"""Runs of the notebooks: each is the run that was asked for, and a failure stops no other."""

import argparse
import contextlib
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from common import NOTEBOOKS, ROOT, make_run
from experiments import replicate


@pytest.fixture
def repository(tmp_path):
    """A copy of the code and the notebooks: a run leaves its checkpoint where its notebook is."""
    copy = tmp_path / "repository"
    shutil.copytree(ROOT / "experiments", copy / "experiments")
    for path in (*ROOT.glob("*.py"), *NOTEBOOKS.values()):
        shutil.copy(path, copy)
    return copy


def test_two_seeds_run_at_a_time_each_as_its_own_notebook(repository, tmp_path):
    command = [sys.executable, "-m", "experiments.replicate", "--norms", "ln"]
    command += ["--recipes", "smoke", "--seeds", "2", "3", "--processes", "2", "--keep", tmp_path]
    said = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("0 of 2 runs are in results/ already.")
    assert re.search(
        r"^smoke-ln-seed\d is done, .* \[1 of 2, about \d+ minutes left\]$", said.stdout, re.M
    )
    assert not set("\r\x1b") & set(said.stdout + said.stderr), "no terminal, but control characters"
    trained = []
    for seed in (2, 3):
        assert f"smoke-ln-seed{seed} is done" in said.stdout
        for epoch in (1, 2, 3):  # while it runs
            assert re.search(rf"^smoke-ln-seed{seed}: +{epoch} +0\.", said.stdout, re.M)
        (path,) = tmp_path.rglob(f"smoke-ln-seed{seed}.ipynb")
        assert path.parent.name in ("float32", "bfloat16")
        notebook = nbformat.read(path, 4)
        text = json.dumps(notebook)
        assert f"| ln | recipe smoke | seed {seed} | " in text
        assert "CPU threads: 1\\n" in text
        trained += [cell for cell in notebook.cells if "utils.fit(" in cell.source]
    assert trained[0].outputs != trained[1].outputs, "the seed changed nothing"


def test_what_is_done_is_said_also_where_nothing_is_left(monkeypatch, capsys):
    folder = ROOT / "results" / "tuning"
    options = argparse.Namespace(processes=1, threads=1)
    runs = [make_run("smoke", norm) for norm in ("bn", "gn")]
    monkeypatch.setattr(replicate, "run_all", lambda _, jobs, *__: print(*jobs))
    replicate.run_left(print, runs, folder, options, is_done=lambda run, _: run.norm == "bn")
    assert capsys.readouterr().out.splitlines() == [
        "1 of 2 runs are in results/tuning/ already.",
        "smoke-gn-seed1",
    ]


def test_a_job_that_fails_stops_no_other(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CIFAR10_ROOT", "data")
    jobs = {"one": (1, 0), "two": (6, 4)}
    with pytest.raises(SystemExit, match="1 of 2 runs failed; run this again"):
        replicate.run_all(operator.truediv, jobs, processes=1, threads=1)
    said = capsys.readouterr().out
    assert "1.5 [" in said
    assert "one failed: ZeroDivisionError: division by zero" in said


def test_a_process_that_is_killed_stops_no_other_and_is_named(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CIFAR10_ROOT", "data")
    jobs = {"killed": ("import os; os.kill(os.getpid(), 9)",), "other": ("pass",)}
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        replicate.run_all(exec, jobs, processes=2, threads=1)
    said = capsys.readouterr().out
    assert "killed failed: BrokenProcessPool: A process" in said
    assert "None [" in said, "what exec returns"


@pytest.mark.parametrize("to", ["all", "the script alone"])
def test_an_interrupt_ends_the_jobs_and_begins_no_other(to):
    job = "import os, pathlib, time; pathlib.Path('begun').write_text(str(os.getpid()))"
    job += "; time.sleep(300)"
    code = (
        "from experiments import replicate; import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        f"replicate.run_all(exec, dict.fromkeys('abc', ({job!r},)), 1, 1)"
    )
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)
    try:
        end = time.monotonic() + 120
        while not Path("begun").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert Path("begun").exists()
        if to == "all":
            os.killpg(parent.pid, signal.SIGINT)  # what Ctrl-C does
        else:
            parent.terminate()
        assert "Interrupted. Run this again" in parent.communicate(timeout=60)[1]
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path("begun").read_text()), 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_run_that_fails_says_why(repository, monkeypatch):
    monkeypatch.setattr(replicate, "ROOT", repository)
    run = make_run(name="none")
    with pytest.raises(RuntimeError, match="^ValueError: RECIPE is 'none'"):
        replicate.run_notebook(run)


@pytest.mark.parametrize("norm", NOTEBOOKS)
def test_a_norm_with_a_notebook_runs_it_as_it_is(norm):
    assert replicate.read_notebook(norm) == nbformat.read(NOTEBOOKS[norm], 4)


def test_a_norm_without_a_notebook_runs_another_s(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(replicate, "ROOT", repository)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    replicate.run_notebook(make_run("smoke", "none", 3), tmp_path)
    path = tmp_path / "float32" / "smoke-none-seed3.ipynb"
    text = path.read_text(encoding="utf-8")
    assert '"execution":' not in text, "times of the cells"
    assert "| none | recipe smoke | seed 3 | float32" in text
    assert "ScaleAndShift-3" in text
    assert "BatchNorm2d-3" not in text
    assert "Total params: 48,448" in text


def test_the_precision_is_that_of_the_variable_or_the_machine_s(monkeypatch):
    for precision in ("float32", "bfloat16"):
        monkeypatch.setenv("PRECISION", precision)
        assert replicate.parse([]).precision == precision
    monkeypatch.setenv("PRECISION", "float16")
    with pytest.raises(SystemExit, match="must be one of 'native', 'float32', 'bfloat16'"):
        replicate.parse(["--help"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--processes", "0"], "it is '0', but must be a whole number from 1 on"),
        (["--threads", "-1"], "--threads"),
        (["--threads", "1.5"], "it is '1.5', but must be a whole number from 1 on"),
        (["--seeds", "4294967296"], "from 0 to 4294967295"),
        (["--norms", "BN"], "invalid choice: 'BN'"),
        (["--recipes", "twocycle"], "'onecycle'"),
        (["--keep", __file__], f"'{__file__}' can't be a folder"),
    ],
)
def test_an_option_out_of_its_range_says_what_is_right(options, said, capsys):
    with pytest.raises(SystemExit):
        replicate.parse(options)
    assert said in capsys.readouterr().err


def test_a_folder_may_name_a_variable_and_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", str(tmp_path))
    assert replicate.parse(["--keep", "$KEPT/notebooks"]).keep == tmp_path / "notebooks"
    assert (tmp_path / "notebooks").is_dir()


def test_a_run_that_is_asked_for_twice_is_run_once():
    options = replicate.parse(["--seeds", "2", "2", "1", "--norms", "bn", "ln", "bn"])
    runs = replicate.get_runs([make_run().recipe], options)
    assert [(run.norm, run.seed) for run in runs] == [("bn", 2), ("ln", 2), ("bn", 1), ("ln", 1)]
