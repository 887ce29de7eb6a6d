"""A run: its recipe, what it is known by, its checkpoint and its result. Nothing is lost."""

import dataclasses
import errno
import functools
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn
from torch.nn import functional as F

import cifar10
import runs
import utils
from common import CPU, MUON, OUR_NORMS, ROOT, make_dataset, make_run, prepare
from runs import Recipe

SMALL = {"batch_size": 32, "epochs": 3}  # on 64 images, 3 epochs of 2 steps
RUN = make_run(dropout=0.1, **SMALL)
MUON_RUN = make_run(dropout=0.1, **SMALL, **MUON)
PATH = Path("checkpoints/float32/onecycle-bn-seed1.pt")

# --- The recipe


def test_the_reference_recipe_is_the_published_one():
    published = {
        "data": "CIFAR-10",
        "epochs": 20,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.04,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "scheduler": "step",
        "step_epochs": 6,
        "step_factor": 0.1,
        "loss": "nll",
        "dropout": 0.05,
        "crop": 0,
        "rotation": 0.0,
        "resize": 0.0,
        "flip": 0.1,
    }
    recipe = dataclasses.asdict(runs.get_recipe(" reference\n"))
    assert {name: recipe[name] for name in published} == published


def test_recipes_are_found_by_their_names():
    assert {"muon", "quick", "onecycle", "reference", "smoke"} <= set(runs.RECIPES)
    assert all(recipe.name == name for name, recipe in runs.RECIPES.items())
    with pytest.raises(ValueError, match="RECIPE is 'One', but must be one of 'muon', 'quick'"):
        runs.get_recipe("One")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"name": "a b"},
        {"optimizer": "adam"},
        {"scheduler": "cosine"},
        {"data": "MNIST"},
        {"epochs": 0},
        {"lr": math.nan},
        {"lr": -0.1},
        {"momentum": 1.5},
        {"warmup": 2},
        {"flip": 1.1},
        {"crop": 32},
        {"resize": 1.0},
    ],
    ids=repr,
)
def test_a_recipe_that_would_train_something_else_is_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        Recipe(**{"name": "x"} | wrong)
    assert repr(value) in str(error.value)


# --- Identity


def test_a_run_s_files_are_known_by_recipe_norm_seed_and_precision():
    changes = ({}, {"recipe": "reference"}, {"norm": "gn"}, {"seed": 2}, {"precision": "bfloat16"})
    paths = {make_run(**change).get_path("runs", ".pt").as_posix() for change in changes}
    assert len(paths) == 5
    assert {"runs/float32/onecycle-bn-seed1.pt", "runs/bfloat16/onecycle-bn-seed1.pt"} <= paths


def test_a_run_s_title_says_all_that_it_is():
    title = make_run(norm="gn", seed=7).title
    assert title == "Group normalization, 20 epochs of onecycle, seed 7"
    assert "NOT CIFAR-10" in make_run("smoke").title


@pytest.mark.parametrize(("text", "seed"), [("0", 0), (" 42 ", 42), ("4294967295", 2**32 - 1)])
def test_a_seed_is_a_whole_number(text, seed):
    assert runs.get_seed(text) == seed


@pytest.mark.parametrize("text", ["", "1.5", "-1", "²", "4294967296", None, True])
def test_another_seed_is_refused(text):
    with pytest.raises(ValueError, match="SEED is .* whole number from 0 to 4294967295"):
        runs.get_seed(text)


