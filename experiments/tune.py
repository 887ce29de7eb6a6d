"""Compare hyperparameters on images held out of the training set; the test set plays no part.

    python experiments/tune.py --trials start lr-0.05 --norms bn gn ln

Each trial trains each network on 45,000 of the training images, in one process with one thread,
and judges it by the other 5,000 at the end of the last epoch. The JSON goes to results/tuning/; a
run that has one is skipped, and one that was cut off goes on. At the end all of them are printed
as a table, which evidence.py puts into the README.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from evidence import NAMES, load_results, make_tuning  # noqa: E402
from models import Session8Net  # noqa: E402
from replicate import is_done, run_all  # noqa: E402

HELD_OUT = 5_000  # images
FOLDER = ROOT / "results" / "tuning"

# What the search started from, and what each trial, named for it, changes in it. Of the first
# three the best became `onecycle`; a later one had to raise the mean of the norms by MARGIN.
MARGIN = 0.6  # points
START = replace(
    utils.get_recipe("onecycle"),
    batch_size=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    warmup=0.2,
    start_factor=0.1,
    crop=2,
    rotation=0.0,
    resize=0.0,
    flip=0.5,
)
TRIALS = {
    "start": {},
    "lr-0.2": {"lr": 0.2},
    "lr-0.05": {"lr": 0.05},
    "lr-0.025": {"lr": 0.025},
    "lr-0.025-batch-64": {"lr": 0.025, "batch_size": 64},
    "lr-0.05-decay-0.001": {"lr": 0.05, "weight_decay": 1e-3},
    "lr-0.05-decay-0.0002": {"lr": 0.05, "weight_decay": 2e-4},
    "lr-0.05-warmup-0.1": {"lr": 0.05, "warmup": 0.1},
    "lr-0.05-warmup-0.4": {"lr": 0.05, "warmup": 0.4},
    "lr-0.05-crop-1": {"lr": 0.05, "crop": 1},
    "lr-0.05-crop-3": {"lr": 0.05, "crop": 3},
    "lr-0.05-rotation-3-resize-0.05": {"lr": 0.05, "rotation": 3.0, "resize": 0.05},
    # These also change what no recipe has.
    (AVERAGED := "lr-0.05-averaged-weights"): {"lr": 0.05},
    (NO_DECAY := "lr-0.05-no-decay-on-norms"): {"lr": 0.05},
    (ALTERNATING := "lr-0.05-flip-0-but-alternating"): {"lr": 0.05, "flip": 0.0},
    (CENTRALIZED := "centralized-gradients"): {},
    f"lr-0.05-{CENTRALIZED}": {"lr": 0.05},
}

# The second search, with Muon, and what each trial, named for it, changes in its start. The two
# trials that have the best mean of the norms by seed 1 get a second seed. The start keeps its
# place unless the other then leads by MUON_MARGIN: one standard error of the difference between
# two such means, by the spread that MARGIN, two standard errors with one seed, was made from.
MUON_MARGIN = 0.2  # points
MUON = replace(
    START,
    optimizer="muon",
    lr=0.03,
    affine_lr=0.05,
    momentum=0.95,
    weight_decay=0.05,
    warmup=0.1,
)
MUON_TRIALS = {
    "muon": {},
    "muon-decay-0.1": {"weight_decay": 0.1},
    "muon-lr-0.02": {"lr": 0.02},
    "muon-lr-0.05": {"lr": 0.05},
    "muon-affine-lr-0.2": {"affine_lr": 0.2},
    "muon-lr-0.02-batch-64": {"lr": 0.02, "batch_size": 64},
    (SGD_ENDS := "muon-but-sgd-for-C1-and-c11"): {},
    "muon-crop-3": {"crop": 3},
    "muon-momentum-0.9": {"momentum": 0.9},
    "muon-crop-1": {"crop": 1},
    "muon-lr-0.05-batch-256": {"lr": 0.05, "batch_size": 256},
}


def make_run(trial: str, norm: str, seed: int) -> utils.Run:
    """Return the run of that trial, whose recipe has the trial's name."""
    if trial in MUON_TRIALS:
        return utils.Run(replace(MUON, name=trial, **MUON_TRIALS[trial]), norm, seed)
    return utils.Run(replace(START, name=trial, **TRIALS[trial]), norm, seed)


def get_ends_by_sgd(model: Session8Net, recipe: utils.Recipe) -> torch.optim.Optimizer:
    """Return Muon's optimizer, with the first and the last layer left to SGD."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    rest = [parameter for parameter in model.parameters() if parameter.ndim != 4]
    return utils.MuonAndSGD(kernels[1:-1], [kernels[0], kernels[-1], *rest], recipe)


def hold_out(dataset: TensorDataset, size: int) -> tuple[TensorDataset, TensorDataset]:
    """Split a data set into the images to train on and `size` others; always the same ones."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return TensorDataset(*dataset[order[size:]]), TensorDataset(*dataset[order[:size]])


