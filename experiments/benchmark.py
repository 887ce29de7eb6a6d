"""Measure a training step of the notebooks beside a textbook loop and beside the network alone.

    python experiments/benchmark.py

It needs no CIFAR-10: the images are drawn at random, which takes a step as long. Each way of
training has a process of its own and waits while the others are measured; all take turns, so that
a slow minute of the machine hits them all. It prints two tables in Markdown, each norm's rows when
they are measured.
"""

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms
from tqdm import tqdm

import records
import utils
from cifar10 import MEAN, STD, Data
from models import Session8Net
from runs import get_environment

SIZE = 50_000  # images, as many as CIFAR-10 has for training
RECIPE, SGD, QUICK, REFERENCE = map(utils.get_recipe, ("muon", "onecycle", "quick", "reference"))
EPOCH, TEST_EPOCH = (-(-size // RECIPE.batch_size) for size in (SIZE, 10_000))  # steps
WARMUP = 5  # steps before each measurement; they also use up what workers have prepared

Run = Callable[[int], None]  # trains for that many steps


class PILDataset(Dataset):
    """Images one at a time, through PIL, as torchvision's own data sets give them."""

    def __init__(self, transform: Callable):
        self.images = torch.randint(0, 256, (SIZE, 32, 32, 3), dtype=torch.uint8).numpy()
        self.transform = transform

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def make_textbook(norm: str, workers: int) -> Run:
    """Return the loop of the usual notebook: an image at a time, float32, a number every step.

    Optimizer and dropout are those of `reference`, the published recipe.
    """
    device = utils.get_device()
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        PILDataset(transform),
        RECIPE.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = Session8Net(norm, dropout=REFERENCE.dropout).to(device).train()
    optimizer = utils.get_optimizer(model, REFERENCE)

    def endless() -> Iterator:
        while True:
            yield from loader

    batches = endless()

    def run(steps: int) -> None:
        total_loss, correct = 0.0, 0
        for _ in range(steps):
            images, labels = (tensor.to(device) for tensor in next(batches))
            optimizer.zero_grad()
            prediction = model(images)
            loss = nn.functional.nll_loss(prediction, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            correct += (prediction.argmax(dim=1) == labels).sum().item()

    return run


def make_ours(norm: str, recipe: utils.Recipe = RECIPE, evaluate: bool = False) -> Run:
    """Return the notebooks' own `train`, or `test`, on so many batches of the recipe."""
    precision, parts = assemble(norm, recipe)
    model, train_loader, test_loader, *rest = parts
    loader = test_loader if evaluate else train_loader
    tensors = loader.dataset.tensors

    def run(steps: int) -> None:
        part = steps * recipe.batch_size
        loader.dataset = TensorDataset(*(tensor[:part] for tensor in tensors))
        if evaluate:
            utils.test(model, loader, rest[-1], precision)
        else:
            utils.train(model, loader, *rest, precision)

    return run


def make_floor(norm: str) -> Run:
    """Return forward, backward and step on one batch: no data, no count, no schedule."""
    precision, (model, loader, _, optimizer, _, criterion) = assemble(norm)
    images, labels = next(iter(loader))
    utils.keep_memory()
    model.train()

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(images.device.type, torch.bfloat16, precision == "bfloat16"):
                prediction = model(images)
            optimizer.zero_grad()
            criterion(prediction, labels).backward()
            optimizer.step()

    return run


def assemble(norm: str, recipe: utils.Recipe = RECIPE) -> tuple[str, tuple]:
    """Return the precision, and what the notebooks train with, on random images."""
    device = utils.get_device()
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(SIZE) % 10)
    precision = utils.get_precision(os.environ.get("PRECISION"), device)
    recipe = replace(recipe, epochs=1000)  # never at the end of its schedule
    data = Data((), dataset, dataset).to(device)
    return precision, utils.assemble(utils.Run(recipe, norm, 1, precision), data)


KINDS: dict[str, Callable[[str], Run]] = {
    "textbook, 0 workers": lambda norm: make_textbook(norm, 0),
    "textbook, 2 workers": lambda norm: make_textbook(norm, 2),
    "ours": make_ours,
    "ours, SGD": lambda norm: make_ours(norm, SGD),
    "floor": make_floor,
    "ours, evaluation": lambda norm: make_ours(norm, evaluate=True),
}


def prepare(kind: str, norm: str) -> None:
    """Make this process the one that measures `kind`."""
    global RUN
    RUN = KINDS[kind](norm)
    RUN(WARMUP)


def measure(steps: int) -> float:
    """Return the milliseconds a step of this process's kind, on CUDA until the GPU is done."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    RUN(WARMUP)
    synchronize()
    start = time.perf_counter()
    RUN(steps)
    synchronize()
    return (time.perf_counter() - start) / steps * 1000


def get_peak() -> float:
    """Return this process's peak memory in GiB, on CUDA the GPU's, without a loader's workers.

    It is nan where it can't be known.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # on Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure_norm(norm: str, steps: int, repeats: int) -> dict[str, tuple[list[float], float]]:
    """Return, for each kind, the milliseconds a step of each repeat and the peak memory in GiB."""
    with contextlib.ExitStack() as stack:
        pools = {
            kind: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), prepare, (kind, norm))
            )
            for kind in KINDS
        }
        for pool in pools.values():
            pool.submit(get_peak).result()  # ready, so that none gets ready while another measures
        times = {kind: [] for kind in KINDS}
        # disable=None: on what is no terminal there is no bar
        for _ in tqdm(range(repeats), desc=f"measuring {norm}", leave=False, disable=None):
            for kind, pool in pools.items():
                times[kind].append(pool.submit(measure, steps).result())
        peaks = {kind: pool.submit(get_peak).result() for kind, pool in pools.items()}
    return {kind: (times[kind], peaks[kind]) for kind in KINDS}


