"""The experiments around the notebooks: each measures and runs what it says."""

import contextlib
import json
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

import benchmark
import replicate
import tune
import utils
from conftest import ROOT, make_run
from models import Session8Net

# The benchmark; no test asserts a time.


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_loop_runs_as_many_steps_as_it_is_asked_for(kind, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZE", 1024)
    updates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (updates.append(1), step(self)))
    run = benchmark.KINDS[kind]("gn")
    run(3)
    assert len(updates) == (0 if kind == "ours, evaluation" else 3)


def test_the_ratios_are_of_medians_and_against_the_faster_textbook_loop():
    times = {
        "textbook, 0 workers": [90.0, 100.0, 300.0],
        "textbook, 2 workers": [80.0, 80.0, 200.0],
        "ours": [20.0, 20.0, 50.0],
        "floor": [19.0, 18.0, 19.0],
        "ours, evaluation": [6.0, 6.0, 7.0],
    }
    measured = {kind: (values, 1.0) for kind, values in times.items()}
    assert benchmark.make_ratios("bn", measured) == "| bn | 4.00 | 0.95 | 0.060 |"
    row = benchmark.make_rows("bn", measured)[2]
    assert row == "| bn | ours | 20.0 (20.0 to 50.0) | 6,400 | 7.8 | 1.00 |"
    row = benchmark.make_rows("bn", measured)[4]  # 79 steps
    assert row == "| bn | ours, evaluation | 6.0 (6.0 to 7.0) | 21,333 | 0.5 | 1.00 |"


@pytest.mark.parametrize("options", [["--steps", "392"], ["--steps", "0"], ["--repeats", "0"]])
def test_a_measurement_is_of_at_most_an_epoch(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--steps must be from 1 to 391, one epoch" in capsys.readouterr().err


# The replication.


def test_two_seeds_run_at_a_time_each_as_its_own_notebook(tmp_path):
    command = [sys.executable, ROOT / "experiments" / "replicate.py", "--norms", "ln"]
    command += ["--recipes", "smoke", "--seeds", "2", "3", "--processes", "2", "--keep", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("0 of 2 runs are in results/ already.")
    trained = []
    for seed in (2, 3):
        assert f"smoke-ln-seed{seed} is done" in said.stdout + said.stderr
        notebook = nbformat.read(tmp_path / f"smoke-ln-seed{seed}.ipynb", 4)
        text = json.dumps(notebook)
        assert f"| ln | recipe smoke | seed {seed}: " in text
        assert "CPU threads: 1\\n" in text
        trained += [cell for cell in notebook.cells if "utils.fit(" in cell.source]
    assert trained[0].outputs[1] != trained[1].outputs[1], "the seed changed nothing"


def test_a_run_whose_result_is_there_is_done(tmp_path):
    run = make_run()
    path = tmp_path / f"{run.name}.json"
    assert not replicate.is_done(run, tmp_path)
    path.write_text(json.dumps({**asdict(run), "history": {}}))
    assert replicate.is_done(run, tmp_path)
    with pytest.raises(ValueError, match="onecycle-bn-seed1.json is of other hyperparameters"):
        replicate.is_done(make_run(lr=0.3), tmp_path)
    path.write_text("half of it")
    with pytest.raises(ValueError, match="is not the result of a run"):
        replicate.is_done(run, tmp_path)


def test_a_job_that_fails_stops_no_other(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CIFAR10_ROOT", "data")
    failures = replicate.run_all(operator.truediv, [(1, 0), (6, 4)], processes=1, threads=1)
    assert [type(error) for error in failures] == [ZeroDivisionError]
    assert "1.5" in "".join(capsys.readouterr())


def test_an_interrupt_ends_the_jobs_and_begins_no_other():
    job = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(300)"
    code = (
        "import replicate, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        f"replicate.run_all(exec, [({job!r},)] * 3, 1, 1)"
    )
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT / "experiments")}, "text": True}
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)
    try:
        end = time.monotonic() + 120
        while not Path("begun").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert Path("begun").exists()
        os.killpg(parent.pid, signal.SIGINT)  # what Ctrl-C does
        assert "Interrupted. Run this again" in parent.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_run_that_fails_says_which_and_why(monkeypatch):
    monkeypatch.setenv("RECIPE", "smoke")
    run = make_run(name="none")
    with pytest.raises(RuntimeError, match="none-bn-seed1 failed: ValueError: RECIPE is 'none'"):
        replicate.run_notebook(run)


