"""Measure a training step of the notebooks beside a textbook loop and beside the network alone.

    python experiments/benchmark.py

It needs no CIFAR-10: the images are drawn at random, which takes a step as long. Each way of
training has a process of its own and waits while the others are measured; all take turns, so that
a slow minute of the machine hits them all. It prints a table in Markdown.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils  # noqa: E402
from models import Session8Net  # noqa: E402

SIZE = 50_000  # images, as many as CIFAR-10 has for training
RECIPE = utils.get_recipe("onecycle")
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
    """Return the loop of the usual notebook: an image at a time, float32, a number every step."""
    device = utils.get_device()
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(utils.MEAN, utils.STD),
        ]
    )
    loader = DataLoader(
        PILDataset(transform),
        RECIPE.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = Session8Net(norm, dropout=0.05).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

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


def make_ours(norm: str, evaluate: bool = False) -> Run:
    """Return the notebooks' own `train`, or `test`, on so many batches of the recipe."""
    device = utils.get_device()
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.arange(SIZE, device=device) % 10
    model, optimizer = make_model(norm, device)
    scheduler = utils.get_scheduler(optimizer, RECIPE, 1_000_000)  # never at its end
    criterion = utils.get_loss(RECIPE)
    train_transforms, test_transforms = (
        utils.get_train_transforms(RECIPE),
        utils.get_test_transforms(),
    )

    def run(steps: int) -> None:
        part = steps * RECIPE.batch_size
        dataset = TensorDataset(images[:part], labels[:part])
        if evaluate:
            loader = utils.get_loader(dataset, test_transforms, RECIPE.batch_size)
            utils.test(model, loader, criterion)
        else:
            loader = utils.get_loader(dataset, train_transforms, RECIPE.batch_size, shuffle=True)
            utils.train(model, loader, optimizer, scheduler, criterion)

    return run


def make_floor(norm: str) -> Run:
    """Return forward, backward and step on one batch: no data, no count, no schedule."""
    device = utils.get_device()
    images = torch.randn(RECIPE.batch_size, 3, 32, 32, device=device)
    labels = torch.arange(RECIPE.batch_size, device=device) % 10
    model, optimizer = make_model(norm, device)
    precision = utils.get_precision(device)
    utils.keep_memory()

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                prediction = model(images)
            optimizer.zero_grad()
            nn.functional.nll_loss(prediction, labels).backward()
            optimizer.step()

    return run


def make_model(norm: str, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return network and optimizer as the notebooks have them."""
    model = Session8Net(norm, dropout=RECIPE.dropout).train()
    model = model.to(device, memory_format=torch.channels_last)
    return model, utils.get_optimizer(model, RECIPE)


KINDS: dict[str, Callable[[str], Run]] = {
    "textbook, 0 workers": lambda norm: make_textbook(norm, 0),
    "textbook, 2 workers": lambda norm: make_textbook(norm, 2),
    "ours": make_ours,
    "floor": make_floor,
    "ours, evaluation": lambda norm: make_ours(norm, evaluate=True),
}


def serve(kind: str, norm: str, connection) -> None:
    """Answer a number of steps with their seconds; answer 0 with the peak memory in GiB, and end.

    The memory is that of this process, without a loader's workers; on CUDA it is the GPU's.
    """
    device, run = utils.get_device(), KINDS[kind](norm)
    run(WARMUP)
    while steps := connection.recv():
        run(WARMUP)
        connection.send(measure(run, steps, device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    connection.send(peak)


def measure(run: Run, steps: int, device: torch.device) -> float:
    """Return the seconds that `steps` steps take, on CUDA until the GPU has done them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_norm(norm: str, steps: int, repeats: int) -> dict[str, tuple[list[float], float]]:
    """Return, for each kind, the milliseconds a step of each repeat and the peak memory in GiB."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for kind in KINDS:
        pipes[kind], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(kind, norm, theirs)))
        processes[-1].start()
        theirs.close()  # so that a process that fails ends the wait for it
    times = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, pipe in pipes.items():
            pipe.send(steps)
            times[kind].append(pipe.recv() / steps * 1000)
    memory = {}
    for kind, pipe in pipes.items():
        pipe.send(0)
        memory[kind] = pipe.recv()
    for process in processes:
        process.join()
    return {kind: (times[kind], memory[kind]) for kind in KINDS}


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
    """Return the row of ratios of one norm: of medians, against the faster textbook loop."""
    step = {kind: statistics.median(times) for kind, (times, _) in measured.items()}
    textbook = min(step["textbook, 0 workers"], step["textbook, 2 workers"])
    evaluation = step["ours, evaluation"] * 10_000 / SIZE / step["ours"]
    return (
        f"| {norm} | {textbook / step['ours']:.2f} | {step['floor'] / step['ours']:.2f} "
        f"| {evaluation:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement (default 20)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements each (default 5)")
    arguments = parser.parse_args()
    if not 1 <= arguments.steps <= EPOCH or arguments.repeats < 1:
        parser.error(f"--steps must be from 1 to {EPOCH}, one epoch, and --repeats at least 1")
    measured = {}
    for norm in ("bn", "gn", "ln"):
        print(f"measuring {norm} ...", file=sys.stderr)
        measured[norm] = measure_norm(norm, arguments.steps, arguments.repeats)
    environment = utils.get_environment(utils.get_device())
    print(", ".join(f"{key} {value}" for key, value in environment.items()), end="\n\n")
    print("| norm | loop | ms a step: median (range) | images/s | s an epoch | peak GiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    print(
        "\n".join(row for norm in measured for row in make_rows(norm, measured[norm])), end="\n\n"
    )
    print("| norm | textbook / ours | floor / ours | evaluation / epoch |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(make_ratios(norm, measured[norm]) for norm in measured))


if __name__ == "__main__":
    main()
