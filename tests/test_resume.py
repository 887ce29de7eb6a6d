"""What is promised when a run is cut off, repeated or can't write: nothing is lost."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import utils
from conftest import ROOT, make_dataset, make_run, prepare

RUN = make_run(batch_size=32, epochs=3, dropout=0.1)  # 3 epochs of 2 steps
PATH = Path("checkpoints") / "onecycle-bn-seed1.pt"


def fit(run=RUN):
    """Return the history, without its times, and the weights of the run."""
    prepared = prepare(run, make_dataset(64))
    history = utils.fit(run, *prepared)
    return {k: v for k, v in history.items() if k != "seconds"}, prepared[0].state_dict()


def is_same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][k], other[1][k]) for k in one[1])


def interrupt(monkeypatch, epoch):
    """Run into that epoch, as a user who interrupts the cell, and return what was trained."""
    train, calls, prepared = utils.train, [], prepare(RUN, make_dataset(64))

    def stop(*args):
        calls.append(args)
        if len(calls) == epoch:
            train(*args)  # the model has moved on, but the epoch is not finished
            raise KeyboardInterrupt
        return train(*args)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            utils.fit(RUN, *prepared)
    return prepared


@pytest.fixture
def whole():
    """The run that was never interrupted."""
    result = fit()
    PATH.unlink()
    return result


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
@pytest.mark.parametrize("recipe", ["onecycle", "reference"])
def test_an_interrupted_run_goes_on_to_the_same_digits(norm, recipe, monkeypatch, capsys):
    run = make_run(recipe, norm, batch_size=32, epochs=3)
    whole = fit(run)
    path = utils.get_checkpoint_path(run, "checkpoints")
    path.unlink()
    save = utils.Checkpoint.save

    def stop(self, history):
        save(self, history)
        if len(history["lr"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils.Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(run)
    torch.rand(5)  # the generator's state is not that of the run any more
    capsys.readouterr()
    assert is_same(fit(run), whole)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Going on after epoch 2 from {path}; to start over, delete that file."
    assert [line.split()[0] for line in said[2:]] == ["1", "2", "3"]


def test_a_cell_interrupted_in_an_epoch_can_be_run_again(whole, monkeypatch):
    prepared = interrupt(monkeypatch, 2)
    history = utils.fit(RUN, *prepared)  # with the model as the interruption left it
    assert history["test_loss"] == whole[0]["test_loss"]
    assert all(torch.equal(v, whole[1][k]) for k, v in prepared[0].state_dict().items())


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch, utils
from test_resume import fit

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def save_half(state, file):
    buffer = utils.io.BytesIO()
    save(state, buffer)
    file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    file.flush()
    die()

moment, epoch = {moment!r}, {epoch}
save, fsync, calls = torch.save, os.fsync, []

def count(function, at):
    def counted(*args):
        calls.append(args)
        return (at if len(calls) == epoch else function)(*args)
    return counted

if moment == "in an epoch":
    utils.test = count(utils.test, die)
elif moment == "in the middle of writing":
    torch.save = count(torch.save, save_half)
else:
    os.fsync = count(os.fsync, die)
fit()
"""


@pytest.mark.parametrize(
    ("moment", "epoch"),
    [
        ("in an epoch", 3),
        ("in the middle of writing", 2),
        ("before the renaming", 3),
    ],
)
def test_a_killed_run_goes_on_to_the_same_digits(moment, epoch, whole, capsys):
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), moment=moment, epoch=epoch)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    capsys.readouterr()
    assert is_same(fit(), whole)
    assert f"Going on after epoch {epoch - 1} " in capsys.readouterr().out


