"""A run: its recipe, what identifies it, its checkpoint and its result. Nothing is lost."""

import copy
import errno
import functools
import io
import itertools
import json
import math
import subprocess
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

import cifar10
import runs
import utils
from common import CPU, ROOT, make_dataset, make_run, prepare
from models import Session8Net
from runs import Recipe

SMALL = {"batch_size": 32, "epochs": 3, "dropout": 0.1}  # on 64 images, 3 epochs of 2 steps
RUN = make_run(**SMALL)
PATH = Path("checkpoints/float32/onecycle-bn-seed1.pt")

# --- The recipe


def test_a_recipe_is_known_by_its_name():
    assert runs.get_recipe(" reference\n") is runs.RECIPES["reference"]
    assert runs.get_recipe("smoke", groups=8, lr=0.1).name == "smoke-groups-8-lr-0.1"
    with pytest.raises(ValueError, match="'One'.*'muon', 'quick', 'onecycle', 'reference'"):
        runs.get_recipe("One")


WRONG = [("name", "../x"), ("optimizer", "adam"), ("small_size", 19), ("dropout", 1)]
WRONG += [("epochs", 2.5), ("lr", math.nan), ("lr", math.inf), ("lr", "0.1")]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_recipe_that_cannot_be_trained_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*, but must be "):
        Recipe(**{"name": "x"} | {name: value})


# --- Identity


def test_a_run_is_known_by_recipe_norm_seed_and_precision():
    changes = ({}, {"recipe": "reference"}, {"norm": "gn"}, {"seed": 2}, {"precision": "bfloat16"})
    paths = {make_run(**change).get_path("runs", ".pt").as_posix() for change in changes}
    assert len(paths) == 5
    assert {"runs/float32/onecycle-bn-seed1.pt", "runs/bfloat16/onecycle-bn-seed1.pt"} <= paths
    assert make_run(norm="rms").title.startswith("rms normalization"), "a norm of the user's own"
    assert {type(make_run(seed=seed).seed) for seed in (" 42 ", np.int64(3))} == {int}
    for value in ("../bn", "", -1, 1.5, True, 2**32):
        for name in ("norm", "precision", "seed")[0 if isinstance(value, str) else 2 :]:
            with pytest.raises(ValueError, match=f"(?i)^{name} is "):
                make_run(**{name: value})


def test_the_code_is_known_by_its_commit_whatever_results_are_there(tmp_path, monkeypatch):
    def git(what):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command += what.split()
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    monkeypatch.setattr(runs, "get_code", runs.get_code.__wrapped__)
    old, new = Path("results/old.json"), Path("results/new.json")
    runs.write_whole({Path("runs.py"): b"1", old: b"1"})
    assert runs.get_code() == {}
    for command in ("init --quiet", "add .", "commit --quiet --message first"):
        git(command)
    old.rename(new)
    clean = {"commit": git("rev-parse HEAD"), "clean": True}
    git("init --quiet other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert clean.items() <= runs.get_environment(CPU, "float32").items()
    Path("runs.py").write_text("2", encoding="utf-8")
    assert runs.get_code() == clean | {"clean": False}
    Path(".git").rename("old")
    Path(".git").write_text("gitdir: nowhere", encoding="utf-8")
    assert runs.get_code() == {}, "git finds no repository"


# --- Checkpoint


def fit(run=RUN, training=None, folder="checkpoints"):
    """Return the history, without its times, and the weights of the run."""
    training = training or prepare(run, make_dataset(64))
    history = utils.fit(run, training, folder)
    return {k: v for k, v in history.items() if k != "seconds"}, training.model.state_dict()


@functools.cache
def get_whole(run=RUN):
    """Return the same of a run that was never interrupted."""
    return fit(run, folder="whole")


def is_same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][k], other[1][k]) for k in one[1])


