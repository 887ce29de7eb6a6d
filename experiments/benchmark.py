"""Compare the time of the notebooks' training step with a textbook loop and the network alone.

    python -m experiments.benchmark

It needs no CIFAR-10: a step takes as long on random images. Each kind of loop has its own process
and waits while the others are measured. They take turns, so that a slow minute of the machine
affects them all. The milliseconds per step are printed and written to results/speed/, from which
`experiments.report` makes the lab book's table.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
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
from runs import RECIPES, Run, get_environment, make_json, write_whole

SIZE = 50_000  # images, as many as CIFAR-10 has for training
MUON, REFERENCE = RECIPES["muon"], RECIPES["reference"]
SMALL = RECIPES["quick"].small_size
STEPS = 20  # per measurement
WARMUP = 5  # steps before each measurement; they also use up the batches that workers prefetched
TURNS = 5  # measurements of each kind

Loop = Callable[[int], None]  # takes that many steps


class PILDataset(Dataset):
    """Single images that go through PIL, like those of torchvision's own data sets."""

    def __init__(self):
        self.images = torch.randint(0, 256, (SIZE, 32, 32, 3), dtype=torch.uint8).numpy()
        steps = (transforms.RandomHorizontalFlip(), transforms.ToTensor())
        self.transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def make_textbook(norm: str, workers: int) -> Loop:
    """Return the loop of a typical notebook: single images, float32, the loss read per step."""
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
    """Return the notebooks' own `train` or `test` on random images, or the "floor".

    The floor repeats forward, backward and optimizer step on one batch, and nothing else.
    With `size`, `train` resizes images to that many pixels per side.
    """
    precision = precision or records.choose_precision()
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(SIZE) % 10)
    data = Data((), dataset, dataset).to(utils.get_device())
    run = Run(replace(MUON, epochs=1000), norm, 1, precision)  # so that the schedule never ends
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

    train(1)  # sets up what the floor needs, too
    return {"train": train, "test": test, "floor": step_on}[what]


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


@cache  # per process
def get_loop(kind: str, norm: str) -> Loop:
    return KINDS[kind](norm)


def measure(kind: str, norm: str) -> float:
    """Return the milliseconds per step of a kind, including pending work of the GPU."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    run = get_loop(kind, norm)
    run(WARMUP)
    synchronize()
    start = time.perf_counter()
    run(STEPS)
    synchronize()
    return (time.perf_counter() - start) / STEPS * 1000


def measure_norm(norm: str) -> dict[str, list[float]]:
    """Return the milliseconds per step by kind, one number per turn."""
    pools = {kind: ProcessPoolExecutor(1, get_context("spawn")) for kind in KINDS}
    turns = [
        {kind: pool.submit(measure, kind, norm).result() for kind, pool in pools.items()}
        for _ in range(1 + TURNS)
    ]
    for pool in pools.values():
        pool.shutdown()
    return {kind: [turn[kind] for turn in turns[1:]] for kind in KINDS}  # the first only sets up


def main() -> None:
    precision = records.choose_precision()
    environment = get_environment(utils.get_device(), precision)
    print(", ".join(f"{key} {value}" for key, value in environment.items()))
    steps = {}
    for norm in records.COMPARED:
        steps[norm] = {
            kind: {"median": statistics.median(ms), "low": min(ms), "high": max(ms)}
            for kind, ms in measure_norm(norm).items()
        }
        for kind, ms in steps[norm].items():
            said = "{median:.1f} ms per step ({low:.1f} to {high:.1f})".format(**ms)
            print(f"{norm}, {kind}: {said}", flush=True)
    path = records.SPEED / f"{precision}.json"
    write_whole({path: make_json({"environment": environment, "steps": steps})})
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