def test_a_finished_run_leaves_its_result_and_no_checkpoint():
    history, _ = fit()
    assert PATH.exists()  # until the result is written
    save_result(history=history)
    assert not PATH.exists()
    assert Path("results/onecycle-bn-seed1.json").exists()
    assert list(PATH.parent.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"flip": 0.4}, {"epochs": 4}, {"weight_decay": 0.0}]
)
def test_a_checkpoint_of_another_recipe_is_kept_and_not_used(change, monkeypatch, capsys):
    other = make_run(batch_size=32, **({"epochs": 3, "dropout": 0.1} | change))
    whole = fit(other)
    PATH.unlink()
    fit()
    content = PATH.read_bytes()
    capsys.readouterr()
    assert is_same(fit(other), whole)
    assert "is of another recipe, norm, seed or version" in capsys.readouterr().out
    assert content in [path.read_bytes() for path in PATH.parent.glob("*-unused-*.pt")]


@pytest.mark.parametrize("change", [{"norm": "gn"}, {"seed": 2}])
def test_a_checkpoint_of_another_norm_or_seed_does_not_matter(change):
    fit()
    content = PATH.read_bytes()
    run = make_run(batch_size=32, epochs=3, dropout=0.1, **change)
    first = fit(run)
    utils.get_checkpoint_path(run, "checkpoints").unlink()
    assert is_same(fit(run), first)
    assert PATH.read_bytes() == content
    PATH.rename(utils.get_checkpoint_path(run, "checkpoints"))  # as if it were the other's
    assert is_same(fit(run), first)


