"""A run: its recipe, what it is known by, its checkpoint and its result. Nothing is lost."""

import errno
import functools
import json
import math
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

import cifar10
import runs
import utils
from common import CPU, MUON, ROOT, make_dataset, make_run, prepare
from runs import Recipe

SMALL = {"batch_size": 32, "epochs": 3, "dropout": 0.1}  # on 64 images, 3 epochs of 2 steps
RUN = make_run(**SMALL)
MUON_RUN = make_run(**SMALL, **MUON)
PATH = Path("checkpoints/float32/onecycle-bn-seed1.pt")

# --- The recipe


def test_the_reference_recipe_is_the_published_one():
    published = {"data": "CIFAR-10", "epochs": 20, "batch_size": 128, "loss": "nll"}
    published |= {"optimizer": "sgd", "lr": 0.04, "momentum": 0.9, "nesterov": False}
    published |= {"weight_decay": 0.0, "scheduler": "step", "step_epochs": 6, "step_factor": 0.1}
    published |= {"dropout": 0.05, "crop": 0, "rotation": 0.0, "resize": 0.0, "flip": 0.1}
    assert published.items() <= asdict(runs.get_recipe(" reference\n")).items()


def test_an_unknown_recipe_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="'One'.*'muon', 'quick', 'onecycle', 'reference'"):
        runs.get_recipe("One")


WRONG = [{"name": "../x"}, {"optimizer": "adam"}, {"lr": math.nan}, {"crop": 32}, {"dropout": 1}]


@pytest.mark.parametrize("wrong", [*WRONG, {"groups": 0}, {"small_size": 19}], ids=repr)
def test_a_recipe_that_would_train_something_else_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{name} is {value!r}"):
        Recipe(**{"name": "x"} | wrong)


# --- Identity


def test_a_run_is_known_by_recipe_norm_seed_and_precision():
    changes = ({}, {"recipe": "reference"}, {"norm": "gn"}, {"seed": 2}, {"precision": "bfloat16"})
    paths = {make_run(**change).get_path("runs", ".pt").as_posix() for change in changes}
    assert len(paths) == 5
    assert {"runs/float32/onecycle-bn-seed1.pt", "runs/bfloat16/onecycle-bn-seed1.pt"} <= paths
    assert "NOT CIFAR-10" in make_run("smoke").title
    assert make_run(norm="rms").title.startswith("rms normalization")
    assert utils.LABELS["rms"] == "rms", "a norm of the user's own"


@pytest.mark.parametrize("wrong", [{"norm": "../bn"}, {"precision": "half"}, {"seed": 2**32}])
def test_a_run_that_has_no_name_is_refused(wrong):
    with pytest.raises(ValueError, match="(?i)^(norm|precision|seed) is "):
        make_run(**wrong)


def test_a_seed_is_a_whole_number():
    assert runs.get_seed(" 42 ") == 42
    for text in ("", "1.5", "-1"):
        with pytest.raises(ValueError, match="SEED is"):
            runs.get_seed(text)


def test_a_commit_is_clean_whatever_results_are_there(tmp_path, monkeypatch):
    def git(*what):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run([*command, *what], check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setattr(runs, "get_code", runs.get_code.__wrapped__)
    Path("results").mkdir()
    for path in (Path("runs.py"), Path("results/old.json")):
        path.write_text("1", encoding="utf-8")
    assert runs.get_code() == {}
    for command in ("init --quiet", "add .", "commit --quiet --message first"):
        git(*command.split())
    Path("results/old.json").unlink()
    Path("results/new.json").touch()
    clean = {"commit": git("rev-parse", "HEAD").strip(), "clean": True}
    assert clean.items() <= runs.get_environment(CPU, "float32").items()
    Path("runs.py").write_text("2", encoding="utf-8")
    assert runs.get_code() == clean | {"clean": False}


# --- Checkpoint


def fit(run=RUN, folder="checkpoints", parts=None):
    """Return the history, without its times, and the weights of the run."""
    parts = parts or prepare(run, make_dataset(64))
    history = utils.fit(run, *parts, folder=folder)
    return {k: v for k, v in history.items() if k != "seconds"}, parts[0].state_dict()


@functools.cache
def get_whole(run=RUN):
    """Return the same of a run that was never interrupted."""
    return fit(run, "whole")


def is_same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][k], other[1][k]) for k in one[1])


def interrupt(epoch, run=RUN):
    """Run into that epoch, as a user who interrupts the cell, and return what was trained."""
    train, calls, parts = utils.train, [], prepare(run, make_dataset(64))

    def stop(*args):
        trained = train(*args)
        calls.append(args)
        if len(calls) == epoch:  # the model has moved on, but the epoch is not finished
            raise KeyboardInterrupt
        return trained

    with mock.patch.object(utils, "train", stop), pytest.raises(KeyboardInterrupt):
        utils.fit(run, *parts)
    return parts


