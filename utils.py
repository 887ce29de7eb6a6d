"""The functions that the notebooks call, in the order of a run: device, data, training, result."""

import contextlib
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torch.utils.data import TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

import runs
from cifar10 import CIFAR, MEAN, STD, Data, load_cifar10, load_sample
from models import Session8Net, initialize_he
from plots import (  # noqa: F401  (for the notebooks)
    STYLES,
    post_accuracyplots,
    post_confusion,
    post_cubes,
    post_display,
    post_histograms,
    post_lines,
    post_misclassified,
    post_points,
    post_signal,
)
from runs import ADVICE, PRECISIONS, Checkpoint, Recipe, Run, Training, check_choice, say
from runs import RECIPES as RECIPES  # for the notebooks

# --- The device ----------------------------------------------------------------------------------


def get_device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_seed(seed: int) -> None:
    """Seed PyTorch and choose deterministic cuDNN kernels; a CPU then repeats every digit."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def get_precision(name: str | None, device: torch.device) -> str:
    """Return the precision that `name` chooses, "float32" or "bfloat16".

    "native", the default, is bfloat16 where the hardware supports it, and float32 elsewhere.
    Raises ValueError for any other name.
    """
    chosen = str(name or "").strip() or "native"
    check_choice("PRECISION", chosen, ("native", *PRECISIONS))
    if chosen != "native":
        return chosen
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions
        native = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # last: ARM
    return "bfloat16" if native else "float32"


def keep_memory() -> None:
    """Make glibc keep the memory that this process frees, since every step allocates it again.

    By default it returns large blocks to the system; getting them back takes 6 to 21 % of a step.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# --- Data, transforms and loaders ----------------------------------------------------------------


def get_data(recipe: Recipe, root: str | Path | None, device: torch.device) -> Data:
    """Return the recipe's data on `device`; `load_cifar10` reads CIFAR-10 from `root`."""
    return (load_cifar10(root) if recipe.data == CIFAR else load_sample()).to(device)


@dataclass(frozen=True)
class RandomCrop:
    """Shift each image at random by up to `padding` pixels along both axes; reflect the borders."""

    padding: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = images.shape
        shifts = (2, n, 1)  # down and right, for each image
        dy, dx = torch.randint(-self.padding, self.padding + 1, shifts, device=images.device)
        rows = self.reflect(torch.arange(height, device=images.device) + dy, height)  # (N, H)
        columns = self.reflect(torch.arange(width, device=images.device) + dx, width)  # (N, W)
        pixels = rows[:, :, None] * width + columns[:, None, :]  # (N, H, W), the sources
        pixels = pixels.flatten(1)[:, None].expand(n, channels, -1)
        return images.flatten(2).gather(2, pixels).view_as(images)

    @staticmethod
    def reflect(index: torch.Tensor, size: int) -> torch.Tensor:
        return (size - 1) - ((size - 1) - index.abs()).abs()


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability `p`."""

    p: float

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        flip = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(flip, images.flip(-1), images)


@dataclass(frozen=True)
class RandomAffine:
    """Rotate each image by up to `degrees` and resize it by up to `resize`; reflect the borders."""

    degrees: float
    resize: float

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        turn, scale = 2 * torch.rand(2, len(images), device=images.device) - 1  # each in [-1, 1)
        angle, scale = turn * self.degrees * torch.pi / 180, 1 + scale * self.resize
        cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
        return moved.round().clamp(0, 255).to(images.dtype)


@dataclass
class Normalize:
    """Scale uint8 images to [0, 1], then subtract `mean` and divide by `std`, per channel."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self):
        self.constants = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.constants = self.constants.to(images.device)  # cached: copying to a GPU synchronizes
        mean, std = self.constants
        return v2_functional.to_dtype(images, torch.float32, scale=True).sub_(mean).div_(std)