def interrupt(epoch, run=RUN, training=None):
    """Run into that epoch, as a user who interrupts the cell, and return what was trained."""
    train, calls = utils.train, []
    training = training or prepare(run, make_dataset(64))

    def stop(*args):
        trained = train(*args)
        calls.append(args)
        if len(calls) == epoch:  # the model has moved on, but the epoch is not finished
            raise KeyboardInterrupt
        return trained

    with mock.patch.object(utils, "train", stop), pytest.raises(KeyboardInterrupt):
        utils.fit(run, training)
    return training


@functools.cache
def get_checkpoint():
    """Return the content of the checkpoint that RUN leaves after its first epoch."""
    interrupt(2)
    return PATH.read_bytes()


@pytest.mark.parametrize(
    ("recipe", "norm", "again"),  # the notebook, or the cell alone
    [("onecycle", "bn", True), ("reference", "none", False), ("muon", "gn", False)],
)
def test_an_interrupted_run_goes_on_to_the_same_digits(recipe, norm, again, capsys):
    run = make_run(recipe, norm, **SMALL)
    training = interrupt(3, run)
    torch.rand(5)  # the generator's state is not that of the run any more
    capsys.readouterr()
    assert is_same(fit(run, training if again else None), get_whole(run))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"Going on after epoch 2 from {run.get_path('checkpoints', '.pt')}")
    assert [line.split()[0] for line in said[1:5]] == ["epoch", "1", "2", "3"]


def test_a_run_goes_on_elsewhere_and_lists_where_it_was(monkeypatch, capsys):
    one = {"torch": "2.9", "device": "a CPU", "threads": 1, "commit": "a", "clean": True}
    two = one | {"torch": "9.9", "threads": 64, "commit": "b", "clean": False}
    for here in (one, two):  # an epoch each
        monkeypatch.setattr(runs, "get_environment", lambda *_, here=here: here)
        interrupt(2)
    monkeypatch.setattr(runs, "get_environment", lambda *_: one)
    training = prepare(RUN, make_dataset(64))
    capsys.readouterr()
    assert is_same(fit(training=training), get_whole())
    (told,) = [line for line in capsys.readouterr().out.splitlines() if " was " in line]
    changes = (
        "torch was 9.9, is 2.9; threads was 64, is 1; commit was b, is a; clean was False, is "
    )
    assert told.endswith(f": {changes}True.")
    result = save_result(training)
    assert result["environment"] == one
    assert result["earlier_environments"] == [one, two]


def test_a_model_that_has_moved_is_not_trained_as_a_new_one():
    training = prepare(RUN, make_dataset(64))
    loader = torch.utils.data.DataLoader(training.test_loader.dataset)  # it has no transforms
    with pytest.raises(AttributeError, match="transforms"):  # before it moves, which is no harm
        fit(training=training._replace(test_loader=loader))
    interrupt(1, training=training)
    from_block_6 = with_optimizer(training, utils.get_optimizer(training.model, RUN.recipe))
    for again in (training, from_block_6):
        with pytest.raises(RuntimeError, match="trained already.* block 5"):
            utils.fit(RUN, again)


def with_optimizer(training, optimizer, make=None, **options):
    """Return the training with that optimizer and a scheduler for it."""
    make = make or functools.partial(utils.get_scheduler, recipe=RUN.recipe, steps_per_epoch=2)
    return training._replace(optimizer=optimizer, scheduler=make(optimizer, **options))


def test_the_cells_run_again_after_the_result_show_the_same(capsys):
    training = prepare(RUN, make_dataset(64))
    history = copy.deepcopy(utils.fit(RUN, training, "mine"))
    first = capsys.readouterr().out
    save_result(training, history=history)
    assert not read_all("mine"), "the checkpoint goes from the folder that fit was given"
    assert utils.fit(RUN, training, "mine") == history
    assert capsys.readouterr().out == first
    plain = utils.Loader(training.train_loader.dataset, training.test_loader.transforms, 32, True)
    others = (make_run(**SMALL, seed=2), training), (RUN, training._replace(train_loader=plain))
    for run, other in others:  # what did not train this model
        with pytest.raises(RuntimeError, match="trained already"):
            utils.fit(run, other, "mine")
    result = save_result(training, run=make_run(**SMALL, norm="gn", seed=2))
    assert (result["norm"], result["seed"]) == ("bn", 1), "of the run that was trained"


