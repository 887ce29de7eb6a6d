"""Measure a training step of the notebooks beside a textbook loop and beside the network alone.

    python -m experiments.benchmark

It needs no CIFAR-10: the images are drawn at random, which takes a step as long. Each way of
training has a process of its own and waits while the others are measured; all take turns, so that a
slow minute of the machine hits them all. It prints two tables in Markdown.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from multiprocessing import get_context

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

import utils
from cifar10 import MEAN, STD, Data
from experiments import results as records
from models import Session8Net
from runs import RECIPES, Recipe, Run, get_environment

SIZE = 50_000  # images, as many as CIFAR-10 has for training
MUON, QUICK, REFERENCE = (RECIPES[name] for name in ("muon", "quick", "reference"))
EPOCH, TEST_EPOCH = (-(-size // MUON.batch_size) for size in (SIZE, 10_000))  # steps
STEPS = 20  # of a measurement
WARMUP = 5  # steps before each; they also use up what workers have prepared

Loop = Callable[[int], None]  # trains for that many steps


class PILDataset(Dataset):
    """Images one at a time, through PIL, as torchvision's own data sets give them."""

    def __init__(self):
        self.images = torch.randint(0, 256, (SIZE, 32, 32, 3), dtype=torch.uint8).numpy()
        steps = (transforms.RandomHorizontalFlip(), transforms.ToTensor())
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def make_textbook(norm: str, workers: int) -> Loop:
    """Return the loop of the usual notebook: an image at a time, float32, a number every step."""
    device = utils.get_device()
    options = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    loader = DataLoader(PILDataset(), MUON.batch_size, shuffle=True, **options)
    batches = chain.from_iterable(repeat(loader))
    model = Session8Net(norm, dropout=REFERENCE.dropout).to(device).train()
    optimizer = utils.get_optimizer(model, REFERENCE)

    def run(steps: int) -> None:
        for _ in range(steps):
            images, labels = (tensor.to(device) for tensor in next(batches))
            optimizer.zero_grad()
            prediction = model(images)
            loss = nn.functional.nll_loss(prediction, labels)
            loss.backward()
            optimizer.step()
            loss.item(), (prediction.argmax(dim=1) == labels).sum().item()

    return run


def make_ours(norm: str, what: str = "train", precision="", size=None) -> Loop:
    """Return the notebooks' own `train` or `test` on so many batches of random images, or "floor".

    That is forward, backward and step on one batch: no data, no count, no schedule. `size` is that
    of smaller images.
    """
    precision = precision or records.get_precision()
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(SIZE) % 10)
    data = Data((), dataset, dataset).to(utils.get_device())
    run = Run(replace(MUON, epochs=1000), norm, 1, precision)  # not to come to its end
    model, loader, test_loader, *rest = utils.assemble(run, data)
    optimizer, _, criterion = rest
    images, labels = next(iter(loader))

    def take(loader: utils.Loader, steps: int) -> utils.Loader:
        loader.dataset = TensorDataset(*data.train[: steps * MUON.batch_size])
        return loader

    def train(steps: int) -> None:
        utils.train(model, take(loader, steps), *rest, precision, size)

    def test(steps: int) -> None:
        utils.test(model, take(test_loader, steps), criterion, precision)

    def step_on(steps: int) -> None:
        for _ in range(steps):
            with utils.autocast(images.device, precision):
                prediction = model(images)
            optimizer.zero_grad()
            criterion(prediction, labels).backward()
            optimizer.step()

    train(1)  # sets up what the floor needs as well
    return {"train": train, "test": test, "floor": step_on}[what]


SMALL = QUICK.small_size
KINDS: dict[str, Callable[[str], Loop]] = {
    "textbook, 0 workers": partial(make_textbook, workers=0),
    "textbook, 2 workers": partial(make_textbook, workers=2),
    "floor": partial(make_ours, what="floor"),
    "ours": make_ours,
    "ours, small images": partial(make_ours, size=SMALL),
    "ours, evaluation": partial(make_ours, what="test"),
    "ours, float32": partial(make_ours, precision="float32"),
    "ours, float32, small images": partial(make_ours, precision="float32", size=SMALL),
    "ours, float32, evaluation": partial(make_ours, what="test", precision="float32"),
}


