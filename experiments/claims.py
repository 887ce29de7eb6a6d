"""Measure the effects claimed for normalizations, and search for recipes on held-out images.

    python -m experiments.claims rates --arms bn gn --values 0.1 --seeds 1 2 3

An arm is a norm, or "he": He initialization without a normalization. A run whose JSON exists is
skipped, and an interrupted run resumes (those of `shift` start over). All runs are in float32. The
lab book describes each claim.
"""

import argparse
import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

import utils
from cifar10 import Data
from experiments import results as records
from experiments import robustness
from experiments.replicate import add_options, get_runs, run_left
from experiments.results import BARE, COMPARED, ROOT, SEEDS
from experiments.variants import ADDED, make_network
from runs import RECIPES, Recipe, Run, Training, check_finite, describe_run, make_json, write_whole

FOLDER = ROOT / "results" / "claims"
CHECKPOINTS = ROOT / "checkpoints" / "claims"
SGD, MUON = RECIPES["onecycle"], RECIPES["muon"]
ARMS = ("none", "he", "bn", "gn", "ln")
Tensors = dict[str, torch.Tensor]  # the parameters of a network, or their gradients, by name


# --- What each claim measures --------------------------------------------------------------------

HELD_OUT = 5_000  # training images on which `search` evaluates
RECOMPUTED_ON = 10_000  # training images, for recomputed batch statistics
SCALE_IMAGES = 512  # test images, over which a channel's deviation is taken
SHIFT_EVERY = 20  # steps between measurements of `shift`
WATCHED = ("C2", "C5", "C8", "C10")  # layers whose gradient is compared
DISTANCES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # along the gradient, as multiples of the rate


def measure_history(run: Run, training: Training) -> dict:
    """Train, and return the history."""
    return {"history": utils.fit(run, training, CHECKPOINTS)}


def measure_final(run: Run, training: Training) -> dict:
    """Train, and return what a notebook's result records."""
    history = utils.fit(run, training, CHECKPOINTS)
    test_loader, criterion = training.test_loader, training.criterion
    images = training.train_loader.dataset
    clean = utils.Loader(images, test_loader.transforms, test_loader.batch_size)
    accuracy = utils.test(training.model, clean, criterion, run.precision)[1]
    prediction = utils.predict(training.model, test_loader, run.precision)[0]
    return utils.get_outcome(training, history, accuracy, prediction)


def measure_averages(run: Run, training: Training) -> dict:
    """Train; also return test accuracy (%) with statistics recomputed on RECOMPUTED_ON images."""
    history = utils.fit(run, training, CHECKPOINTS)
    images = TensorDataset(*training.train_loader.dataset[:RECOMPUTED_ON])
    update_bn(utils.Loader(images, utils.get_test_transforms(), 1_000), training.model)
    accuracy = utils.test(training.model, training.test_loader, training.criterion)[1]
    return {"history": history, "recomputed_acc": accuracy}


def measure_scales(run: Run, training: Training) -> dict:
    """Train; also return the standard deviation of each channel by layer, before and after.

    They are taken over SCALE_IMAGES test images and all positions of a block's output.
    """
    images = utils.get_test_transforms()(training.test_loader.dataset[:SCALE_IMAGES][0])
    before = get_deviations(training.model, images)
    history = utils.fit(run, training, CHECKPOINTS)
    after = get_deviations(training.model, images)
    return {"history": history, "before": before, "after": after}


@torch.inference_mode()
def get_deviations(model: nn.Module, images: torch.Tensor) -> dict[str, list[float]]:
    """Return the standard deviation of each channel of each block's output, by layer."""
    deviations = {}
    # Training mode changes the running averages: use a copy.
    for name, layer in copy.deepcopy(model).train().layers.named_children():
        images = layer(images)
        if name.startswith("C"):
            deviations[name] = images.std(dim=(0, 2, 3)).tolist()
    return deviations


def measure_shift(run: Run, training: Training) -> dict:
    """Train; return the shift and the loss along the gradient at every SHIFT_EVERY-th step."""
    model, loader, test_loader, optimizer, scheduler, criterion = training
    utils.set_seed(run.seed)
    watched = {layer: f"layers.{layer}.conv.weight" for layer in WATCHED}
    rows, step = [], 0
    model.train()
    for _ in range(run.recipe.epochs):
        for images, labels in loader:
            rate = optimizer.param_groups[0]["lr"]
            if step % SHIFT_EVERY == 0:
                get = make_gradient(model, criterion, images, labels)
                weights = dict(model.named_parameters())
                shift = get_shift(get, weights, rate, watched)
                row = {"step": step, "shift": shift, **get_line(get, weights, rate)}
                # None replaces what is not finite: far along the gradient the loss may overflow.
                rows.append(json.loads(json.dumps(row), parse_constant=lambda _: None))
            utils.train(model, [(images, labels)], optimizer, scheduler, criterion)
            step += 1
    loss, accuracy = utils.test(model, test_loader, criterion)
    check_finite(test_loss=loss)
    return {"history": {"test_loss": [loss], "test_acc": [accuracy]}, "rows": rows}