def get_train_transforms(recipe: Recipe) -> v2.Compose:
    """Return the augmentation and normalization of a batch (N, 3, H, W), uint8 to float32."""
    augment = []
    if recipe.crop:
        augment.append(RandomCrop(recipe.crop))
    if recipe.rotation or recipe.resize:
        augment.append(RandomAffine(recipe.rotation, recipe.resize))
    if recipe.flip:
        augment.append(RandomFlip(recipe.flip))
    return v2.Compose([*augment, Normalize(MEAN, STD)])


def get_test_transforms() -> v2.Compose:
    """Return the normalization of `get_train_transforms`, without the augmentation."""
    return v2.Compose([Normalize(MEAN, STD)])


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo `Normalize`: convert float images (N, 3, H, W) back to uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Loader:
    """Batches of images, float32 (B, 3, H, W), and labels, int64 (B,), on the data's device."""

    def __init__(self, dataset: TensorDataset, transforms, batch_size: int, shuffle=False):
        self.dataset, self.transforms = dataset, transforms
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __repr__(self) -> str:
        order = "shuffled" if self.shuffle else "in order"
        return f"{len(self.dataset)} images {order}, {self.batch_size} per batch, {self.transforms}"

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = len(self.dataset)
        order = torch.randperm(size) if self.shuffle else torch.arange(size)
        for index in order.to(self.dataset.tensors[0].device).split(self.batch_size):
            images, labels = self.dataset[index]
            yield self.transforms(images), labels


# --- Optimizer, schedule and loss ----------------------------------------------------------------


def get_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer.

    "sgd" treats all parameters alike. The others decay only the convolutions' kernels; "muon" and
    "normalized" update all other parameters by SGD, at the rate `recipe.affine_lr`.
    """
    options = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "sgd":
        decay = {"weight_decay": recipe.weight_decay}
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, **decay, **options)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # Parametrizations keep the kernel under another name, and two convolutions may share one.
    every = [p for m in convolutions for p in m.parameters() if p.shape == m.weight.shape]
    kernels = {id(p): p for p in every}
    others = [p for p in model.parameters() if id(p) not in kernels]
    groups = [
        {"params": [*kernels.values()], "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
    groups[1] |= {"lr": recipe.affine_lr, "orthogonal": False}
    return {"muon": Muon, "normalized": Normalized}[recipe.optimizer](groups, **options)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): SGD with momentum that orthogonalizes every update.

    The update of a parameter (out, ...) is a matrix (out, all else) whose singular values are all
    near 1, so that no direction is neglected. Parameters with fewer than two dimensions and groups
    with `orthogonal=False` are updated by SGD with momentum.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.0):
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "orthogonal": True, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def _move(self, weight: nn.Parameter, group: dict) -> None:
        gradient, momentum, lr = weight.grad, group["momentum"], group["lr"]
        if "momentum_buffer" not in self.state[weight]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(gradient)
        average = self.state[weight]["momentum_buffer"]
        weight.mul_(1 - lr * group["weight_decay"])
        if weight.ndim < 2 or not group["orthogonal"]:
            average.mul_(momentum).add_(gradient)
            update = gradient.add(average, alpha=momentum) if group["nesterov"] else average
            weight.add_(update, alpha=-lr)
        else:
            average.lerp_(gradient, 1 - momentum)
            update = gradient.lerp(average, momentum) if group["nesterov"] else average
            self._turn(weight, update, lr)

    def _turn(self, weight: nn.Parameter, update: torch.Tensor, lr: float) -> None:
        # Order the columns as in channels_last, the memory format of a convolution's weights.
        update = update.movedim(1, -1)
        matrix = orthogonalize(update.flatten(1))
        rate = lr * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.add_(matrix.view(update.shape).movedim(-1, 1), alpha=-rate)


class Normalized(Muon):
    """Muon, but with updates scaled to a mean square of 1 instead of orthogonalized."""

    def _turn(self, weight: nn.Parameter, update: torch.Tensor, lr: float) -> None:
        weight.add_(update / update.square().mean().sqrt().clamp(min=1e-12), alpha=-lr)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix in bfloat16 with singular values of 0.7 to 1.1, by Newton-Schulz."""
    a, b, c = 3.4445, -4.775, 2.0315  # coefficients of a polynomial that is steep at 0
    x = matrix.bfloat16()
    if tall := len(x) > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def get_scheduler(optimizer, recipe: Recipe, steps_per_epoch: int) -> LRScheduler:
    """Return the recipe's schedule, "step" or a linear "onecycle"; step it once per batch."""
    if recipe.scheduler == "step":
        size = recipe.step_epochs * steps_per_epoch
        return StepLR(optimizer, size, recipe.step_factor)
    steps = max(2, recipe.epochs * steps_per_epoch)  # at least 2: the last rate is almost 0
    # OneCycleLR divides by 0 if the rise or the fall takes a single step.
    warmup = min(recipe.warmup, 1 - 1 / steps)
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=warmup if warmup * steps > 1 else 0.0,
        anneal_strategy="linear",
        div_factor=1 / recipe.start_factor,
        cycle_momentum=False,
    )


