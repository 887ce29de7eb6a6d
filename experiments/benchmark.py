"""Measure a training step of the notebooks beside a textbook loop and beside the network alone.

    python -m experiments.benchmark

It needs no CIFAR-10: the images are drawn at random, which takes a step as long. Each way of
training has a process of its own and waits while the others are measured; all take turns, so that a
slow minute of the machine hits them all. It prints three tables in Markdown: each norm's rows when
they are measured, and then what follows from them.
"""

import argparse
import contextlib
import math
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

import utils
from cifar10 import MEAN, STD, Data
from experiments import results as records
from models import Session8Net
from runs import get_environment

SIZE = 50_000  # images, as many as CIFAR-10 has for training
RECIPE, SGD, QUICK, REFERENCE = map(utils.get_recipe, ("muon", "onecycle", "quick", "reference"))
EPOCH, TEST_EPOCH = (-(-size // RECIPE.batch_size) for size in (SIZE, 10_000))  # steps
WARMUP = 5  # steps before each measurement; they also use up what workers have prepared

Loop = Callable[[int], None]  # trains for that many steps


class PILDataset(Dataset):
    """Images one at a time, through PIL, as torchvision's own data sets give them."""

    def __init__(self, transform: Callable):
        self.images = torch.randint(0, 256, (SIZE, 32, 32, 3), dtype=torch.uint8).numpy()
        self.transform = transform

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def make_textbook(norm: str, workers: int) -> Loop:
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


def make_ours(
    norm: str, recipe: utils.Recipe = RECIPE, evaluate: bool = False, precision: str = ""
) -> Loop:
    """Return the notebooks' own `train`, or `test`, on so many batches of the recipe."""
    precision = precision or records.get_precision()
    model, train_loader, test_loader, *rest = assemble_random(norm, recipe, precision)
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


def make_floor(norm: str) -> Loop:
    """Return forward, backward and step on one batch: no data, no count, no schedule."""
    precision = records.get_precision()
    model, loader, _, optimizer, _, criterion = assemble_random(norm, RECIPE, precision)
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


def assemble_random(norm: str, recipe: utils.Recipe, precision: str) -> tuple:
    """Return what the notebooks train with, on random images."""
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(SIZE) % 10)
    recipe = replace(recipe, epochs=1000)  # never at the end of its schedule
    data = Data((), dataset, dataset).to(utils.get_device())
    return utils.assemble(utils.Run(recipe, norm, 1, precision), data)


KINDS: dict[str, Callable[[str], Loop]] = {
    "textbook, 0 workers": lambda norm: make_textbook(norm, 0),
    "textbook, 2 workers": lambda norm: make_textbook(norm, 2),
    "ours": make_ours,
    "ours, SGD": lambda norm: make_ours(norm, SGD),
    "floor": make_floor,
    "ours, evaluation": lambda norm: make_ours(norm, evaluate=True),
    "ours, float32": lambda norm: make_ours(norm, precision="float32"),
    "ours, float32, evaluation": lambda norm: make_ours(norm, evaluate=True, precision="float32"),
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


def get_medians(measured: dict[str, tuple[list[float], float]]) -> dict[str, float]:
    """Return the milliseconds a step by kind; `textbook` is the faster of its two."""
    step = {kind: statistics.median(times) for kind, (times, _) in measured.items()}
    return step | {"textbook": min(step["textbook, 0 workers"], step["textbook, 2 workers"])}


def make_ratios(norm: str, measured: dict[str, tuple[list[float], float]]) -> str:
    """Return the row of ratios of one norm: of medians, against the faster textbook loop."""
    step = get_medians(measured)
    ours, evaluation = step["ours"], step["ours, evaluation"]
    ratios = (step["textbook"] / ours, step["floor"] / ours, ours / step["ours, SGD"])
    cells = [f"{ratio:.2f}" for ratio in ratios] + [f"{evaluation * 10_000 / SIZE / ours:.3f}"]
    return f"| {norm} | {' | '.join(cells)} |"


def make_minutes(norm: str, measured: dict[str, tuple[list[float], float]]) -> str:
    """Return the row of one norm's minutes to a final accuracy.

    They are those of the textbook loop, for the epochs that REFERENCE needs and without any
    evaluation, and ours of the whole of QUICK, with an evaluation after each epoch, in the chosen
    precision and in float32; then usual / ours. Accuracies are the means of the runs in results/,
    a dash where there are none.
    """
    step = get_medians(measured)
    reference = load_histories(REFERENCE, norm, "float32")
    epochs = average([count_epochs(history) for history in reference])
    usual = epochs * EPOCH * step["textbook"] / 60_000
    cells = [f"{epochs:.1f}", f"{usual:.1f}", f"{average([h[-1] for h in reference]):.2f}"]
    for kind, precision in (("ours", records.get_precision()), ("ours, float32", "float32")):
        evaluation = TEST_EPOCH * step[f"{kind}, evaluation"]
        quick = QUICK.epochs * (EPOCH * step[kind] + evaluation) / 60_000
        accuracy = average([h[-1] for h in load_histories(QUICK, norm, precision)])
        cells += [f"{quick:.1f}", f"{usual / quick:.1f}", f"{accuracy:.2f}"]
    return f"| {norm} | {' | '.join(cells).replace('nan', '–')} |"


def load_histories(recipe: utils.Recipe, norm: str, precision: str) -> list[list[float]]:
    """Return the test accuracies (%) by epoch of the recipe's runs in results/."""
    results = records.load_results(records.ROOT / "results" / precision)
    return [run["history"]["test_acc"] for run in records.pick(results, recipe.name, norm)]


def count_epochs(history: Sequence[float]) -> int:
    """Return after how many epochs an accuracy (%) is first within 0.1 of its last."""
    return next(i for i, accuracy in enumerate(history, 1) if accuracy >= history[-1] - 0.1)


def average(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else math.nan


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
    precision = records.get_precision()
    environment = get_environment(utils.get_device(), precision)
    print(", ".join(f"{key} {value}" for key, value in environment.items()), end="\n\n")
    print("| norm | loop | ms a step: median (range) | images/s | s an epoch | peak GiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    measured = {}
    for norm in records.COMPARED:
        measured[norm] = measure_norm(norm, options.steps, options.repeats)
        print("\n".join(make_rows(norm, measured[norm])), flush=True)
    print("\n| norm | textbook / ours | floor / ours | Muon / SGD | evaluation / epoch |")
    print("| --- |" + " ---: |" * 4)
    print("\n".join(make_ratios(*pair) for pair in measured.items()))
    columns = ["`reference`: epochs", "textbook (min)", "accuracy (%)"]
    for kind in (precision, "float32"):
        columns += [f"`quick`, {kind} (min)", "ratio", "accuracy (%)"]
    print(f"\n| norm | {' | '.join(columns)} |\n| --- |" + " ---: |" * len(columns))
    print("\n".join(make_minutes(*pair) for pair in measured.items()))


if __name__ == "__main__":
    main()