def test_parts_that_do_not_belong_together_are_refused_before_the_first_epoch(monkeypatch):
    monkeypatch.setattr(utils, "train", mock.Mock(side_effect=AssertionError))
    one, other = (prepare(RUN, make_dataset(64)) for _ in range(2))
    with pytest.raises(ValueError, match="optimizer lacks some of the model's parameters"):
        utils.fit(RUN, one._replace(optimizer=other.optimizer, scheduler=other.scheduler))
    with pytest.raises(ValueError, match="scheduler is another optimizer's"):
        utils.fit(RUN, one._replace(scheduler=other.scheduler))
    one.model.layers.C1.requires_grad_(False)  # what is frozen needs no optimizer
    rest = [p for p in one.model.parameters() if p.requires_grad]
    with pytest.raises(AssertionError):  # it trains
        utils.fit(RUN, with_optimizer(one, torch.optim.SGD(rest, lr=0.1)))


def use_late_peak(training):
    optimizer = utils.get_optimizer(training.model, RUN.recipe)
    return with_optimizer(training, optimizer, recipe=make_run(**SMALL, warmup=0.6).recipe)


def use_cosine(training):
    optimizer = torch.optim.Adam(training.model.parameters(), lr=0.01)
    return with_optimizer(training, optimizer, lr_scheduler.CosineAnnealingLR, T_max=6)


WEIGHTS = torch.arange(10.0)
MOMENTUM, RATE = (("optimizer", "groups", 0, name) for name in ("momentum", "max_lr"))
CHANGES = [  # what a user may change, how a message calls it, and what a result says of it
    ("network", lambda t: t.model.layers.C1.requires_grad_(False), ("trainable",), 47_984),
    ("network", lambda t: t._replace(model=nn.Sequential(t.model)), ("parameters",), 48_448),
    ("train_loader", lambda t: setattr(t.train_loader, "batch_size", 16), ("seed",), 1),
    ("data", lambda t: t.train_loader.dataset.tensors[0].fill_(1), ("data", "test_size"), 64),
    ("data", lambda t: t.train_loader.dataset.tensors[1].fill_(1), ("data", "test_size"), 64),
    ("optimizer", lambda t: t.optimizer.param_groups[0].update(momentum=0.8), MOMENTUM, 0.8),
    ("optimizer", use_cosine, ("scheduler", "T_max"), 6),
    ("scheduler", use_late_peak, RATE, 0.05),
    ("loss", lambda t: t._replace(criterion=nn.NLLLoss(WEIGHTS)), ("loss", "weight"), [*range(10)]),
]


@pytest.mark.parametrize(("name", "change", "where", "value"), CHANGES)
def test_other_parts_are_refused_a_checkpoint_and_written_as_what_they_were(
    name, change, where, value
):
    training = prepare(RUN, make_dataset(64))
    changed = change(training)  # in place or not
    training = changed if isinstance(changed, runs.Training) else training
    check_refused(RUN, training, name, get_checkpoint())
    assert functools.reduce(lambda part, key: part[key], where, save_result(training)) == value
    weights = torch.load(RUN.get_path("runs", ".pt"), weights_only=True)
    assert set(weights) == set(training.model.state_dict())