class AveragedNet(nn.Module):
    """A network, and the average of its weights over about 1,000 steps, which is what is tested."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        average = get_ema_multi_avg_fn(decay=0.999)
        self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def update(self, *_) -> None:
        self.average.update_parameters(self.model)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) if self.training else self.average(images)


def spare_norms(optimizer: torch.optim.Optimizer) -> None:
    """Take the normalizations' scales and shifts out of the weight decay."""
    (group,) = optimizer.param_groups
    norms = [parameter for parameter in group["params"] if parameter.ndim == 1]
    group["params"] = [parameter for parameter in group["params"] if parameter.ndim > 1]
    optimizer.add_param_group({"params": norms, "weight_decay": 0.0})


def centralize_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    """Take its mean out of the gradient of each filter (Yong et al. 2020, arXiv:2004.01461)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.ndim > 1:  # no scale or shift
                parameter.grad -= parameter.grad.mean((1, 2, 3), keepdim=True)


class AlternatingFlip(TensorDataset):
    """Images of which each is mirrored in every other epoch (Jordan 2024, arXiv:2404.00498)."""

    get_epoch: Callable[[], int]  # the number of the epoch that is running

    def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = super().__getitem__(index)
        mirrored = (index + self.get_epoch()) % 2 == 1
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images), labels


def run_trial(run: utils.Run, folder: Path = FOLDER) -> str:
    """Train, judge by the held-out images, write the JSON, and return a line that says the outcome.

    The JSON is that of a notebook's result, without predictions and with `validation_` for `test_`.
    """
    recipe, device, name = run.recipe, utils.get_device(), run.recipe.name
    data = utils.get_data(recipe, os.environ.get("CIFAR10_ROOT", ROOT / "data"), device)
    trained_on, held_out = hold_out(data.train, HELD_OUT)
    if name == ALTERNATING:
        trained_on = AlternatingFlip(*trained_on.tensors)
        trained_on.get_epoch = lambda: scheduler.last_epoch // len(train_loader)
    transforms = utils.get_train_transforms(recipe)
    train_loader = utils.get_loader(trained_on, transforms, recipe.batch_size, shuffle=True)
    loader = utils.get_loader(held_out, utils.get_test_transforms(), recipe.batch_size)
    utils.set_seed(run.seed)
    model = Session8Net(run.norm, dropout=recipe.dropout)
    model = model.to(device, memory_format=torch.channels_last)
    if name == AVERAGED:
        model = AveragedNet(model)
    optimizer = utils.get_optimizer(model, recipe)
    if name == SGD_ENDS:
        optimizer = get_ends_by_sgd(model, recipe)
    if name == AVERAGED:
        optimizer.register_step_post_hook(model.update)
    if name == NO_DECAY:
        spare_norms(optimizer)
    if name.endswith(CENTRALIZED):
        optimizer.register_step_pre_hook(centralize_gradients)
    scheduler = utils.get_scheduler(optimizer, recipe, len(train_loader))
    parts = (model, train_loader, loader, optimizer, scheduler, utils.get_loss(recipe))
    checkpoints = ROOT / "checkpoints" / "tuning"
    with contextlib.redirect_stdout(io.StringIO()):  # trials that run together would mix lines
        history = utils.fit(run, *parts, folder=checkpoints)
    result = {
        **asdict(run),
        "data": {
            "name": recipe.data,
            "train_size": len(trained_on),
            "validation_size": len(held_out),
        },
        "history": {key.replace("test_", "validation_"): value for key, value in history.items()},
        "environment": utils.get_environment(device),
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{run.name}.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(folder / f"{run.name}.json")  # whole or not at all
    utils.get_checkpoint_path(run, checkpoints).unlink(missing_ok=True)
    return f"{run.name}: {result['history']['validation_acc'][-1]:.2f} %"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", nargs="+", required=True, choices=[*TRIALS, *MUON_TRIALS])
    parser.add_argument("--norms", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=utils.get_seed, default=[1])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trials at a time")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    runs = [
        make_run(trial, norm, seed)
        for seed in options.seeds
        for trial in options.trials
        for norm in options.norms
    ]
    jobs = [(run,) for run in runs if not is_done(run, FOLDER)]
    failures = run_all(run_trial, jobs, options.processes, threads=1)
    print(make_tuning(load_results(FOLDER)))
    if failures:
        sys.exit(f"{len(failures)} of {len(jobs)} trials failed; run this again to go on with them")


if __name__ == "__main__":
    main()