# The search for a recipe.


def test_the_held_out_images_are_training_images_that_are_not_trained_on():
    numbers = torch.arange(50_000)
    trained_on, held_out = tune.hold_out(torch.utils.data.TensorDataset(numbers), tune.HELD_OUT)
    assert (len(trained_on), len(held_out)) == (45_000, 5_000)
    assert torch.cat([trained_on.tensors[0], held_out.tensors[0]]).sort().values.equal(numbers)
    again = tune.hold_out(torch.utils.data.TensorDataset(numbers), tune.HELD_OUT)[1]
    assert held_out.tensors[0].equal(again.tensors[0])


@pytest.mark.parametrize("name", ["trial", tune.AVERAGED, tune.NO_DECAY, tune.ALTERNATING])
def test_a_trial_writes_its_accuracy_on_held_out_images_and_sees_no_test_image(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "HELD_OUT", 200)
    data = utils.draw_gratings()
    without_test = utils.Data(data.classes, data.train, None)
    monkeypatch.setattr(utils, "get_data", lambda *_: without_test)
    run = make_run("smoke", "gn", 3, name=name, epochs=2)
    said = tune.run_trial(run, tmp_path / "tuning")
    path = tmp_path / "tuning" / f"{name}-gn-seed3.json"
    result = json.loads(path.read_text())
    assert (result["data"]["train_size"], result["data"]["validation_size"]) == (800, 200)
    assert result["recipe"] == asdict(run.recipe)
    accuracies = result["history"]["validation_acc"]
    assert len(accuracies) == 2
    assert said == f"{name}-gn-seed3: {accuracies[-1]:.2f} %"
    assert replicate.is_done(run, path.parent)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_trial_changes_what_its_name_says_and_is_a_valid_recipe():
    for trial, changes in tune.TRIALS.items():
        recipe = asdict(tune.make_run(trial, "bn", 1).recipe)
        start = asdict(tune.START) | {"name": trial}
        assert {key for key in recipe if recipe[key] != start[key]} == set(changes)
        assert all(f"-{value:g}" in trial for value in changes.values())


def test_averaged_weights_follow_the_steps_and_are_the_ones_tested():
    model = tune.AveragedNet(nn.Linear(1, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_post_hook(model.update)
    weights = []
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(torch.ones(1, 1)).sum().backward()  # each step lowers the weight by 1
        optimizer.step()
        weights.append(model(torch.ones(1, 1)).item())
    first = weights[0]
    assert weights == pytest.approx([first, first - 1, first - 2])
    behind = 0.999 * 0.001 + 0.001 * 2
    assert model.eval()(torch.ones(1, 1)).item() == pytest.approx(first - behind, abs=1e-6)


def test_only_the_norms_are_spared_the_weight_decay():
    model = Session8Net("bn")
    optimizer = utils.get_optimizer(model, utils.get_recipe("onecycle"))
    tune.spare_norms(optimizer)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if not decays[p]} == {
        name for name, _ in model.named_parameters() if ".norm." in name
    }
    assert len(decays) == len(list(model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}


def test_the_gradient_of_each_filter_loses_its_mean_and_nothing_else():
    model = Session8Net("bn")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(tune.centralize_gradients)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(4, 3, 32, 32))[:, 0].sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        if parameter.ndim == 4:  # a convolution's
            for of_a_filter in gradient:
                of_a_filter -= of_a_filter.mean()
        assert torch.allclose(old - parameter, gradient, atol=1e-6)
        assert gradient.abs().max() > 1e-4, "else this would show nothing"


def test_an_alternating_flip_mirrors_each_image_in_every_other_epoch():
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    dataset = tune.AlternatingFlip(images, torch.arange(6))
    index = torch.tensor([4, 1, 0])
    for epoch, mirrored in ((0, [0, 1, 0]), (1, [1, 0, 1]), (2, [0, 1, 0])):
        dataset.get_epoch = lambda epoch=epoch: epoch
        seen, labels = dataset[index]
        assert labels.equal(index)
        for image, i, flip in zip(seen, index, mirrored, strict=True):
            assert image.equal(images[i].flip(-1) if flip else images[i])