@pytest.mark.parametrize("again", [False, True], ids=["the notebook", "the cell alone"])
@pytest.mark.parametrize(
    ("recipe", "norm"), [("onecycle", "bn"), ("reference", "none"), ("muon", "gn")]
)
def test_an_interrupted_run_goes_on_to_the_same_digits(recipe, norm, again, capsys):
    run = make_run(recipe, norm, **SMALL)
    parts = interrupt(3, run)
    torch.rand(5)  # the generator's state is not that of the run any more
    capsys.readouterr()
    assert is_same(fit(run, parts=parts if again else None), get_whole(run))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"Going on after epoch 2 from {run.get_path('checkpoints', '.pt')}")
    assert [line.split()[0] for line in said[2:5]] == ["1", "2", "3"]


@pytest.mark.parametrize("again", [False, True], ids=["from block 6", "the cell alone"])
def test_a_model_that_has_moved_is_not_trained_as_a_new_one(again):
    model, train_loader, test_loader, optimizer, scheduler, loss = interrupt(1)
    if not again:
        optimizer = utils.get_optimizer(model, RUN.recipe)
        scheduler = utils.get_scheduler(optimizer, RUN.recipe, len(train_loader))
    with pytest.raises(RuntimeError, match="trained already.* block 5"):
        utils.fit(RUN, model, train_loader, test_loader, optimizer, scheduler, loss)


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_runs import MUON_RUN, fit
calls = []

def cut(descriptor):
    calls.append(descriptor)
    if len(calls) == 2:  # in the middle of writing the second checkpoint
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = cut
fit(MUON_RUN)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_goes_on_to_the_same_digits(capsys):
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert is_same(fit(MUON_RUN), get_whole(MUON_RUN))
    assert "Going on after epoch 1 " in capsys.readouterr().out


CHANGES = [  # what a user may change in a cell, in place, and how a message calls it
    ("network", lambda parts: setattr(parts[0].layers.C5.norm, "eps", 0.1)),
    ("train_loader", lambda parts: parts[1].transforms.transforms.pop(1)),
    ("train_loader", lambda parts: setattr(parts[1], "batch_size", 16)),
    ("optimizer", lambda parts: parts[3].param_groups[0].update(momentum=0.8)),
    ("scheduler", lambda parts: setattr(parts[4], "total_steps", 99)),
    ("loss", lambda parts: setattr(parts[5], "reduction", "sum")),
]
changes = pytest.mark.parametrize(("name", "change"), CHANGES)


@changes
def test_a_checkpoint_of_other_parts_is_refused_and_kept(name, change):
    interrupt(2)
    content, parts = PATH.read_bytes(), prepare(RUN, make_dataset(64))
    change(parts)
    with pytest.raises(ValueError, match=f"{PATH} was made with another {name}"):
        fit(parts=parts)
    assert PATH.read_bytes() == content


def test_a_checkpoint_of_another_recipe_or_environment_is_refused(monkeypatch):
    interrupt(2)
    with pytest.raises(ValueError, match="another recipe"):
        fit(make_run(**SMALL, small_epochs=1))
    monkeypatch.setattr(runs, "get_code", lambda: {"commit": "another"})
    with pytest.raises(ValueError, match="another environment"):
        fit()


def test_a_damaged_checkpoint_is_named_and_kept():
    interrupt(2)
    good = PATH.read_bytes()
    start, end = good[: len(good) // 2], good[len(good) // 2 :]
    for bad in (b"", start, start + bytes([end[0] ^ 255]) + end[1:]):
        PATH.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{PATH} is damaged"):
            fit()
        assert PATH.read_bytes() == bad


class Trap:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_code_in_a_checkpoint_is_not_run():
    PATH.parent.mkdir(parents=True)
    torch.save({"identity": Trap()}, PATH)
    with pytest.raises(ValueError, match="is damaged"):
        fit()
    assert not Path("trapped").exists()
    torch.load(PATH, weights_only=False)
    assert Path("trapped").exists()  # the trap works: loaded without care it does run


def test_a_smoke_run_learns_its_data():
    run = make_run("smoke")
    history = utils.fit(run, *utils.assemble(run, utils.get_data(run.recipe, "nowhere", CPU)))
    assert history["test_acc"][-1] > 60  # chance is 10


# --- A run that diverges


@pytest.mark.parametrize("rate", [{"lr": 1e9}, MUON | {"lr": 1e9, "affine_lr": 1e9}])
def test_a_huge_rate_ends_in_an_error_and_is_kept_nowhere(rate):
    run = make_run(epochs=1, batch_size=10, **rate)
    with pytest.raises(FloatingPointError, match="diverged.*lower learning rate"):
        utils.fit(run, *prepare(run, make_dataset(100)))
    assert not PATH.exists()


def break_average(model, *_):
    model.layers.C1.norm.running_var[0] = math.inf  # which divides to 0: the loss is finite


def break_momentum(model, optimizer):
    optimizer.state[model.layers.C1.conv.weight]["momentum_buffer"][0] = math.inf


@pytest.mark.parametrize(
    ("breaking", "step", "named"),
    [
        (lambda model, _: model.layers.C1.conv.weight.data.fill_(math.inf), 3, "epoch 2, step 2"),
        (break_average, 4, "weights"),
        (break_momentum, 4, "momentum"),
    ],
)
def test_an_epoch_that_is_not_finite_leaves_the_last_checkpoint(breaking, step, named):
    parts, steps = prepare(RUN, make_dataset(64)), []

    def explode(optimizer, *_):
        steps.append(1)
        if len(steps) == step:
            breaking(parts[0], optimizer)

    parts[3].register_step_post_hook(explode)
    with pytest.raises(FloatingPointError, match=f"{named}.* not finite"):
        utils.fit(RUN, *parts)
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    runs.check_finite(saved=saved)
    assert list(PATH.parent.iterdir()) == [PATH]


# --- Result

HISTORY = {column: [10.0] * 20 for column in utils.COLUMNS}


def save_result(change=lambda parts: 0, history=HISTORY, clean=51.5, prediction=None, **run):
    """Save the result of a run that never ran, and return what was said."""
    run, dataset = make_run(**run), make_dataset(20)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset, stand_in=run.recipe.name == "smoke")
    prediction = F.one_hot(dataset.tensors[1], 10).float() if prediction is None else prediction
    parts = utils.assemble(run, data)
    change(parts)
    return utils.save_result(run, data, parts, history, clean, prediction)


