"""Measure what a normalization is said to do, each claim by itself.

    python -m experiments.claims rates --seeds 1 2 3

Arms are the norms and "he", which is "none" with He's first weights. Every run is a process with
one thread and has a JSON in results/claims/; a run that has one is skipped, and one that was cut
off goes on (one of `shift` starts over). The lab book says what each claim is, and what was
expected.
"""

import argparse
import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

import utils
from cifar10 import Data
from experiments import results as records
from experiments import tune
from experiments.replicate import Prefixed, get_runs, parse_count, parse_seed, run_left
from experiments.results import ROOT
from runs import check_finite, describe, make_json, write_whole

FOLDER = ROOT / "results" / "claims"
CHECKPOINTS = ROOT / "checkpoints" / "claims"
SGD, MUON = map(utils.get_recipe, ("onecycle", "muon"))
ARMS = ("none", "he", "bn", "gn", "ln")
Tensors = dict[str, torch.Tensor]  # the parameters of a network, or their gradients, by name


def assemble(run: utils.Run, data: Data) -> tuple:
    """Return `utils.assemble` of the run's arm."""
    if run.norm != "he":
        return utils.assemble(run, data)
    model, *parts = utils.assemble(replace(run, norm="none"), data)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # He et al. 2015
    return model, *parts


def fit(run: utils.Run, parts: tuple) -> dict[str, list[float]]:
    with contextlib.redirect_stdout(Prefixed(run.name)):
        return utils.fit(run, *parts, folder=CHECKPOINTS)


# --- What each claim measures --------------------------------------------------------------------

RECOMPUTED_ON = 10_000  # training images, for batch statistics computed anew
SCALE_IMAGES = 512  # test images, over which a channel's deviation is taken
SHIFT_EVERY = 20  # steps from one measurement of `shift` to the next
WATCHED = ("C2", "C5", "C8", "C10")  # layers whose gradient is watched
DISTANCES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # along the gradient, times the rate


def measure_history(run: utils.Run, data: Data) -> dict:
    """Train, and return the history."""
    return {"history": fit(run, assemble(run, data))}


def measure_averages(run: utils.Run, data: Data) -> dict:
    """Train; also return the test accuracy (%) with batch statistics computed anew.

    They are those of RECOMPUTED_ON training images without augmentation, in batches of 1,000.
    """
    parts = assemble(run, data)
    model, _, test_loader, *_, criterion = parts
    history = fit(run, parts)
    images = TensorDataset(*(tensor[:RECOMPUTED_ON] for tensor in data.train.tensors))
    loader = utils.get_loader(images, utils.get_test_transforms(), 1_000)
    update_bn(loader, model)
    return {"history": history, "recomputed_acc": utils.test(model, test_loader, criterion)[1]}


def measure_scales(run: utils.Run, data: Data) -> dict:
    """Train; also return each channel's deviation by layer, before and after.

    It is over SCALE_IMAGES test images and all positions, of what a block puts out.
    """
    parts = assemble(run, data)
    images = utils.get_test_transforms()(data.test.tensors[0][:SCALE_IMAGES])
    before = get_deviations(parts[0], images)
    return {
        "history": fit(run, parts),
        "before": before,
        "after": get_deviations(parts[0], images),
    }


@torch.inference_mode()
def get_deviations(model: nn.Module, images: torch.Tensor) -> dict[str, list[float]]:
    """Return the standard deviation of each channel of each block's output, by layer.

    Batch normalization uses the statistics of these images.
    """
    model.train()
    deviations, buffers = {}, {name: b.clone() for name, b in model.named_buffers()}
    for name, layer in model.layers.named_children():
        images = layer(images)
        if name.startswith("C"):
            deviations[name] = images.std(dim=(0, 2, 3)).tolist()
    model.load_state_dict(buffers, strict=False)
    return deviations


