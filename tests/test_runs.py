"""What keeps a run: its names, its progress, its checkpoint and its result. Nothing is lost."""

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
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch.nn import functional as F

import cifar10
import runs
import utils
from common import CPU, MUON, OUR_NORMS, ROOT, make_dataset, make_run, prepare

SMALL = {"batch_size": 32, "epochs": 3}  # on 64 images, 3 epochs of 2 steps
RUN = make_run(dropout=0.1, **SMALL)
MUON_RUN = make_run(dropout=0.1, **SMALL, **MUON)
PATH = Path("checkpoints/float32/onecycle-bn-seed1.pt")

# --- Identity


def test_a_run_s_files_are_known_by_its_recipe_norm_seed_and_precision():
    run = make_run("onecycle", "bn", 1, "float32")
    assert run.name == "onecycle-bn-seed1"
    assert run.get_path("results", ".json") == Path("results/float32/onecycle-bn-seed1.json")
    others = (
        make_run("reference"),
        make_run(norm="gn"),
        make_run(seed=2),
        make_run(precision="bfloat16"),
    )
    paths = {run.get_path("checkpoints", ".pt") for run in (run, *others)}
    assert len(paths) == 5
    assert Path("checkpoints/bfloat16/onecycle-bn-seed1.pt") in paths


def test_a_run_s_title_says_all_that_it_is():
    assert make_run(norm="gn", seed=7).title == "CIFAR-10 | gn | recipe onecycle | seed 7 | float32"
    assert "NOT CIFAR-10" in make_run("smoke").title


@pytest.mark.parametrize(
    ("text", "seed"), [("0", 0), (" 42 ", 42), (7, 7), ("4294967295", 2**32 - 1)]
)
def test_a_seed_is_a_whole_number(text, seed):
    assert runs.get_seed(text) == seed


NO_SEEDS = [
    "",
    "one",
    "1.5",
    "-1",
    "+1",
    "1e3",
    "1_0",
    "²",
    "١",
    "4294967296",
    2**32,
    2**63,
    -1,
    1.5,
]


@pytest.mark.parametrize("text", [*NO_SEEDS, True, None], ids=repr)
def test_another_seed_is_refused(text):
    with pytest.raises(ValueError, match="SEED is .* whole number from 0 to 4294967295"):
        runs.get_seed(text)


BAD = {
    "norm in capitals": ({"norm": "BN"}, "norm is 'BN'"),
    "norm with a space": ({"norm": "b n"}, "norm is 'b n'"),
    "norm with a slash": ({"norm": "../bn"}, "norm is '../bn'"),
    "norm with a line's end": ({"norm": "bn\n"}, "norm is "),
    "empty norm": ({"norm": ""}, "norm is ''"),
    "no norm": ({"norm": None}, "norm is None"),
    "precision of 16 bits": ({"precision": "float16"}, "precision is 'float16'.*'bfloat16'"),
    "precision still to be chosen": ({"precision": "native"}, "precision is 'native'"),
    "no precision": ({"precision": None}, "precision is None"),
    "seed as a text": ({"seed": "1"}, "(?i)seed is '1'"),
    "seed as a text with a space": ({"seed": " 1 "}, "(?i)seed is ' 1 '"),
    **{f"seed {seed!r}": ({"seed": seed}, "(?i)seed is") for seed in NO_SEEDS},
}