def get_loss(recipe: Recipe) -> nn.Module:
    """Return the loss of every recipe: the negative log likelihood, averaged over images."""
    return nn.NLLLoss()


# --- Training and evaluation ---------------------------------------------------------------------


def GetCorrectPredCount(pPrediction: torch.Tensor, pLabels: torch.Tensor) -> torch.Tensor:
    """Count the rows of (N, 10) with their maximum at the label; return a tensor on the device."""
    return (pPrediction.argmax(dim=1) == pLabels).sum()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context that computes convolutions in `precision`; turn TF32 off in cuDNN."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def train(
    model, train_loader, optimizer, scheduler, criterion, precision="float32", size=None
) -> tuple[float, float]:
    """Train for one epoch and return its mean loss per image and its accuracy in percent.

    Both are measured during training, on augmented images and with changing weights. With `size`,
    images are resized to that many pixels per side. Raises FloatingPointError, at the end of the
    epoch, if the loss of a step was not finite.
    """
    keep_memory()
    model.train()
    losses, sizes, correct = [], [], 0
    for images, labels in train_loader:
        if size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        with autocast(images.device, precision):
            prediction = model(images)
        loss = criterion(prediction, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())  # stays on the device, so that no step waits for it
        correct += GetCorrectPredCount(prediction.detach(), labels)
        sizes.append(len(labels))
    losses = torch.stack(losses).tolist()
    if wrong := [step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)]:
        step = scheduler.last_epoch - len(losses) + wrong[0]
        raise FloatingPointError(
            f"The run diverged in step {step}: its loss is not finite. {ADVICE}"
        )
    total_loss = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    return total_loss / sum(sizes), 100 * int(correct) / sum(sizes)


@torch.inference_mode()
def predict(model, loader: Loader, precision="float32") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities (N, 10), float32, and labels (N,) of all the loader's images."""
    keep_memory()
    model.eval()
    predictions, labels = [], []
    for images, batch_labels in loader:
        with autocast(images.device, precision):
            predictions.append(model(images))
        labels.append(batch_labels)
    return torch.cat(predictions), torch.cat(labels)


def test(model, test_loader: Loader, criterion, precision="float32") -> tuple[float, float]:
    """Evaluate, and return the mean loss per image and the accuracy in percent."""
    prediction, labels = predict(model, test_loader, precision)
    correct = int(GetCorrectPredCount(prediction, labels))
    return float(criterion(prediction, labels)), 100 * correct / len(labels)


def make_model(arm: str, recipe: Recipe) -> nn.Module:
    """Return the network of an arm: a norm, or "he" for He initialization without a norm."""
    if arm == "he":
        return initialize_he(Session8Net("none", recipe.groups, recipe.dropout))
    return Session8Net(arm, recipe.groups, recipe.dropout)