def measure_shift(run: utils.Run, data: Data) -> dict:
    """Train by plain SGD; return, for every SHIFT_EVERY-th step, its shift and the loss along it.

    What is not finite there is None: to look ahead where the loss overflows ends no run.
    """
    model, loader, test_loader, optimizer, scheduler, criterion = assemble(run, data)
    utils.set_seed(run.seed)
    watched = {layer: f"layers.{layer}.conv.weight" for layer in WATCHED}
    rows, step = [], 0
    for _ in range(run.recipe.epochs):
        model.train()
        for images, labels in loader:
            rate = optimizer.param_groups[0]["lr"]
            if step % SHIFT_EVERY == 0:
                get = make_gradient(model, criterion, images, labels)
                weights = dict(model.named_parameters())
                shift = get_shift(get, weights, rate, watched)
                row = {"step": step, "shift": shift, **get_line(get, weights, rate)}
                rows.append(drop_infinite(row))
            loss = criterion(model(images), labels)
            check_finite(**{f"loss in step {step + 1}, at rate {rate:g},": loss})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
    loss, accuracy = utils.test(model, test_loader, criterion)
    check_finite(**{f"loss after the last step, at rate {rate:g},": loss})
    return {"history": {"test_loss": [loss], "test_acc": [accuracy]}, "rows": rows}


def drop_infinite(nest: object) -> object:
    """Return the mappings, lists and numbers with None for each number that is not finite."""
    if isinstance(nest, Mapping):
        return {key: drop_infinite(value) for key, value in nest.items()}
    if isinstance(nest, list):
        return list(map(drop_infinite, nest))
    return nest if math.isfinite(nest) else None


Gradient = Callable[[Tensors], tuple[float, Tensors]]  # of weights: the loss and its gradient