def prepare(kind: str, norm: str) -> None:
    """Make this process the one that measures `kind`."""
    global RUN
    RUN = KINDS[kind](norm)
    RUN(WARMUP)


def measure() -> float:
    """Return the milliseconds a step of this process's kind, on CUDA until the GPU is done."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    RUN(WARMUP)
    synchronize()
    start = time.perf_counter()
    RUN(STEPS)
    synchronize()
    return (time.perf_counter() - start) / STEPS * 1000


def measure_norm(norm: str, repeats: int) -> dict[str, list[float]]:
    """Return, by kind, the milliseconds a step of each of its turns."""
    pools = {k: ProcessPoolExecutor(1, get_context("spawn"), prepare, (k, norm)) for k in KINDS}
    for pool in pools.values():
        pool.submit(int).result()  # ready, so that none gets ready while another measures
    times = {kind: [] for kind in KINDS}
    for kind, pool in list(pools.items()) * repeats:
        times[kind].append(pool.submit(measure).result())
    for pool in pools.values():
        pool.shutdown()
    return times


def make_minutes(norm: str, step: dict[str, float]) -> str:
    """Return the row of one norm in the table of minutes to a final accuracy.

    The textbook loop is charged for the epochs that REFERENCE needs and for no evaluation, ours for
    all of QUICK with two evaluations after each epoch, of 10,000 test and training images.
    """
    epochs, accuracy = average_runs(REFERENCE, norm, "float32")
    usual = epochs * EPOCH * step["textbook"] / 60_000
    cells = [f"{epochs:.1f}", f"{usual:.1f}", f"{accuracy:.2f}"]
    for kind, precision in (("ours", records.get_precision()), ("ours, float32", "float32")):
        whole, small, evaluation = (step[kind + k] for k in ("", ", small images", ", evaluation"))
        train = (QUICK.epochs - QUICK.small_epochs) * whole + QUICK.small_epochs * small
        quick = (EPOCH * train + QUICK.epochs * 2 * TEST_EPOCH * evaluation) / 60_000
        accuracy = average_runs(QUICK, norm, precision)[1]
        cells += [f"{quick:.1f}", f"{usual / quick:.1f}", f"{accuracy:.2f}"]
    return f"| {norm} | {' | '.join(cells).replace('nan', '–')} |"


def average_runs(recipe: Recipe, norm: str, precision: str) -> tuple[float, float]:
    """Return the mean epochs until an accuracy (%) is within 0.1 of its last, and that; or nan."""
    folder = records.ROOT / "results" / precision
    paths = sorted(folder.glob(f"{recipe.name}-{norm}-seed[1-5].json"))
    runs = [records.load_result(path)["history"]["test_acc"] for path in paths]
    epochs = [next(i for i, acc in enumerate(run, 1) if acc >= run[-1] - 0.1) for run in runs]
    number = len(runs) or math.nan
    return sum(epochs) / number, sum(run[-1] for run in runs) / number


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Measure the speed of a training step.")
    parser.add_argument("--repeats", type=int, default=5, help="measurements each (default 5)")
    return parser.parse_args(arguments)


def main() -> None:
    repeats, precision = parse().repeats, records.get_precision()
    environment = get_environment(utils.get_device(), precision)
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    print("\n| norm | loop | ms a step: median (range) |\n| --- | --- | ---: |", flush=True)
    medians = {}
    for norm in records.COMPARED:
        times = measure_norm(norm, repeats)
        step = {kind: statistics.median(times[kind]) for kind in KINDS}
        for kind, ms in step.items():
            low, high = min(times[kind]), max(times[kind])
            print(f"| {norm} | {kind} | {ms:.1f} ({low:.1f} to {high:.1f}) |", flush=True)
        textbook = min(step["textbook, 0 workers"], step["textbook, 2 workers"])
        medians[norm] = step | {"textbook": textbook}
    quick = " | ".join(f"`quick`, {p} (min) | ratio | accuracy (%)" for p in (precision, "float32"))
    print(f"\n| norm | `reference`: epochs | textbook (min) | accuracy (%) | {quick} |")
    print("| --- |" + " ---: |" * 9)
    print(*(make_minutes(*pair) for pair in medians.items()), sep="\n")


if __name__ == "__main__":
    main()