def read_all(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_result_says_what_ran_and_what_came_out():
    run, dataset = make_run("muon", "gn", 7, batch_size=32, epochs=2), make_dataset(64)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset)
    parts = utils.assemble(run, data)
    history = utils.fit(run, *parts)
    path = Path("runs/float32/muon-gn-seed7.json")
    prediction = F.one_hot(dataset.tensors[1], 10).float()
    assert path.as_posix() in utils.save_result(run, data, parts, history, 51.5, prediction)
    assert not read_all("checkpoints")
    assert set(read_all("runs")) == {path, path.with_suffix(".pt")}
    result = json.loads(path.read_text(encoding="utf-8"))
    assert Recipe(**result["recipe"]) == run.recipe
    assert (result["norm"], result["seed"], result["parameters"]) == ("gn", 7, 48_448)
    assert result["network"] == str(parts[0])
    assert result["optimizer"]["class"] == "Muon"
    groups = result["optimizer"]["groups"]
    assert [group["max_lr"] for group in groups] == [pytest.approx(0.03), pytest.approx(0.05)]
    assert groups[0]["momentum"] == 0.95
    assert result["data"] == {"name": "CIFAR-10", "train_size": 64, "test_size": 64}
    assert result["history"] == history
    assert result["clean_train_acc"] == 51.5
    assert result["test_predictions"] == ("0123456789" * 7)[:64]
    assert result["environment"] == runs.get_environment(CPU, "float32")
    weights = torch.load(path.with_suffix(".pt"), weights_only=True)
    assert all(torch.equal(weights[k], v) for k, v in parts[0].state_dict().items())


@changes
def test_a_result_of_other_parts_does_not_get_the_recipe_s_name(name, change):
    assert f"Nothing was written: this run's {name} is not" in save_result(change)
    assert not Path("runs").exists()


def test_a_function_of_the_user_s_own_is_no_other_part_each_time(monkeypatch):
    own = utils.get_train_transforms
    monkeypatch.setattr(utils, "get_train_transforms", lambda recipe: [lambda x: x, own(recipe)])
    assert "Written" in save_result()


def test_other_epochs_and_stand_in_data_leave_the_result_there():
    save_result()
    before = read_all("runs")
    few = {column: [10.0] for column in utils.COLUMNS}
    assert "Nothing was written: this run's epochs is not" in save_result(history=few)
    assert "Nothing was written: this run was on stand-in" in save_result(recipe="smoke")
    assert read_all("runs") == before


def test_a_field_that_a_result_lacks_was_at_its_default():
    fields = asdict(runs.get_recipe("onecycle"))
    del fields["groups"]
    assert runs.is_same_recipe(fields, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields, make_run(groups=8).recipe)
    assert runs.is_same_recipe(fields | {"gone": 0.0}, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields | {"gone": 0.1}, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields | {"lr": 0.1}, runs.get_recipe("onecycle"))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("function", "effects"),
    [("os.fsync", [None, FULL]), ("pathlib.Path.replace", FULL)],  # None: the weights are written
)
def test_a_full_disk_is_named_and_leaves_what_was_there(function, effects):
    save_result()
    before, name = read_all("runs"), PATH.with_suffix(".json").name
    full = pytest.raises(OSError, match=f"{name} could not be written .No space")
    with mock.patch(function, side_effect=effects), full:
        save_result(lambda parts: parts[0].layers.C1.conv.weight.data.zero_(), clean=52.5)
    assert read_all("runs") == before


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"history": HISTORY | {"test_loss": [math.nan] * 20}}, "test_loss"),
        ({"prediction": torch.full((20, 10), -math.inf)}, "test prediction"),
        ({"change": lambda parts: break_average(*parts)}, "weights"),
    ],
)
def test_a_result_that_is_not_finite_is_refused_and_the_old_one_kept(fields, named):
    save_result()
    before = read_all("runs")
    with pytest.raises(FloatingPointError, match=f"its {named} is not finite"):
        save_result(**fields)
    assert read_all("runs") == before