def assemble(run: Run, data: Data, make: Callable = make_model) -> Training:
    """Build the run's `Training` on the data's device, as the notebooks do.

    `make` returns the network for a norm and a recipe.
    """
    recipe, device = run.recipe, data.train.tensors[0].device
    train_loader = Loader(data.train, get_train_transforms(recipe), recipe.batch_size, shuffle=True)
    test_loader = Loader(data.test, get_test_transforms(), recipe.batch_size)
    set_seed(run.seed)
    model = make(run.norm, recipe).to(device, memory_format=torch.channels_last)
    optimizer = get_optimizer(model, recipe)
    scheduler = get_scheduler(optimizer, recipe, len(train_loader))
    return Training(model, train_loader, test_loader, optimizer, scheduler, get_loss(recipe))


# The columns of a history, one value per epoch, with their formats: the first step's learning rate,
# mean loss per image, accuracy in percent, seconds. `train` is measured during training, on
# augmented images and changing weights; `clean_train` is measured in evaluation mode on the first
# CLEAN training images, not augmented.
COLUMNS = {
    "lr": ".4f",
    "train_loss": ".4f",
    "train_acc": ".2f",
    "clean_train_loss": ".4f",
    "clean_train_acc": ".2f",
    "test_loss": ".4f",
    "test_acc": ".2f",
    "seconds": ".1f",
}
CLEAN = 10_000


class Trained(NamedTuple):
    """How a model was trained: `fit` sets it as `model.trained`, and `save_result` reads it."""

    run: Run
    identity: dict  # of the run, its parts and its data: see Checkpoint
    history: dict[str, list[float]]
    checkpoint: Path
    environments: list[dict]


def fit(run: Run, training: Training, folder: str | Path = "checkpoints") -> dict[str, list[float]]:
    """Train for the recipe's epochs, print a line after each, and return the history.

    The history has one list per column in COLUMNS. Every epoch ends with a checkpoint in `folder`,
    from which the same run resumes; a model that this run has trained already is left as it is.
    Raises FloatingPointError if a number is not finite (the last checkpoint is kept), ValueError if
    the checkpoint is damaged or another run's, or if the parts do not belong together, and
    RuntimeError if the model is already trained in another way.
    """
    model, train_loader, test_loader, optimizer, scheduler, criterion = training
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held.issuperset(id(p) for p in model.parameters() if p.requires_grad):
        raise ValueError("The optimizer lacks some of the model's parameters: run its cell again.")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("The scheduler is another optimizer's: run its cell again.")
    checkpoint, before = Checkpoint(run, training, folder), getattr(model, "trained", None)
    if before and before.identity == checkpoint.identity and not checkpoint.path.exists():
        history = before.history  # the cell was run again
    else:
        set_seed(run.seed)
        history = checkpoint.load() or {column: [] for column in COLUMNS}
    done = len(history["lr"])
    if scheduler.last_epoch != done * len(train_loader) or (before and not done):
        raise RuntimeError("This model is trained already: run the notebook from block 5 on.")
    clean = TensorDataset(*train_loader.dataset[:CLEAN])
    clean_loader = Loader(clean, test_loader.transforms, test_loader.batch_size)
    how = (checkpoint.identity, history, checkpoint.path, checkpoint.environments)
    model.trained = Trained(run, *how)
    say("epoch" + "".join(f"{column:>{max(8, len(column) + 1)}}" for column in COLUMNS))
    for epoch in range(1, run.recipe.epochs + 1):
        if epoch > done:
            lr, start = float(optimizer.param_groups[0]["lr"]), time.perf_counter()
            size = run.recipe.small_size if epoch <= run.recipe.small_epochs else None
            moved = (optimizer, scheduler, criterion)
            row = [lr, *train(model, train_loader, *moved, run.precision, size)]
            for loader in (clean_loader, test_loader):
                row += test(model, loader, criterion, run.precision)
            row.append(time.perf_counter() - start)
            for column, value in zip(COLUMNS, row, strict=True):
                history[column].append(value)
            checkpoint.save(history)
        say(format_epoch(history, epoch, run.recipe.epochs))
    return history