def make_gradient(
    model: nn.Module, criterion: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> Gradient:
    """Return the gradient of this batch's loss as a function of the weights.

    The model's own weights and running averages stay as they are.
    """

    def get(weights: Tensors) -> tuple[float, Tensors]:
        weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = criterion(functional_call(model, weights | buffers, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        return loss.item(), dict(zip(weights, gradients, strict=True))

    return get


def get_shift(
    get: Gradient, weights: Tensors, rate: float, watched: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return how the gradients of `watched` change when all earlier weights take their step.

    This is internal covariate shift as Santurkar et al. (2018) define it: for each weight, under
    its label, the norm of the difference as a share of the gradient's, and the cosine of the two.
    """
    _, gradients = get(weights)
    shifts = {}
    for label, name in watched.items():
        earlier = list(weights)[: list(weights).index(name)]
        moved = {other: weights[other] - rate * gradients[other] for other in earlier}
        shifts[label] = measure_change(gradients[name], get(weights | moved)[1][name])
    return shifts


def measure_change(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return the norm of the difference, as a share of the norm of `one`, and the cosine.

    They are computed in float64: without a normalization a gradient can be tiny.
    """
    one, other = one.double().flatten(), other.double().flatten()
    cosine = one @ other / (one.norm() * other.norm())
    return {"change": ((other - one).norm() / one.norm()).item(), "cosine": cosine.item()}


def get_line(get: Gradient, weights: Tensors, rate: float) -> dict:
    """Return what is met along the negative gradient, at DISTANCES times the rate.

    These are the range of the loss, the largest change of the gradient as a share of its norm, and
    the largest quotient of such a change and its distance (the effective smoothness of Santurkar et
    al. 2018, made free of scale).
    """
    _, gradients = get(weights)
    start, losses, changes = join(gradients), [], []
    for distance in DISTANCES:
        loss, there = get({n: weights[n] - distance * rate * gradients[n] for n in weights})
        losses.append(loss)
        changes.append(measure_change(start, join(there))["change"])
    losses, changes, distances = torch.tensor([losses, changes, DISTANCES], dtype=torch.float64)
    return {  # of tensors, since Python's max can miss a nan
        "loss_range": [losses.min().item(), losses.max().item()],
        "change": changes.max().item(),
        "smoothness": (changes / distances).max().item(),
    }


def join(gradients: Tensors) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


# --- The claims ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What is run for a claim, and what is measured in each run."""

    measure: Callable[[utils.Run, Data], dict]
    arms: Sequence[str]
    recipes: Mapping[str, utils.Recipe]  # by the value that is varied
    protocol: Mapping[str, object] = field(default_factory=dict)  # what else is fixed


OPTIMIZERS = {  # four rates each
    **{f"sgd-{lr:g}": replace(SGD, lr=lr) for lr in (0.01, 0.03, 0.1, 0.3)},
    **{f"muon-{lr:g}": replace(MUON, lr=lr) for lr in (0.01, 0.02, 0.03, 0.05)},
}
PLAIN = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "scheduler": "step", "crop": 0}
CLAIMS = {
    "rates": Claim(
        measure_history,
        ARMS,
        {
            f"{lr:g}": replace(SGD, name=f"rates-{lr:g}", epochs=4, lr=lr)
            for lr in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
        },
    ),
    "search": Claim(
        measure_history,
        ("none", "he"),
        {value: replace(r, name=f"search-{value}", epochs=10) for value, r in OPTIMIZERS.items()},
        {"held_out": tune.HELD_OUT},
    ),
    "baseline": Claim(
        measure_history,
        ("none", "he"),
        {value: replace(r, name=f"baseline-{value}") for value, r in OPTIMIZERS.items()},
    ),
    "batches": Claim(
        measure_averages,
        ("bn", "gn", "ln"),
        {
            f"{size}": replace(
                SGD, name=f"batches-{size}", epochs=5, batch_size=size, lr=0.05 * size / 128
            )
            for size in (2, 4, 16, 64, 256)
        },
        {"recomputed_on": RECOMPUTED_ON},
    ),
    "scales": Claim(
        measure_scales,
        ARMS,
        {"0.05": replace(SGD, name="scales-0.05", epochs=4)},
        {"images": SCALE_IMAGES},
    ),
    "shift": Claim(
        measure_shift,
        ARMS,
        {"0.1": replace(SGD, name="shift-0.1", epochs=3, lr=0.1, flip=0.0, **PLAIN)},
        {"every": SHIFT_EVERY, "watched": list(WATCHED), "distances": list(DISTANCES)},
    ),
}


def run_claim(claim: str, run: utils.Run, folder: Path = FOLDER) -> str:
    """Make one run of a claim, write its JSON, and return a line that says what came out.

    A run that diverges is a result: it says where, and has no accuracy. A claim that holds images
    out, as tune.py does, has `validation_` for `test_`.
    """
    data, protocol = records.get_data(run.recipe), dict(CLAIMS[claim].protocol)
    if held_out := protocol.get("held_out"):
        data = tune.hold_out(data, held_out)
    try:
        measured = CLAIMS[claim].measure(run, data)
    except FloatingPointError as error:
        measured = {"history": {}, "diverged": str(error)}
    result = describe(run, data, utils.get_device()) | {"protocol": protocol} | measured
    if held_out:
        result = tune.rename(result)
    write_whole({run.get_path(folder, ".json"): make_json(result)})
    run.get_path(CHECKPOINTS, ".pt").unlink(missing_ok=True)
    if "diverged" in measured:
        return f"{run.name}: {measured['diverged']}"
    return f"{run.name}: {measured['history']['test_acc'][-1]:.2f} %"


def is_done(claim: str, run: utils.Run, folder: Path = FOLDER) -> bool:
    """Tell whether the run's result is there; ValueError if it is of another protocol."""
    if not records.is_done(run, folder):
        return False
    path = run.get_path(folder, ".json")
    if records.load_result(path)["protocol"] != dict(CLAIMS[claim].protocol):
        raise ValueError(f"{path} is of another protocol than {claim!r} has now. Move it away.")
    return True


def parse_value(text: str) -> str:
    """Return a number as a claim's name has it, 1.0 as 1, and any other text as it is."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.set_defaults(precision="float32", threads=1)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--arms", dest="norms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument("--values", nargs="+", type=parse_value, help="such as rates; default: all")
    parser.add_argument("--seeds", nargs="+", type=parse_seed, default=[1, 2, 3])
    parser.add_argument("--processes", type=parse_count, default=os.cpu_count())
    options = parser.parse_args(arguments)
    if (os.environ.get("PRECISION") or "").strip() not in ("", "native", "float32"):
        parser.error("PRECISION is another, but claims are measured in float32 alone: unset it")
    claim = CLAIMS[options.claim]
    for name, known in (("norms", claim.arms), ("values", claim.recipes)):
        chosen = getattr(options, name) or list(known)
        setattr(options, name, chosen)
        if unknown := [value for value in chosen if value not in known]:
            parser.error(f"{options.claim} has {', '.join(known)}, but not {', '.join(unknown)}")
    return options


def main() -> None:
    options = parse()
    recipes = CLAIMS[options.claim].recipes
    runs = get_runs([recipes[value] for value in options.values], options)
    run, done = (functools.partial(function, options.claim) for function in (run_claim, is_done))
    run_left(run, runs, FOLDER, options, done)


if __name__ == "__main__":
    main()