def check_refused(run, training, name, content):
    path = run.get_path("checkpoints", ".pt")
    runs.write_whole({path: content})
    with pytest.raises(ValueError, match=rf"{path} belongs to another run.*: .*\b{name}\b"):
        fit(run, training)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change", [{"rotation": 5}, {"norm": "gn"}, {"seed": 2}, {"precision": "bfloat16"}], ids=str
)
def test_a_checkpoint_of_another_run_is_refused_even_under_its_name(change):
    name = "recipe" if "rotation" in change else [*change][0]
    check_refused(make_run(**SMALL, **change), None, name, get_checkpoint())


def test_another_loss_in_the_same_kernel_does_not_get_the_first_ones_history():
    def make(weight):
        if weight is None:

            def loss(prediction, labels):
                return F.nll_loss(prediction, labels)
        else:

            def loss(prediction, labels):
                return F.nll_loss(prediction, labels, weight=weight)

        return loss

    def use(weight):
        return prepare(RUN, make_dataset(64))._replace(criterion=make(weight))

    first = fit(training=use(None))
    check_refused(RUN, use(WEIGHTS), "loss", PATH.read_bytes())
    assert is_same(fit(training=use(None)), first), "the same, at another address"


def test_a_schedule_that_moves_the_momentum_does_not_change_the_description():
    training = prepare(RUN)
    own = torch.optim.Adam(training.model.parameters())
    training = with_optimizer(training, own, lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6)
    before = runs.describe_training(training)
    for part in (own, training.scheduler) * 3:
        part.step()
    assert runs.describe_training(training) == before


@pytest.mark.parametrize("kind", [np.float64, torch.tensor])
def test_a_rate_of_another_library_goes_on(kind):
    def use():
        training = prepare(RUN, make_dataset(64))
        own = torch.optim.SGD(training.model.parameters(), lr=kind(0.1))
        return with_optimizer(training, own, lr_scheduler.StepLR, step_size=3)

    interrupt(3, training=use())
    history, _ = fit(training=use())
    assert history["lr"] == pytest.approx([0.1, 0.1, 0.01])


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_a_checkpoint_holds_the_state_of_the_gpus_generator(monkeypatch):
    restored, cuda = [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state: restored.append(state))
    checkpoint = runs.Checkpoint(RUN, prepare(RUN), "checkpoints")
    checkpoint.device = cuda
    checkpoint.save(HISTORY)
    assert checkpoint.load() == HISTORY
    assert restored == [(torch.tensor([1]), cuda)]