def test_a_checkpoint_of_another_version_is_not_used(whole, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0.0")
        fit()
    capsys.readouterr()
    assert is_same(fit(), whole)
    assert "is of another recipe, norm, seed or version" in capsys.readouterr().out


def test_a_truncated_or_garbled_checkpoint_is_kept_and_not_used(whole, monkeypatch, capsys):
    interrupt(monkeypatch, 3)
    good = PATH.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(good), (12,), generator=generator).tolist()
    bad = [b"", good[:100], good[: len(good) // 2], good[:-1], b"x" * len(good)]
    bad += [good[:k] + bytes([good[k] ^ 255]) + good[k + 1 :] for k in places]
    for content in bad:
        PATH.write_bytes(content)
        capsys.readouterr()
        prepared = prepare(RUN, make_dataset(64))
        history = utils.Checkpoint(RUN, prepared[0], *prepared[3:5], "checkpoints").load()
        said = capsys.readouterr().out
        if "Going on" in said:  # the byte was padding between the file's parts
            weights = torch.load(io.BytesIO(good), weights_only=True)["model"]
            assert all(torch.equal(v, weights[k]) for k, v in prepared[0].state_dict().items())
            continue
        assert history["lr"] == []
        assert "It is kept as" in said
        assert not PATH.exists()
        assert content in [path.read_bytes() for path in PATH.parent.glob("*-unused-*.pt")]
    PATH.write_bytes(good[:-1])
    assert is_same(fit(), whole)


class Trap:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_does_not_run(zipped, capsys):
    PATH.parent.mkdir()
    if zipped:
        torch.save({"identity": Trap(), "history": Trap()}, PATH)
        assert zipfile.ZipFile(PATH).testzip() is None
    else:
        PATH.write_bytes(pickle.dumps(Trap()))
    fit()
    assert not Path("trapped").exists()
    assert "can't be read. It is kept as" in capsys.readouterr().out
    kept = next(PATH.parent.glob("*-unused-*.pt"))
    _ = torch.load(kept, weights_only=False) if zipped else pickle.loads(kept.read_bytes())
    assert Path("trapped").exists()  # the trap works: loaded without care it does run


@pytest.mark.parametrize("target", [utils.os, Path])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(target, monkeypatch):
    interrupt(monkeypatch, 2)
    good = PATH.read_bytes()

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, "fsync" if target is utils.os else "replace", fail)
        with pytest.raises(OSError, match=f"{PATH} could not be written .No space.*Make room"):
            fit()
    assert PATH.read_bytes() == good
    assert list(PATH.parent.iterdir()) == [PATH]


def test_a_diverging_run_stops_in_its_epoch_and_leaves_the_last_good_checkpoint(monkeypatch):
    step, calls = torch.optim.SGD.step, []

    def explode(self, *args):
        calls.append(args)
        if len(calls) == 3:  # the first step of the second epoch
            self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", explode)
    with pytest.raises(FloatingPointError) as error:
        fit()
    assert "epoch 2, step 2: the loss is nan at learning rate 0." in str(error.value)
    assert "Try a lower learning rate" in str(error.value)
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    assert all(v.isfinite().all() for v in saved["model"].values())


def test_a_model_that_is_trained_already_is_refused():
    prepared = prepare(RUN, make_dataset(64))
    utils.fit(RUN, *prepared)
    PATH.unlink()
    with pytest.raises(RuntimeError, match="trained already: run the notebook from block 5"):
        utils.fit(RUN, *prepared)


# --- The result


def save_result(recipe="onecycle", history=None, **changes):
    run = make_run(recipe, **changes)
    dataset = make_dataset(20)
    data = utils.Data(tuple("abcdefghij"), dataset, dataset)
    prediction = F.one_hot(dataset.tensors[1], 10).float()
    history = history or {"test_acc": [10.0] * run.recipe.epochs}
    model, *_ = prepare(run)
    return model, utils.save_result(run, data, model, history, prediction)


RESULT = Path("results") / "onecycle-gn-seed7.json"


def read_all(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_result_says_what_ran_and_what_came_out():
    model, said = save_result(norm="gn", seed=7)
    assert str(RESULT) in said
    result = json.loads(RESULT.read_text())
    assert utils.Recipe(**result["recipe"]) == utils.get_recipe("onecycle")
    assert (result["norm"], result["seed"], result["parameters"]) == ("gn", 7, 48_448)
    assert result["data"] == {"name": "CIFAR-10", "train_size": 20, "test_size": 20}
    assert result["test_predictions"] == "01234567890123456789"
    assert set(result["environment"]) == {"torch", "device", "precision", "threads"}
    weights = torch.load(RESULT.with_suffix(".pt"), weights_only=True)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert set(read_all("results")) == {RESULT.name, RESULT.with_suffix(".pt").name}


def test_a_smoke_run_writes_nothing_and_leaves_what_is_there():
    save_result(norm="gn", seed=7)
    before = read_all("results")
    _, said = save_result("smoke", norm="gn", seed=7)
    assert said.startswith("Nothing was written: this run was on stand-in gratings")
    assert read_all("results") == before


def test_a_result_is_not_overwritten_by_a_run_of_fewer_epochs():
    save_result(norm="gn", seed=7)
    before = read_all("results")
    checkpoint = utils.get_checkpoint_path(make_run(norm="gn", seed=7), "checkpoints")
    checkpoint.parent.mkdir()
    checkpoint.touch()
    _, said = save_result(norm="gn", seed=7, epochs=19)
    assert f"{RESULT} is there, of a run of more epochs" in said
    assert read_all("results") == before
    assert checkpoint.exists(), "its epochs are lost"
    save_result(norm="gn", seed=7, lr=0.01)
    assert read_all("results") != before
    assert not checkpoint.exists()


def test_a_damaged_result_is_replaced():
    RESULT.parent.mkdir()
    RESULT.write_text('{"history": {"test_acc": [1.0')
    save_result(norm="gn", seed=7)
    assert json.loads(RESULT.read_text())["seed"] == 7


@pytest.mark.parametrize("file", [1, 2])
def test_a_result_that_cannot_be_written_leaves_the_old_one_whole(file, monkeypatch):
    save_result(norm="gn", seed=7)
    before, calls = read_all("results"), []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == file:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"{RESULT} could not be written .No space.*unchanged"):
        save_result(norm="gn", seed=7, lr=0.01)
    assert read_all("results") == before