@pytest.mark.parametrize("wrong", [{"norm": "../bn"}, {"precision": "native"}, {"seed": "1"}])
def test_a_run_that_has_no_name_is_refused(wrong):
    with pytest.raises(ValueError, match="(norm|precision|seed) is "):
        make_run(**wrong)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit of a runs.py, and a function that calls git in it."""
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setattr(runs, "get_code", runs.get_code.__wrapped__)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def call(*what):
        return subprocess.run([*git, *what], check=True, capture_output=True, text=True).stdout

    try:
        call("init", "--quiet")
    except OSError:
        pytest.skip("there is no git here")
    Path("runs.py").write_text("x = 1\n", encoding="utf-8")
    Path("results").mkdir()
    Path("results/old.json").write_text("{}", encoding="utf-8")
    call("add", ".")
    call("commit", "--quiet", "--message", "first")
    return call


def test_a_commit_is_clean_whatever_results_are_there(repository):
    clean = {"commit": repository("rev-parse", "HEAD").strip(), "clean": True}
    Path("results/old.json").unlink()
    Path("results/new.json").touch()
    assert runs.get_code() == clean
    assert clean.items() <= runs.get_environment(CPU, "float32").items()
    Path("runs.py").write_text("x = 2\n", encoding="utf-8")
    assert runs.get_code() == clean | {"clean": False}


def test_code_in_no_repository_of_its_own_has_no_commit(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "unpacked" / "runs.py"))
    assert runs.get_code() == {}


def test_a_line_comes_to_the_notebook_and_to_its_terminal():
    code = nbformat.v4.new_code_cell("import runs\nruns.say('a line')")
    notebook = nbformat.v4.new_notebook(cells=[code])
    client = NotebookClient(notebook, extra_arguments=["--IPKernelApp.log_level=ERROR"])
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    with Path("log").open("wb") as log:
        client.execute(env=env | {"PYTHONPATH": str(ROOT)}, stderr=log)
    assert [output["text"] for output in notebook.cells[0].outputs] == ["a line\n"]
    assert Path("log").read_text(encoding="utf-8") == "a line\n"


# --- Checkpoint


def fit(run=RUN, folder="checkpoints"):
    """Return the history, without its times, and the weights of the run."""
    parts = prepare(run, make_dataset(64))
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            utils.fit(run, *parts)
    return parts


@pytest.mark.parametrize(
    ("recipe", "norm"),
    [("onecycle", "bn"), ("onecycle", "none"), ("reference", "bn"), ("muon", "bn"), ("muon", "gn")],
)
def test_an_interrupted_run_goes_on_to_the_same_digits(recipe, norm, capsys):
    run = make_run(recipe, norm, **SMALL | {"dropout": 0.1})
    interrupt(3, run)
    torch.rand(5)  # the generator's state is not that of the run any more
    capsys.readouterr()
    assert is_same(fit(run), get_whole(run))
    said = capsys.readouterr().out.splitlines()
    path = run.get_path("checkpoints", ".pt")
    assert said[0] == f"Going on after epoch 2 from {path}; to start over, delete that file."
    assert [line.split()[0] for line in said[2:5]] == ["1", "2", "3"]


@pytest.mark.parametrize("run", [RUN, MUON_RUN], ids=["sgd", "muon"])
def test_a_cell_interrupted_later_on_can_be_run_again(run):
    parts = interrupt(2, run)
    history = utils.fit(run, *parts)  # with the model as the interruption left it
    expected, weights = get_whole(run)
    assert history["test_loss"] == expected["test_loss"]
    assert all(torch.equal(v, weights[k]) for k, v in parts[0].state_dict().items())


@pytest.mark.parametrize("finished", [False, True], ids=["first epoch", "finished"])
def test_a_model_that_has_moved_is_not_trained_as_a_new_one(finished):
    parts = prepare(RUN, make_dataset(64)) if finished else interrupt(1)
    if finished:
        utils.fit(RUN, *parts)
        PATH.unlink()  # as save_result does
    model, train_loader, test_loader, *_ = parts
    optimizer = utils.get_optimizer(model, RUN.recipe)  # all of block 6 again
    scheduler = utils.get_scheduler(optimizer, RUN.recipe, len(train_loader))
    anew = (model, train_loader, test_loader, optimizer, scheduler, parts[-1])
    with pytest.raises(RuntimeError, match="trained already: run the notebook from block 5"):
        utils.fit(RUN, *anew)


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


def use_adam(parts):
    optimizer = torch.optim.Adam(parts[0].parameters())
    return *parts[:3], optimizer, utils.get_scheduler(optimizer, RUN.recipe, 2), parts[5]


def use_another_rate(parts):
    optimizer = utils.get_optimizer(parts[0], dataclasses.replace(RUN.recipe, lr=0.01))
    return *parts[:3], optimizer, utils.get_scheduler(optimizer, RUN.recipe, 2), parts[5]


def use_another_schedule(parts):
    return *parts[:4], torch.optim.lr_scheduler.StepLR(parts[3], 100), parts[5]


def use_another_network(parts):
    parts[0].layers.C5.norm.eps = 0.1  # what no weight and no recipe shows
    return parts


def use_another_batch_size(parts):
    loader = utils.Loader(parts[1].dataset, parts[1].transforms, 16, shuffle=True)
    return parts[0], loader, *parts[2:]


def use_another_augmentation(parts):
    parts[1].transforms.transforms.pop(1)
    return parts


def use_another_loss(parts):
    return *parts[:5], nn.NLLLoss(reduction="sum")


CHANGES = {  # what a user of the notebook may change in a cell, and how a message calls it
    use_adam: "optimizer",
    use_another_rate: "optimizer",
    use_another_schedule: "scheduler",
    use_another_network: "network",
    use_another_batch_size: "train_loader",
    use_another_augmentation: "train_loader",
    use_another_loss: "loss",
}
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@changes
def test_a_checkpoint_of_other_parts_is_refused_and_kept(change):
    interrupt(2)
    content = PATH.read_bytes()
    with pytest.raises(ValueError, match=f"{PATH} was .* another .*{CHANGES[change]}.*delete it"):
        utils.fit(RUN, *change(prepare(RUN, make_dataset(64))))
    assert PATH.read_bytes() == content


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "1.0.0"),
        (torch, "get_num_threads", lambda: 77),
        (runs, "get_code", lambda: {"commit": "another"}),
    ],
    ids=["version", "threads", "commit"],
)
def test_a_checkpoint_of_another_environment_is_refused(owner, name, value, monkeypatch):
    interrupt(2)
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(ValueError, match="another environment"):
        fit()


def test_a_checkpoint_of_another_recipe_or_seed_is_refused():
    interrupt(2)
    for other in (make_run(dropout=0.1, **SMALL, lr=0.01), make_run(dropout=0.1, **SMALL, seed=2)):
        PATH.rename(other.get_path("checkpoints", ".pt"))
        with pytest.raises(ValueError, match="another (recipe|seed)"):
            fit(other)
        other.get_path("checkpoints", ".pt").rename(PATH)


def test_a_truncated_or_garbled_checkpoint_is_refused_and_kept():
    interrupt(3)
    good = PATH.read_bytes()
    weights = torch.load(io.BytesIO(good), weights_only=True)["model"]
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(good), (12,), generator=generator).tolist()
    bad = [b"", good[: len(good) // 2], good[:-1], b"x" * len(good)]
    bad += [good[:k] + bytes([good[k] ^ 255]) + good[k + 1 :] for k in places]
    for content in bad:
        PATH.write_bytes(content)
        parts = prepare(RUN, make_dataset(64))
        try:
            runs.Checkpoint(RUN, parts, "checkpoints").load()
        except ValueError as error:
            assert f"{PATH} is damaged. Move or delete it" in str(error)  # noqa: PT017
        else:  # the byte was padding between the file's parts
            assert all(torch.equal(v, weights[k]) for k, v in parts[0].state_dict().items())
        assert PATH.read_bytes() == content


class Trap:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(zipped):
    PATH.parent.mkdir(parents=True)
    if zipped:
        torch.save({"identity": Trap(), "history": Trap()}, PATH)
        assert zipfile.ZipFile(PATH).testzip() is None
    else:
        PATH.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged"):
        fit()
    assert not Path("trapped").exists()
    _ = torch.load(PATH, weights_only=False) if zipped else pickle.loads(PATH.read_bytes())
    assert Path("trapped").exists()  # the trap works: loaded without care it does run


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=str)
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(owner, name, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    interrupt(2)
    good = PATH.read_bytes()
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match=f"{PATH} could not be written .No space.*is kept"):
        fit()
    assert PATH.read_bytes() == good
    assert list(PATH.parent.iterdir()) == [PATH]


def test_a_full_disk_is_named_and_nothing_lost():
    resource = pytest.importorskip("resource", reason="needs a POSIX system")
    save_result()
    before, (soft, hard) = read_all("runs"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # of the weights that is a part
    try:
        with pytest.raises(OSError, match="could not be written .File too large"):
            save_result(clean=52.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_all("runs") == before


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_smoke_learns_its_data(norm):
    run = make_run("smoke", norm)
    data = utils.get_data(run.recipe, "nowhere", CPU)
    history = utils.fit(run, *utils.assemble(run, data))
    assert history["test_acc"][-1] > 60  # chance is 10


# --- A run that diverges


@pytest.mark.parametrize("norm", OUR_NORMS)
@pytest.mark.parametrize("rate", [{"lr": 1e9}, MUON | {"lr": 1e9, "affine_lr": 1e9}])
def test_a_huge_rate_ends_in_an_error_and_is_kept_nowhere(norm, rate):
    run = make_run(norm=norm, epochs=1, batch_size=10, **rate)
    with pytest.raises(FloatingPointError, match="diverged.*Try a lower learning rate"):
        utils.fit(run, *prepare(run, make_dataset(100)))
    assert not run.get_path("checkpoints", ".pt").exists()


def break_loss(model, optimizer):
    optimizer.param_groups[0]["params"][0].data.fill_(math.inf)


def break_average(model, optimizer):
    model.layers.C1.norm.running_var[0] = math.inf  # which divides to 0: the loss is finite


def break_momentum(model, optimizer):
    state = optimizer.state[model.layers.C1.conv.weight]
    state["momentum_buffer"][0, 0, 0, 0] = math.inf


@pytest.mark.parametrize(
    ("breaking", "step", "named"),
    [
        (break_loss, 3, "epoch 2, step 2: the loss is not finite"),
        (break_average, 4, "its weights is not finite"),
        (break_momentum, 4, "its momentum is not finite"),
    ],
)
def test_an_epoch_that_is_not_finite_leaves_the_last_checkpoint(breaking, step, named):
    parts, steps = prepare(RUN, make_dataset(64)), []

    def explode(optimizer, *_):
        steps.append(1)
        if len(steps) == step:
            breaking(parts[0], optimizer)

    parts[3].register_step_post_hook(explode)
    with pytest.raises(FloatingPointError, match=named):
        utils.fit(RUN, *parts)
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    runs.check_finite(saved=saved)
    assert list(PATH.parent.iterdir()) == [PATH]


# --- Result

RESULT = Path("runs/float32/onecycle-gn-seed7.json")
HISTORY = {column: [10.0] * 20 for column in utils.COLUMNS}


def save_result(change=lambda parts: parts, history=HISTORY, clean=51.5, prediction=None, **run):
    """Save the result of a run that never ran; return its model and what was said."""
    run = make_run(**{"norm": "gn", "seed": 7} | run)
    dataset = make_dataset(20)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset, stand_in=run.recipe.name == "smoke")
    if prediction is None:
        prediction = F.one_hot(dataset.tensors[1], 10).float()
    parts = change(utils.assemble(run, data))
    return parts[0], utils.save_result(run, data, parts, history, clean, prediction)


def read_all(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_result_says_what_ran_and_what_came_out():
    checkpoint = make_run(norm="gn", seed=7).get_path("checkpoints", ".pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    model, said = save_result()
    assert RESULT.as_posix() in said
    assert not checkpoint.exists()
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert Recipe(**result["recipe"]) == runs.get_recipe("onecycle")
    assert (result["norm"], result["seed"], result["parameters"]) == ("gn", 7, 48_448)
    assert result["network"] == str(model)
    assert result["optimizer"]["class"] == "SGD"
    assert result["optimizer"]["groups"][0]["momentum"] == 0.9
    assert result["optimizer"]["groups"][0]["max_lr"] == pytest.approx(0.05)
    assert result["data"] == {"name": "CIFAR-10", "train_size": 20, "test_size": 20}
    assert result["history"] == HISTORY
    assert result["clean_train_acc"] == 51.5
    assert result["test_predictions"] == "01234567890123456789"
    assert result["environment"] == runs.get_environment(CPU, "float32")
    weights = torch.load(RESULT.with_suffix(".pt"), weights_only=True)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert set(read_all("runs")) == {RESULT, RESULT.with_suffix(".pt")}


def test_a_trained_run_is_what_its_recipe_says():
    run = make_run("muon", "gn", 7, batch_size=32, epochs=2)
    dataset = make_dataset(64)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset)
    parts = utils.assemble(run, data)
    history = utils.fit(run, *parts)
    prediction, _ = utils.predict(parts[0], parts[2])
    said = utils.save_result(run, data, parts, history, 50.0, prediction)
    assert said.startswith("Written: runs/float32/muon-gn-seed7.json")


@changes
def test_a_result_of_other_parts_does_not_get_the_recipe_s_name(change):
    _, said = save_result(change)
    assert re.match(f"Nothing was written: this run's {CHANGES[change]}.* is not what recipe", said)
    assert not Path("runs").exists()


def test_a_result_of_other_epochs_does_not_get_the_recipe_s_name():
    _, said = save_result(history={column: [10.0] for column in utils.COLUMNS})
    assert "this run's epochs is not what recipe 'onecycle' says" in said
    assert not Path("runs").exists()


def test_a_smoke_run_writes_nothing_and_leaves_what_is_there():
    save_result()
    before = read_all("runs")
    _, said = save_result(recipe="smoke")
    assert said.startswith("Nothing was written: this run was on stand-in gratings")
    assert read_all("runs") == before


def test_a_field_that_a_result_lacks_was_at_its_default():
    fields = dataclasses.asdict(runs.get_recipe("onecycle"))
    del fields["groups"]
    assert runs.is_same_recipe(fields, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields, make_run(groups=8).recipe)
    assert runs.is_same_recipe(fields | {"gone": 0.0}, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields | {"gone": 0.1}, runs.get_recipe("onecycle"))
    assert not runs.is_same_recipe(fields | {"lr": 0.1}, runs.get_recipe("onecycle"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"history": HISTORY | {"test_loss": [math.nan] * 20}}, "test_loss"),
        ({"clean": math.inf}, "accuracy"),
        ({"prediction": torch.full((20, 10), -math.inf)}, "test prediction"),
        ({"change": lambda parts: break_average(*parts[:2]) or parts, "norm": "bn"}, "weights"),
    ],
    ids=["loss", "accuracy", "prediction", "weights"],
)
def test_a_result_that_is_not_finite_is_refused_and_the_old_one_kept(fields, named):
    save_result(norm=fields.get("norm", "gn"))
    before = read_all("runs")
    with pytest.raises(FloatingPointError, match=f"its {named} is not finite"):
        save_result(**fields)
    assert read_all("runs") == before