def test_a_damaged_checkpoint_is_named_and_kept_and_its_code_is_not_run():
    good, trap = get_checkpoint(), io.BytesIO()
    torch.save({"identity": Trap()}, trap)
    start, end = good[: len(good) // 2], good[len(good) // 2 :]
    for bad in (b"", start, end, trap.getvalue()):
        runs.write_whole({PATH: bad})
        with pytest.raises(ValueError, match=f"{PATH} is damaged"):
            fit()
        assert PATH.read_bytes() == bad
    assert not Path("trapped").exists()
    PATH.unlink()
    PATH.mkdir()  # can't be read, which is another error
    with pytest.raises(OSError, match=PATH.name):  # noqa: PT011
        fit()


# --- A run that diverges


@pytest.mark.parametrize(
    ("broken", "step", "named"),  # an infinite variance divides to 0: the loss is finite
    [("conv.weight", 4, "step 5"), ("norm.running_var", 6, "its weights")],
)
def test_an_epoch_that_is_not_finite_leaves_the_last_checkpoint(broken, step, named):
    run, steps = make_run(**SMALL | {"batch_size": 22}), itertools.count(1)  # 3 steps an epoch
    training = prepare(run, make_dataset(64))
    tensor = training.model.layers.C1.state_dict()[broken]
    training.optimizer.register_step_post_hook(
        lambda *_: next(steps) == step and tensor.fill_(math.inf)
    )
    with pytest.raises(FloatingPointError, match=f"diverged.*{named}.* not finite"):
        utils.fit(run, training)
    saved = torch.load(PATH, weights_only=True)
    assert len(saved["history"]["lr"]) == 1
    runs.check_finite(saved=saved)
    assert list(PATH.parent.iterdir()) == [PATH]


# --- Result

HISTORY = {column: [10.0] * 3 for column in utils.COLUMNS}


def save_result(training=None, history=HISTORY, clean=51.5, run=RUN):
    """Save a result into runs/ and return it as it was written."""
    training = training or prepare(run, make_dataset(64))
    data = cifar10.Data(("a",), make_dataset(20), make_dataset(20))  # not what trained
    prediction = F.one_hot(training.test_loader.dataset.tensors[1], 10).float()
    said = utils.save_result(run, data, training, history, clean, prediction)
    path = Path(said.split()[1])
    assert said == f"Written: {path.as_posix()} and {path.stem}.pt, the weights."
    text = path.read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def read_all(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_result_says_what_ran_and_what_came_out():
    run = make_run("muon", "bn", 7, batch_size=32, epochs=2)
    training = prepare(run, make_dataset(64))
    history = utils.fit(run, training)
    path = Path("runs/float32/muon-bn-seed7.json")
    result = save_result(training, history, run=run)
    assert not read_all("checkpoints")
    assert set(read_all("runs")) == {path, path.with_suffix(".pt")}
    assert Recipe(**result["recipe"]) == run.recipe
    environment = runs.get_environment(CPU, "float32")
    expected = {"norm": "bn", "seed": 7, "environment": environment, "history": history}
    expected |= {"clean_train_acc": 51.5, "test_predictions": ("0123456789" * 7)[:64]}
    assert expected.items() <= result.items()
    assert runs.describe_training(training).items() <= result.items()
    assert result["trainable"] == 48_448
    sizes = {"name": "CIFAR-10", "train_size": 64, "test_size": 64}
    assert result["data"] == sizes | {"checksums": [runs.get_checksum(make_dataset(64))] * 2}
    assert "earlier_environments" not in result
    weights = torch.load(path.with_suffix(".pt"), weights_only=True)
    assert set(weights) > {"layers.C1.norm.running_mean", "layers.C1.norm.running_var"}
    assert all(torch.equal(weights[k], v) for k, v in training.model.state_dict().items())


def test_a_result_before_the_end_tells_its_epochs_and_keeps_the_checkpoint():
    training = interrupt(3)
    assert len(save_result(training, history=HISTORY)["history"]["lr"]) == 2
    assert is_same(fit(training=training), get_whole())
    short = HISTORY | {"test_loss": [math.nan, math.inf]}  # of a loop of one's own
    assert save_result(history=short)["history"] == HISTORY | {"test_loss": [None, None]}


def test_a_field_that_a_result_lacks_was_at_its_default():
    recipe, fields = runs.get_recipe("onecycle"), asdict(runs.get_recipe("onecycle"))
    del fields["groups"]
    assert runs.is_same_recipe(fields | {"gone": 0.0}, recipe)
    assert not runs.is_same_recipe(fields, make_run(groups=8).recipe)
    assert not any(
        runs.is_same_recipe(fields | other, recipe) for other in ({"gone": 1}, {"lr": 1})
    )


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("function", "effects"),
    [("os.fsync", [None, FULL]), ("pathlib.Path.replace", FULL)],  # None: the weights are written
)
def test_a_full_disk_leaves_what_was_there(function, effects):
    save_result()
    training = prepare(RUN, make_dataset(64))
    utils.fit(RUN, training)
    before = read_all(".")
    with mock.patch(function, side_effect=effects), pytest.raises(OSError, match="No space left"):
        save_result(training, clean=52.5)
    assert read_all(".") == before
    assert PATH in before, "the checkpoint is there until its result is"


# --- The committed results


def make_zeros(n):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(n, -1, -1, -1)
    return TensorDataset(images, torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
@pytest.mark.parametrize("recipe", ["muon", "quick", "onecycle", "reference"])
def test_todays_code_trains_what_the_committed_results_say(recipe, norm):
    run = make_run(recipe, norm)
    result = json.loads(run.get_path(ROOT / "results", ".json").read_text(encoding="utf-8"))
    ours = runs.describe_training(prepare(run, make_zeros(50_000), make_zeros(10_000)))
    assert runs.is_same_recipe(result["recipe"], run.recipe)
    for described in (result, ours):  # which older versions of PyTorch do not say
        described["network"] = described["network"].replace("affine=True, bias=True", "affine=True")
    for name in ("network", "parameters", "optimizer"):
        assert result[name] == ours[name], name
    for name in ("scheduler", "loss"):  # of which more is recorded than once was
        assert result[name].items() <= ours[name].items()
    for name in ("train_loader", "test_loader"):
        assert result[name].replace(" a batch", " per batch") == ours[name]
    assert {"torch", "device", "threads", "commit", "clean"} < set(result["environment"])


# --- The optimizers, on whatever a model has


def step(change=lambda model: None, **fields):
    """Return a model after a step, how each parameter moved, and the optimizer."""
    torch.manual_seed(0)
    model, (images, labels) = Session8Net("bn"), make_dataset(4).tensors
    change(model)
    options = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0} | fields
    optimizer = utils.get_optimizer(model, make_run("muon", **options).recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.nll_loss(model(images / 255), labels).backward()
    optimizer.step()
    return model, {n: before[n] - p.detach() for n, p in model.named_parameters()}, optimizer


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_parametrized_kernels_move(optimizer):
    def change(model):
        wraps = itertools.cycle([parametrizations.weight_norm, parametrizations.spectral_norm])
        for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
            next(wraps)(module)

    _, moves, made = step(change, optimizer=optimizer)
    assert [p.ndim for p in made.param_groups[0]["params"]] == [4] * 11
    assert all(move.any() for move in moves.values())


def test_a_tied_kernel_moves_once_and_a_frozen_or_unused_one_stays():
    def change(model):
        model.layers.C9.conv.weight = model.layers.C5.conv.weight
        model.layers.C1.conv.weight.requires_grad_(False)
        model.unused = nn.Conv2d(3, 4, 3)

    _, moves, _ = step(change)
    turned = moves["layers.C5.conv.weight"].flatten(1) / 0.03
    assert 0.6 < torch.linalg.matrix_norm(turned, 2) < 1.3, "singular values are near 1"
    assert not moves["layers.C1.conv.weight"].any()
    assert not moves["unused.weight"].any()


def test_a_bias_that_is_added_moves_by_sgd():
    ours, theirs = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = utils.get_optimizer(Session8Net("bn"), make_run("muon").recipe)
    optimizer.add_param_group({"params": [ours], "lr": 0.1})
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.95, nesterov=True)
    for made in (optimizer, sgd) * 2:
        ours.grad = theirs.grad = torch.full((4,), 2.0)
        made.step()
    assert torch.equal(ours, theirs)


def test_normalized_moves_kernels_by_its_rate_and_the_rest_as_sgd():
    model, moves, _ = step(optimizer="normalized", lr=0.02, affine_lr=0.5)
    for name, move in moves.items():
        if move.ndim > 1:
            assert move.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-3), name
        else:
            assert torch.allclose(move, 0.5 * model.get_parameter(name).grad, atol=1e-6), name


def test_adamw_is_the_library_s_and_decays_kernels_alone():
    _, _, optimizer = step(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.3)
    assert type(optimizer) is torch.optim.AdamW
    shared = {"lr": 0.01, "betas": (0.8, 0.999)}
    for group, decay, ndim in zip(optimizer.param_groups, (0.3, 0.0), (4, 1), strict=True):
        assert (shared | {"weight_decay": decay}).items() <= group.items()
        assert {p.ndim for p in group["params"]} == {ndim}