Gradient = Callable[[Tensors], tuple[float, Tensors]]  # maps weights to the loss and its gradient


def make_gradient(model: nn.Module, criterion, images, labels) -> Gradient:
    """Return a function from weights to this batch's loss and its gradient."""

    def get(weights: Tensors) -> tuple[float, Tensors]:
        weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = criterion(functional_call(model, weights | buffers, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        return loss.item(), dict(zip(weights, gradients, strict=True))

    return get


def get_shift(get: Gradient, weights: Tensors, rate: float, watched: Mapping[str, str]) -> dict:
    """Return how each watched gradient changes after a step of all earlier weights.

    `watched` maps labels to names of weights. This is the internal covariate shift of Santurkar et
    al. (2018).
    """
    _, gradients = get(weights)
    shifts = {}
    for label, name in watched.items():
        earlier = list(weights)[: list(weights).index(name)]
        moved = {other: weights[other] - rate * gradients[other] for other in earlier}
        shifts[label] = measure_change(gradients[name], get(weights | moved)[1][name])
    return shifts


def measure_change(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return the norm of the difference, as a share of the norm of `one`, and the cosine."""
    one, other = one.double().flatten(), other.double().flatten()  # since some are tiny
    cosine = one @ other / (one.norm() * other.norm())
    return {"change": ((other - one).norm() / one.norm()).item(), "cosine": cosine.item()}


def get_line(get: Gradient, weights: Tensors, rate: float) -> dict:
    """Measure loss and gradient along the negative gradient, at DISTANCES times the rate.

    Returns the range of the loss, the gradient's largest change as a share of its norm, and the
    largest change per distance (the effective smoothness of Santurkar et al. 2018).
    """
    _, gradients = get(weights)
    start, losses, changes = torch.cat([g.flatten() for g in gradients.values()]), [], []
    for distance in DISTANCES:
        loss, there = get({n: weights[n] - distance * rate * gradients[n] for n in weights})
        losses.append(loss)
        there = torch.cat([gradient.flatten() for gradient in there.values()])
        changes.append(measure_change(start, there)["change"])
    losses, changes, distances = torch.tensor([losses, changes, DISTANCES], dtype=torch.float64)
    return {  # by torch, since Python's max can miss a NaN
        "loss_range": [losses.min().item(), losses.max().item()],
        "change": changes.max().item(),
        "smoothness": (changes / distances).max().item(),
    }


# --- The claims ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What is run for a claim, and what is measured in each run."""

    measure: Callable[[Run, Training], dict]
    arms: Sequence[str]
    recipes: Mapping[str, Recipe]  # by the value that is varied
    protocol: Mapping[str, object] = field(default_factory=dict)  # what else is fixed
    seeds: Sequence[int] = (1, 2, 3)
    varies: str = ""  # the argument of `make_network` that varies, if any

    def get_settings(self, run: Run) -> dict[str, int]:
        """Return this run's extra argument of `make_network`, if any."""
        return {self.varies: int(run.recipe.name.rpartition("-")[2])} if self.varies else {}


# A value of `search` names a recipe to try.
OPTIMIZERS = {f"sgd-{lr:g}": replace(SGD, lr=lr) for lr in (0.01, 0.03, 0.1, 0.3)}
OPTIMIZERS |= {f"muon-{lr:g}": replace(MUON, lr=lr) for lr in (0.01, 0.02, 0.03, 0.05)}
# Steps whose size does not depend on the gradient's. AdamW's momentum is its first beta.
NORMALIZED = replace(MUON, optimizer="normalized")
ADAMW = replace(MUON, optimizer="adamw", momentum=0.9)
SCALED = {f"normalized-{lr:g}": replace(NORMALIZED, lr=lr) for lr in (0.0003, 0.001, 0.003, 0.01)}
SCALED |= {f"adamw-{lr:g}": replace(ADAMW, lr=lr) for lr in (0.001, 0.003, 0.01, 0.03)}
RATES = {f"{lr:g}": replace(SGD, lr=lr) for lr in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
SIZES = {f"{n}": replace(SGD, batch_size=n, lr=0.05 * n / 128) for n in (2, 4, 16, 64, 256)}
PLAIN = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "scheduler": "step", "crop": 0}
AT_0_1 = {"0.1": replace(SGD, epochs=3, lr=0.1, flip=0.0, **PLAIN)}


def vary(claim: str, recipes: Mapping[str, Recipe], **changes) -> dict[str, Recipe]:
    """Return the recipes by value, with `changes`, and named after claim and value."""
    return {v: replace(recipe, name=f"{claim}-{v}", **changes) for v, recipe in recipes.items()}


SEARCHED = vary("search", OPTIMIZERS | SCALED, epochs=10)
GHOSTS = vary("ghosts", {f"{n}": SGD for n in (2, 4, 16, 64, 128)}, epochs=5)
DEEPER = vary("depth", {f"{n}": MUON for n in ADDED}, lr=0.02, epochs=4)
COMMITTED = vary("robustness", {"muon": MUON})
HELD = {"held_out": HELD_OUT}
RECOMPUTED, SCALES = {"recomputed_on": RECOMPUTED_ON}, {"images": SCALE_IMAGES}
SHIFT = {"every": SHIFT_EVERY, "watched": list(WATCHED), "distances": list(DISTANCES)}
CLAIMS = {
    "rates": Claim(measure_history, ARMS, vary("rates", RATES, epochs=4)),
    "search": Claim(measure_history, (*BARE, "bn"), SEARCHED, HELD),
    "baseline": Claim(measure_final, BARE, vary("baseline", OPTIMIZERS)),
    "optimizers": Claim(measure_final, ARMS[:4], vary("optimizers", SCALED), seeds=SEEDS),
    "batches": Claim(measure_averages, COMPARED, vary("batches", SIZES, epochs=5), RECOMPUTED),
    "scales": Claim(measure_scales, ARMS, vary("scales", {"0.05": SGD}, epochs=4), SCALES),
    "shift": Claim(measure_shift, ARMS, vary("shift", AT_0_1), SHIFT),
    "ghosts": Claim(measure_averages, ("bn",), GHOSTS, RECOMPUTED, seeds=SEEDS, varies="ghost"),
    "depth": Claim(measure_history, ("none", "bn"), DEEPER, varies="depth"),
    "robustness": Claim(robustness.measure, COMPARED, COMMITTED, robustness.PROTOCOL, seeds=SEEDS),
}


def hold_out(data: Data, size: int) -> Data:
    """Replace the test set by `size` training images, always the same; train on the others."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    parts = (TensorDataset(*data.train[index]) for index in (order[size:], order[:size]))
    return Data(data.classes, *parts)


def rename(nest, old: str, new: str):
    """Replace the prefix `old` of keys by `new`, in nested mappings."""
    if not isinstance(nest, Mapping):
        return nest
    names = {key: new + key.removeprefix(old) if key.startswith(old) else key for key in nest}
    return {names[key]: rename(part, old, new) for key, part in nest.items()}


def run_claim(name: str, run: Run) -> str:
    """Make one run of a claim, write its JSON, and return its outcome as a line of text.

    A diverged run has a result, too: the error, and no accuracy. If images are held out,
    `test_` becomes `validation_` in the keys of the result.
    """
    claim, data = CLAIMS[name], records.load_data(run.recipe)
    settings = claim.get_settings(run)
    if held_out := claim.protocol.get("held_out"):
        data = hold_out(data, held_out)
    training = utils.assemble(run, data, functools.partial(make_network, **settings))
    try:
        measured = claim.measure(run, training)
        said = f"{measured['history']['test_acc'][-1]:.2f} %"
    except FloatingPointError as error:
        measured, said = {"history": {}, "diverged": str(error)}, str(error)
    result = describe_run(run, data) | {"protocol": claim.protocol | settings} | measured
    if held_out:
        result = rename(result, "test_", "validation_")
    write_whole({run.get_path(FOLDER, ".json"): make_json(result)})
    run.get_path(CHECKPOINTS, ".pt").unlink(missing_ok=True)
    return said


def make_command(claim: str, run: Run) -> list[str]:
    """Return the module and the arguments that make this one run."""
    value = run.recipe.name.removeprefix(f"{claim}-")
    options = f"{claim} --values {value} --arms {run.norm} --seeds {run.seed} --one"
    return ["experiments.claims", *options.split()]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Measure what a normalization is said to do.")
    claims = parser.add_subparsers(dest="claim", required=True)
    for name, claim in CLAIMS.items():
        options = claims.add_parser(name)
        for option, known in (("--arms", claim.arms), ("--values", claim.recipes)):
            options.add_argument(option, nargs="+", choices=known, default=list(known))
        options.add_argument("--one", action="store_true", help="make one run, in this process")
        add_options(options, claim.seeds)
    options = parser.parse_args(arguments)
    options.norms = options.arms
    options.precision = "float32"
    return options


def main() -> None:
    options = parse()
    claim = CLAIMS[options.claim]
    runs = get_runs([claim.recipes[value] for value in options.values], options)
    if options.one:
        return print(run_claim(options.claim, runs[0]))
    run_left(runs, FOLDER, functools.partial(make_command, options.claim), options)


if __name__ == "__main__":
    main()