@pytest.mark.parametrize("name", BAD)
def test_a_run_that_cannot_be_meant_is_refused_and_the_field_is_named(name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make_run(**fields)


def test_the_environment_is_what_the_digits_depend_on(monkeypatch):
    environment = runs.get_environment(CPU, "float32")
    assert set(environment) == {"torch", "device", "precision", "threads"}
    assert environment["precision"] == "float32"
    assert environment["device"] == runs.get_device_name(CPU) != ""
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    environment = runs.get_environment(CPU, "bfloat16")
    assert (environment["torch"], environment["threads"]) == ("1.0.0", 3)
    assert environment["precision"] == "bfloat16"


def test_a_processor_has_a_name_also_without_pytorch_s_help(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert runs.get_device_name(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert runs.get_device_name(CPU)


@pytest.fixture
def get_code():
    """A function that asks git anew each time."""
    yield lambda: runs.get_code.__wrapped__()
    runs.get_code.cache_clear()


def test_the_code_is_known_by_its_commit_and_is_clean_as_committed(get_code, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def call(*what):
        return subprocess.run([*git, *what], check=True, capture_output=True, text=True).stdout

    try:
        call("init", "--quiet")
    except OSError:
        pytest.skip("there is no git here")
    Path("runs.py").write_text("x = 1\n")
    call("add", ".")
    call("commit", "--quiet", "--message", "first")
    commit = call("rev-parse", "HEAD").strip()
    Path("README.md").write_text("no code")
    assert get_code() == {"commit": commit, "clean": True}
    Path("runs.py").write_text("x = 2\n")
    assert get_code() == {"commit": commit, "clean": False}
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "unpacked" / "runs.py"))
    Path("unpacked").mkdir()
    Path("unpacked/runs.py").write_text("x = 3\n")
    assert get_code() == {}, "the repository around it is another"


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")]
)
def test_where_git_cannot_tell_a_result_says_nothing_of_the_code(error, get_code, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert get_code() == {}
    runs.get_code.cache_clear()
    save_result()
    assert set(read_result()["environment"]) == {"torch", "device", "precision", "threads"}


# --- Progress


def test_outside_a_notebook_the_lines_are_printed_and_no_bar(capsys):
    with runs.Progress("header", total=3) as bar:
        bar.update()
        bar.add_line("a line")
        bar.update(2)
    assert capsys.readouterr() == ("header\na line\n", "")
    assert bar.n == 3


def test_a_notebook_shows_the_lines_over_the_bar_and_keeps_the_lines(monkeypatch, capsys):
    shown = []

    def display(data, **options):
        shown.append(data["text/plain"])
        return types.SimpleNamespace(update=display)

    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    with runs.Progress("header", total=3, unit="step") as bar:
        bar.add_line("a line")
        bar.update()
        bar.refresh()
    assert shown[0] == "header"
    assert shown[-2].startswith("header\na line\n")
    assert "1/3" in shown[-2]
    assert shown[-1] == "header\na line"
    assert capsys.readouterr() == ("", "")


def show_progress(terminal):
    """Have a kernel show progress, with `terminal` as its standard error; return what it saved."""
    code = "import runs\nwith runs.Progress('header', total=2) as bar:\n"
    code += "    bar.update()\n    bar.add_line('a line')\n    bar.refresh()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = NotebookClient(notebook, extra_arguments=["--IPKernelApp.log_level=ERROR"])
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    client.execute(env=env | {"PYTHONPATH": str(ROOT)}, stderr=terminal)
    return [output["data"]["text/plain"] for output in notebook.cells[0].outputs]


def test_a_notebook_s_lines_come_to_where_its_kernel_was_started():
    with Path("log").open("wb") as log:
        assert show_progress(log) == ["header\na line"]
    assert Path("log").read_text(encoding="utf-8") == "header\na line\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_the_bar_under_the_lines():
    import pty

    ours, theirs = pty.openpty()
    assert show_progress(theirs) == ["header\na line"]
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert re.search(r"header\r\n.* 0/2 .*a line\r\n.* 1/2 ", text, re.DOTALL)


def test_a_terminal_that_was_closed_ends_no_run(monkeypatch):
    class Closed(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with runs.Progress("header", total=2) as bar:
        bar.update(2)
        bar.add_line("a line")
    assert bar.n == 2


# --- Checkpoint


def fit(run=RUN, folder="checkpoints"):
    """Return the history, without its times, and the weights of the run."""
    prepared = prepare(run, make_dataset(64))
    history = utils.fit(run, *prepared, folder=folder)
    return {k: v for k, v in history.items() if k != "seconds"}, prepared[0].state_dict()


@functools.cache
def get_whole(run=RUN):
    """Return the same of a run that was never interrupted."""
    return fit(run, "whole")


def is_same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][k], other[1][k]) for k in one[1])