def format_epoch(history: Mapping[str, Sequence[float]], epoch: int, epochs: int) -> str:
    """Return the line to print for an epoch, with an estimate of the minutes left."""
    cells = [f"{history[c][epoch - 1]:{max(8, len(c) + 1)}{form}}" for c, form in COLUMNS.items()]
    left = statistics.mean(history["seconds"]) * (epochs - epoch) / 60
    return f"{epoch:5d}{''.join(cells)}" + (f"  {left:.1f} min left" if epoch < epochs else "")


def save_result(
    run: Run, data: Data, training: Training, history, clean_train_acc, prediction, folder="runs"
) -> str:
    """Write the run's JSON and its weights to `folder`, and return a sentence that says so.

    `clean_train_acc` is the accuracy (%) on all training images in evaluation mode, `prediction`
    the log-probabilities (N, 10) of the test set. A run on the sample writes nothing. If `fit`
    trained the model, its run and history replace the arguments. The checkpoint of a finished run
    is deleted at the end.
    """
    trained = getattr(training.model, "trained", None)
    if trained:  # the notebook may have changed its variables since
        run, history = trained.run, trained.history
    path = run.get_path(folder, ".json")
    if run.recipe.data == CIFAR:
        used = Data(data.classes, training.train_loader.dataset, training.test_loader.dataset)
        result = runs.describe_run(run, used)
        if trained and len(trained.environments) > 1:
            result["earlier_environments"] = trained.environments[:-1]
        result |= get_outcome(training, history, clean_train_acc, prediction)
        weights = runs.make_pt(training.model.state_dict())
        runs.write_whole({path.with_suffix(".pt"): weights, path: runs.make_json(result)})
        said = f"Written: {path.as_posix()} and {path.stem}.pt, the weights."
    else:
        said = f"Nothing was written: this run was on {run.recipe.data}."
    if trained and len(history["lr"]) == run.recipe.epochs:
        trained.checkpoint.unlink(missing_ok=True)
    return said


def get_outcome(training: Training, history: Mapping, clean_train_acc: float, prediction) -> dict:
    """Describe the training and its outcome; the arguments are those of `save_result`."""
    digits = "".join(map(str, prediction.argmax(dim=1).tolist()))
    outcome = {"history": history, "clean_train_acc": clean_train_acc, "test_predictions": digits}
    return runs.describe_training(training) | outcome


def load_committed(run: Run) -> dict[str, list[dict]]:
    """Return the histories of this recipe's committed runs by norm: five seeds, in float32.

    There are none for `smoke` and your own recipes, or if results/ is missing.
    """
    folder, found = Path(__file__).with_name("results") / "float32", {}
    for path in sorted(folder.glob(f"{run.recipe.name}-*-seed[1-5].json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if runs.is_same_recipe(result["recipe"], run.recipe):
            found.setdefault(result["norm"], []).append(result["history"])
    return found


def compare_with_committed(run: Run, accuracy: float, committed: Mapping) -> str:
    """Return a sentence: is `accuracy` (%) in the 95 % prediction interval of committed runs?"""
    ends = [history["test_acc"][-1] for history in committed.get(run.norm, [])]
    if len(ends) != 5:
        return "There are no five committed runs at hand to compare this one with."
    half = 2.776 * statistics.stdev(ends) * (1 + 1 / 5) ** 0.5  # Student's t, 4 degrees of freedom
    mean = statistics.mean(ends)
    inside = "inside" if abs(accuracy - mean) <= half else "outside"
    interval = f"{mean - half:.2f} to {mean + half:.2f} %"
    return f"{accuracy:.2f} % is {inside} {interval}, where 19 of 20 such runs should end."