def make_rows(norm: str, measured: dict[str, tuple[list[float], float]]) -> list[str]:
    """Return the table's rows of one norm."""
    rows = []
    for kind, (times, memory) in measured.items():
        step, steps = statistics.median(times), TEST_EPOCH if "evaluation" in kind else EPOCH
        rows.append(
            f"| {norm} | {kind} | {step:.1f} ({min(times):.1f} to {max(times):.1f}) "
            f"| {RECIPE.batch_size / step * 1000:,.0f} | {step * steps / 1000:.1f} | {memory:.2f} |"
        )
    return rows


def make_ratios(norm: str, measured: dict[str, tuple[list[float], float]]) -> str:
    """Return the row of ratios of one norm: of medians, against the faster textbook loop.

    The last are minutes of a whole run: the textbook's of REFERENCE without any evaluation, and
    ours of QUICK with an evaluation after each epoch.
    """
    step = {kind: statistics.median(times) for kind, (times, _) in measured.items()}
    ours, textbook = step["ours"], min(step["textbook, 0 workers"], step["textbook, 2 workers"])
    evaluation = step["ours, evaluation"]
    ratios = (textbook / ours, step["floor"] / ours, ours / step["ours, SGD"])
    usual = REFERENCE.epochs * EPOCH * textbook / 60_000
    quick = QUICK.epochs * (EPOCH * ours + TEST_EPOCH * evaluation) / 60_000
    cells = [f"{ratio:.2f}" for ratio in ratios] + [f"{evaluation * 10_000 / SIZE / ours:.3f}"]
    return f"| {norm} | {' | '.join(cells)} | {usual:.1f} | {quick:.1f} | {usual / quick:.1f} |"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement (default 20)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements each (default 5)")
    options = parser.parse_args(arguments)
    if not 1 <= options.steps <= EPOCH or options.repeats < 1:
        parser.error(f"--steps must be from 1 to {EPOCH}, one epoch, and --repeats at least 1")
    return options


def main() -> None:
    options = parse()
    device = utils.get_device()
    precision = utils.get_precision(os.environ.get("PRECISION"), device)
    environment = get_environment(device, precision)
    print(", ".join(f"{key} {value}" for key, value in environment.items()), end="\n\n")
    print("| norm | loop | ms a step: median (range) | images/s | s an epoch | peak GiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    ratios = []
    for norm in records.NORMS:
        measured = measure_norm(norm, options.steps, options.repeats)
        print("\n".join(make_rows(norm, measured)), flush=True)
        ratios.append(make_ratios(norm, measured))
    print(
        "\n| norm | textbook / ours | floor / ours | Muon / SGD | evaluation / epoch "
        f"| textbook, {REFERENCE.epochs} epochs (min) | `quick`, {QUICK.epochs} epochs (min) "
        "| ratio |\n| --- |" + " ---: |" * 7
    )
    print("\n".join(ratios))


if __name__ == "__main__":
    main()