def interrupt(epoch, run=RUN):
    """Run into that epoch, as a user who interrupts the cell, and return what was trained."""
    train, calls, prepared = utils.train, [], prepare(run, make_dataset(64))

    def stop(*args):
        calls.append(args)
        if len(calls) == epoch:
            train(*args)  # the model has moved on, but the epoch is not finished
            raise KeyboardInterrupt
        return train(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            utils.fit(run, *prepared)
    return prepared


def load(run=RUN):
    """Return the history that a checkpoint of the run gives, and the model with its state."""
    model, loader, _, optimizer, scheduler, _ = prepare(run, make_dataset(64))
    parts = (model, optimizer, scheduler, "checkpoints", len(loader))
    return runs.Checkpoint(run, *parts).load(), model


RECIPES = {
    "onecycle": make_run(**SMALL).recipe,
    "reference": make_run("reference", **SMALL).recipe,
    "muon": make_run(**SMALL, **MUON).recipe,
}


@pytest.mark.parametrize("norm", OUR_NORMS)
@pytest.mark.parametrize("recipe", ["onecycle", "reference", "muon"])
def test_an_interrupted_run_goes_on_to_the_same_digits(norm, recipe, monkeypatch, capsys):
    run = utils.Run(RECIPES[recipe], norm, 1, "float32")
    path = run.get_path("checkpoints", ".pt")
    save = runs.Checkpoint.save

    def stop(self, history):
        save(self, history)
        if len(history["lr"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(run)
    torch.rand(5)  # the generator's state is not that of the run any more
    capsys.readouterr()
    assert is_same(fit(run), get_whole(run))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Going on after epoch 2 from {path}; to start over, delete that file."
    assert [line.split()[0] for line in said[2:5]] == ["1", "2", "3"]


@pytest.mark.parametrize("run", [RUN, MUON_RUN], ids=["sgd", "muon"])
def test_a_cell_interrupted_in_an_epoch_can_be_run_again(run):
    prepared = interrupt(2, run)
    history = utils.fit(run, *prepared)  # with the model as the interruption left it
    expected, weights = get_whole(run)
    assert history["test_loss"] == expected["test_loss"]
    assert all(torch.equal(v, weights[k]) for k, v in prepared[0].state_dict().items())


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import utils
from test_runs import {run}, fit

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def cut(descriptor):
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()

moment, epoch, calls = {moment!r}, {epoch}, []

def count(function, at):
    def counted(*args):
        calls.append(args)
        return (at if len(calls) == epoch else function)(*args)
    return counted

if moment == "in an epoch":
    utils.test = count(utils.test, die)
else:
    os.fsync = count(os.fsync, cut if moment == "in the middle of writing" else die)
fit({run})
"""


@pytest.mark.parametrize(
    ("moment", "epoch", "run"),
    [
        ("in an epoch", 3, "RUN"),
        ("in the middle of writing", 2, "RUN"),
        ("before the renaming", 3, "RUN"),
        ("in an epoch", 3, "MUON_RUN"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_digits(moment, epoch, run, capsys):
    whole = get_whole(globals()[run])
    code = KILLED.format(
        root=str(ROOT), tests=str(ROOT / "tests"), moment=moment, epoch=epoch, run=run
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    capsys.readouterr()
    assert is_same(fit(globals()[run]), whole)
    assert f"Going on after epoch {epoch - 1} " in capsys.readouterr().out


def test_a_finished_run_leaves_its_result_and_no_checkpoint():
    history, _ = fit()
    assert PATH.exists()  # until the result is written
    save_result("bn", 1, history, epochs=3)
    assert not PATH.exists()
    assert Path("results/float32/onecycle-bn-seed1.json").exists()
    assert list(PATH.parent.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"flip": 0.4}, {"epochs": 4}, {"weight_decay": 0.0}]
)
def test_a_checkpoint_of_another_recipe_is_kept_and_not_used(change, capsys):
    fit()
    content = PATH.read_bytes()
    other = make_run(**{"dropout": 0.1} | SMALL | change)
    capsys.readouterr()
    assert is_same(fit(other), get_whole(other))
    said = capsys.readouterr().out
    assert f"{PATH} is of another recipe, norm, seed, precision, network, data or version." in said
    assert content in [path.read_bytes() for path in PATH.parent.glob("*-unused-*.pt")]


def test_a_checkpoint_of_other_data_or_another_network_is_kept_and_not_used(capsys):
    interrupt(2)
    run = utils.fit(RUN, *prepare(RUN, make_dataset(256)))  # of more steps an epoch
    assert len(run["lr"]) == RUN.recipe.epochs
    assert "network, data or version" in capsys.readouterr().out
    PATH.unlink()
    interrupt(2)
    model, *parts = prepare(RUN, make_dataset(64))
    model.layers.C5.norm.eps = 0.1  # what no weight and no recipe shows
    assert len(utils.fit(RUN, model, *parts)["lr"]) == RUN.recipe.epochs
    assert "network, data or version" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"norm": "gn"}, {"seed": 2}, {"precision": "bfloat16"}])
def test_a_checkpoint_of_another_norm_seed_or_precision_does_not_matter(change):
    fit()
    content = PATH.read_bytes()
    other = make_run(dropout=0.1, **SMALL, **change)
    assert is_same(fit(other), get_whole(other))
    assert PATH.read_bytes() == content
    PATH.rename(other.get_path("checkpoints", ".pt"))  # as if it were the other's
    assert is_same(fit(other), get_whole(other))


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "1.0.0"),
        (torch, "get_num_threads", lambda: 77),
        (runs, "get_device_name", lambda device: "another processor"),
    ],
    ids=["version", "threads", "device"],
)
def test_a_checkpoint_of_another_environment_is_not_used(owner, name, value, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        fit()
    capsys.readouterr()
    assert load()[0] == {}
    assert (
        "is of another recipe, norm, seed, precision, network, data or version"
        in capsys.readouterr().out
    )
    assert is_same(fit(), get_whole())


def test_a_truncated_or_garbled_checkpoint_is_kept_and_not_used(capsys):
    interrupt(3)
    good = PATH.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(good), (12,), generator=generator).tolist()
    bad = [b"", good[:100], good[: len(good) // 2], good[:-1], b"x" * len(good)]
    bad += [good[:k] + bytes([good[k] ^ 255]) + good[k + 1 :] for k in places]
    for content in bad:
        PATH.write_bytes(content)
        capsys.readouterr()
        history, model = load()
        said = capsys.readouterr().out
        if "Going on" in said:  # the byte was padding between the file's parts
            weights = torch.load(io.BytesIO(good), weights_only=True)["model"]
            assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
            continue
        assert history == {}
        assert "It is kept as" in said
        assert not PATH.exists()
        assert content in [path.read_bytes() for path in PATH.parent.glob("*-unused-*.pt")]
    PATH.write_bytes(good[:-1])
    assert is_same(fit(), get_whole())


class Trap:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_does_not_run(zipped, capsys):
    PATH.parent.mkdir(parents=True)
    if zipped:
        torch.save({"identity": Trap(), "history": Trap()}, PATH)
        assert zipfile.ZipFile(PATH).testzip() is None
    else:
        PATH.write_bytes(pickle.dumps(Trap()))
    load()
    assert not Path("trapped").exists()
    assert "can't be read. It is kept as" in capsys.readouterr().out
    kept = next(PATH.parent.glob("*-unused-*.pt"))
    _ = torch.load(kept, weights_only=False) if zipped else pickle.loads(kept.read_bytes())
    assert Path("trapped").exists()  # the trap works: loaded without care it does run


def fail_for_lack_of_room(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=str)
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(owner, name, monkeypatch):
    interrupt(2)
    good = PATH.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_for_lack_of_room)
        with pytest.raises(OSError, match=f"{PATH} could not be written .No space.*Make room"):
            fit()
    assert PATH.read_bytes() == good
    assert list(PATH.parent.iterdir()) == [PATH]


def test_a_disk_that_is_full_is_named_and_nothing_lost():
    resource = pytest.importorskip("resource", reason="needs a POSIX system")
    history, _ = fit()
    save_result("bn", 1, history, epochs=3)
    before, (soft, hard) = read_all("results"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # of the weights that is a part
    try:
        with pytest.raises(OSError, match="could not be written .File too large.*Make room"):
            save_result("bn", 1, history, epochs=3)
        with pytest.raises(OSError, match=f"{PATH} could not be written .File too large"):
            fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_all("results") == before
    assert not any(PATH.parent.iterdir())


def test_a_folder_that_cannot_be_made_is_named():
    Path("results").write_text("a file")
    with pytest.raises(OSError, match="results.x could not be written .* unchanged. Make room"):
        runs.write_whole({Path("results/x"): b"x"})
    assert Path("results").read_text() == "a file"


def test_a_model_that_is_trained_already_is_refused():
    prepared = prepare(RUN, make_dataset(64))
    utils.fit(RUN, *prepared)
    PATH.unlink()
    with pytest.raises(RuntimeError, match="trained already: run the notebook from block 5"):
        utils.fit(RUN, *prepared)


# --- A run that diverges


def is_finite(state):
    """Return whether every number of a nest of dicts, lists and tensors is finite."""
    if isinstance(state, dict | list | tuple):
        return all(map(is_finite, state.values() if isinstance(state, dict) else state))
    return not isinstance(state, float | torch.Tensor) or bool(
        torch.as_tensor(state).isfinite().all()
    )


@pytest.mark.parametrize(
    "number",
    [math.nan, -math.inf, torch.tensor([1, math.inf]), [1.0, math.nan], {"a": ({"b": math.inf},)}],
    ids=repr,
)
def test_a_number_that_is_not_finite_is_found_wherever_it_lies(number):
    runs.check_finite(a=1, b="text", c=None, d=[1.0, (torch.ones(2), {"e": torch.tensor([1])})])
    with pytest.raises(FloatingPointError, match="its the name is not finite.*lower learning"):
        runs.check_finite(good=1.0, **{"the name": number})


@pytest.mark.parametrize("norm", OUR_NORMS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "changes",
    [{"lr": 0}, MUON | {"affine_lr": 0}],
    ids=["sgd", "muon"],
)
def test_a_huge_rate_ends_in_an_error_and_is_kept_nowhere(norm, steps, changes):
    changes = {key: 1e30 if key.endswith("lr") else value for key, value in changes.items()}
    run = make_run(norm=norm, epochs=1, batch_size=-(-100 // steps), warmup=0.5, **changes)
    with pytest.raises(FloatingPointError, match="diverged.*Try a lower learning rate"):
        utils.fit(run, *prepare(run, make_dataset(100)))
    assert not run.get_path("checkpoints", ".pt").exists()


def explode_at_step(number, explode, monkeypatch):
    """Have `explode(optimizer)` called after that step of the run."""
    step, calls = torch.optim.SGD.step, []

    def step_and_explode(self, *args):
        result = step(self, *args)
        calls.append(args)
        if len(calls) == number:
            explode(self)
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", step_and_explode)


def test_a_diverging_run_stops_in_its_epoch_and_leaves_the_last_good_checkpoint(monkeypatch):
    def explode(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    explode_at_step(3, explode, monkeypatch)  # the first step of the second epoch
    with pytest.raises(FloatingPointError) as error:
        fit()
    assert "epoch 2, step 2: the loss is nan at learning rate 0." in str(error.value)
    assert "Try a lower learning rate" in str(error.value)
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    assert is_finite(saved)


def break_test_loss(model, optimizer):
    model.register_forward_hook(
        lambda model, inputs, output: output if model.training else output * math.nan
    )


def break_weight(model, optimizer):
    model.layers.c11.weight.data[0, 0] = math.inf  # of one class alone; the loss may be finite


def break_average(model, optimizer):
    model.layers.C1.norm.running_var[0] = math.inf  # which divides to 0: the loss is finite


def break_momentum(model, optimizer):
    state = optimizer.state[model.layers.C1.conv.weight]
    state["momentum_buffer"][0, 0, 0, 0] = math.inf


@pytest.mark.parametrize(
    ("breaking", "named"),
    [
        (break_test_loss, "test_loss"),
        (break_weight, "test_loss|weights"),
        (break_average, "weights"),
        (break_momentum, "momentum"),
    ],
)
def test_an_epoch_that_ends_not_finite_is_named_and_leaves_the_last_checkpoint(
    breaking, named, monkeypatch
):
    contents = []

    def explode(optimizer):
        contents.append(PATH.read_bytes())
        breaking(prepared[0], optimizer)

    explode_at_step(4, explode, monkeypatch)  # the last one of the second epoch
    prepared = prepare(RUN, make_dataset(64))
    with pytest.raises(FloatingPointError, match=f"its ({named}) is not finite.*kept before is"):
        utils.fit(RUN, *prepared)
    assert [PATH.read_bytes()] == contents
    assert list(PATH.parent.iterdir()) == [PATH]
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    assert is_finite(saved)
    assert not Path("results").exists()


# --- Result

RESULT = Path("results/float32/onecycle-gn-seed7.json")


def save_result(norm="gn", seed=7, history=None, clean=51.5, prediction=None, size=20, **changes):
    """Save the result of a run that never ran; return its model and what was said."""
    run = make_run(norm=norm, seed=seed, **changes)
    dataset = make_dataset(size)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset, stand_in=run.recipe.name == "smoke")
    if prediction is None:
        prediction = F.one_hot(dataset.tensors[1], 10).float()
    history = history or {column: [10.0] * run.recipe.epochs for column in utils.COLUMNS}
    model, *_ = prepare(run)
    return model, utils.save_result(run, data, model, history, clean, prediction)


def read_result(path=RESULT):
    return json.loads(path.read_text(encoding="utf-8"))


def read_all(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_result_says_what_ran_and_what_came_out():
    model, said = save_result()
    assert str(RESULT) in said
    result = read_result()
    assert utils.Recipe(**result["recipe"]) == utils.get_recipe("onecycle")
    assert (result["norm"], result["seed"], result["parameters"]) == ("gn", 7, 48_448)
    assert result["data"] == {"name": "CIFAR-10", "train_size": 20, "test_size": 20}
    assert result["history"] == {column: [10.0] * 20 for column in utils.COLUMNS}
    assert result["clean_train_acc"] == 51.5
    assert result["test_predictions"] == "01234567890123456789"
    assert result["environment"] == runs.get_environment(CPU, "float32") | runs.get_code()
    weights = torch.load(RESULT.with_suffix(".pt"), weights_only=True)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert set(read_all("results")) == {RESULT, RESULT.with_suffix(".pt")}


def test_results_of_two_precisions_lie_side_by_side():
    save_result()
    save_result(precision="bfloat16")
    for precision in runs.PRECISIONS:
        result = read_result(Path("results", precision, RESULT.name))
        assert result["environment"]["precision"] == precision


def test_a_result_names_the_commit_of_the_code(monkeypatch):
    code = {"commit": "0123abc", "clean": False}
    monkeypatch.setattr(runs, "get_code", lambda: code)
    save_result()
    assert read_result()["environment"] == runs.get_environment(CPU, "float32") | code


def test_a_smoke_run_writes_nothing_and_leaves_what_is_there():
    save_result()
    before = read_all("results")
    checkpoint = make_run("smoke", "gn", 7).get_path("checkpoints", ".pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    _, said = save_result(recipe="smoke")
    assert said.startswith("Nothing was written: this run was on stand-in gratings")
    assert read_all("results") == before
    assert not checkpoint.exists()


@pytest.mark.parametrize("change", [{"epochs": 19}, {"lr": 0.01}, {"groups": 8}, {"size": 10}])
def test_a_result_of_other_hyperparameters_or_data_is_not_overwritten(change):
    save_result()
    before = read_all("results")
    checkpoint = make_run(norm="gn", seed=7).get_path("checkpoints", ".pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    _, said = save_result(**change)
    what = "data" if "size" in change else "hyperparameters"
    assert f"Nothing was written: {RESULT} is there, of other {what}. Move it away" in said
    assert read_all("results") == before
    assert checkpoint.exists(), "its epochs are lost"
    save_result(clean=52.5)
    assert read_result()["clean_train_acc"] == 52.5
    assert not checkpoint.exists()


def test_a_result_from_before_a_field_was_added_is_of_its_default():
    save_result()
    old = read_result()
    del old["recipe"]["groups"]
    RESULT.write_text(json.dumps(old), encoding="utf-8")
    _, said = save_result(groups=8)
    assert "of other hyperparameters" in said
    save_result()
    assert read_result()["recipe"]["groups"] == 4


@pytest.mark.parametrize("content", ["", '{"history": {"test_acc": [1.0', "[]", '{"history": 3}'])
def test_a_damaged_result_is_replaced(content):
    RESULT.parent.mkdir(parents=True)
    RESULT.write_text(content, encoding="utf-8")
    save_result()
    assert read_result()["seed"] == 7


@pytest.mark.parametrize("file", [1, 2])
def test_a_result_that_cannot_be_written_leaves_the_old_one_whole(file, monkeypatch):
    save_result()
    before, calls = read_all("results"), []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == file:
            fail_for_lack_of_room()

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"{RESULT} could not be written .No space.*unchanged"):
        save_result(clean=52.5)
    assert read_all("results") == before


HISTORY = {column: [10.0, 10.0] for column in utils.COLUMNS}
NOT_FINITE = {
    "a loss": ({"history": HISTORY | {"test_loss": [1.0, math.nan]}}, "test_loss"),
    "a time": ({"history": HISTORY | {"seconds": [1.0, math.inf]}}, "seconds"),
    "the clean accuracy": ({"clean": math.nan}, "accuracy"),
    "a prediction": ({"prediction": torch.full((20, 10), -math.inf)}, "test prediction"),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_result_that_is_not_finite_is_refused_and_the_old_one_left_whole(name):
    fields, named = NOT_FINITE[name]
    save_result(epochs=2)
    before = read_all("results")
    checkpoint = make_run(norm="gn", seed=7).get_path("checkpoints", ".pt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(FloatingPointError, match=f"its {named} is not finite"):
        save_result(epochs=2, **fields)
    assert read_all("results") == before
    assert checkpoint.exists()
    assert not any(word in RESULT.read_text(encoding="utf-8") for word in ("NaN", "Infinity"))


def test_a_model_that_is_not_finite_is_refused_too():
    run = make_run()
    model, *_ = prepare(run)
    model.layers.C1.norm.running_mean[3] = math.nan
    dataset = make_dataset(20)
    data = cifar10.Data(tuple("abcdefghij"), dataset, dataset)
    with pytest.raises(FloatingPointError, match="its weights is not finite"):
        runs.save_result(run, data, model, HISTORY, 50.0, torch.zeros(20, 10))
    assert not Path("results").exists()


UTF8 = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import warnings
import test_runs
warnings.simplefilter("error", EncodingWarning)
test_runs.save_result()
_, said = test_runs.save_result(epochs=19)  # which reads the first
assert "is there, of other hyperparameters" in said
"""


def test_a_result_is_written_and_read_as_utf8():
    code = UTF8.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
