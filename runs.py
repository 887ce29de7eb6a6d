"""A run: its recipe, what identifies it, its checkpoint, and what its result records."""

import contextlib
import functools
import inspect
import io
import json
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import TensorDataset

from cifar10 import CIFAR, SAMPLE, Data

# --- The recipe ----------------------------------------------------------------------------------


def _number(default: float, low: float = 0, high: float = sys.float_info.max) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"known": (default, *others)})


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run, by default those of `onecycle`; ValueError if out of range."""

    name: str
    data: str = _choice(CIFAR, SAMPLE)
    epochs: int = _number(20, 1)  # as published
    batch_size: int = _number(128, 1)  # images
    optimizer: str = _choice("sgd", "muon", "normalized", "adamw")
    lr: float = _number(0.05)  # onecycle: the peak
    affine_lr: float = _number(0.05)  # muon, normalized: for scales and shifts, trained by SGD
    momentum: float = _number(0.9, 0, 1)
    nesterov: bool = _number(True, 0, 1)
    weight_decay: float = _number(5e-4)  # sgd: of all parameters; else of kernels, decoupled
    scheduler: str = _choice("onecycle", "step")
    warmup: float = _number(0.2, 0, 1)  # onecycle: share of the steps that raise the rate
    start_factor: float = _number(0.1, 1e-6, 1)  # onecycle: initial rate as a share of `lr`
    step_epochs: int = _number(6, 1)  # step: epochs between drops of the learning rate
    step_factor: float = _number(0.1)  # step: the factor of each drop
    loss: str = _choice("nll")  # negative log likelihood
    groups: int = _number(4, 1)  # of group normalization
    dropout: float = _number(0.0, 0, 0.99)  # probability
    crop: int = _number(2, 0, 31)  # largest random shift in pixels, below the image size
    rotation: float = _number(0.0)  # largest random turn in degrees, either way
    resize: float = _number(0.0, 0, 0.99)  # largest random change in size, as a share
    flip: float = _number(0.5, 0, 1)  # probability of a horizontal flip
    small_epochs: int = _number(0)  # initial epochs on smaller images, whose steps cost less
    small_size: int = _number(24, 20)  # pixels per side in those epochs; C10 needs 20

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.+-]{,99}", str(self.name), re.ASCII):
            raise ValueError(f"name is {self.name!r}, but must be usable as a file name")
        for item in fields(self)[1:]:
            value, limits, kind = getattr(self, item.name), item.metadata, item.type
            if "known" in limits:
                check_choice(item.name, value, limits["known"])
            elif kind(value) != value or not limits["low"] <= value <= limits["high"]:
                said = f"{kind.__name__}, from {limits['low']:g} to {limits['high']:g}"
                raise ValueError(f"{item.name} is {value!r}, but must be {said}")


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError, listing the known values, unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}")


_MUON = Recipe("muon", optimizer="muon", lr=0.03, momentum=0.95, weight_decay=0.05, warmup=0.1)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        _MUON,  # the notebooks' default
        replace(_MUON, name="quick", epochs=4, lr=0.05, small_epochs=2),
        Recipe("onecycle"),
        Recipe(
            "reference",  # exactly the published experiment
            lr=0.04,
            nesterov=False,
            weight_decay=0.0,
            scheduler="step",
            dropout=0.05,
            crop=0,
            flip=0.1,
        ),
        replace(_MUON, name="smoke", data=SAMPLE, epochs=5, batch_size=64),  # a first look
    )
}


def get_recipe(name: str | Recipe, **changes: Any) -> Recipe:
    """Return the recipe called `name`, or `name` itself if it is a recipe, with fields changed.

    The new name lists the changes: `get_recipe("smoke", groups=8)` is "smoke-groups-8".
    """
    if not isinstance(name, Recipe):
        check_choice("RECIPE", str(name).strip(), RECIPES)
        name = RECIPES[str(name).strip()]
    if not changes:
        return name
    told = "-".join(f"{field}-{value}" for field, value in changes.items())
    return replace(name, name=f"{name.name}-{told}", **changes)


# --- Identity ------------------------------------------------------------------------------------

PRECISIONS = ("float32", "bfloat16")


class Labels(dict):
    """Display names of norms; an unlisted norm is its own display name."""

    def __missing__(self, name: str) -> str:
        return name


LABELS = Labels(bn="Batch", gn="Group", ln="Layer", none="None", he="None, He init")


@dataclass(frozen=True)
class Run:
    """Identifies a run. `norm` is one of models.NORMS, or "he" for He initialization."""

    recipe: Recipe
    norm: str
    seed: int
    precision: str

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+", str(self.norm)):
            raise ValueError(f"norm is {self.norm!r}, but must be lowercase letters and digits")
        check_choice("precision", self.precision, PRECISIONS)
        object.__setattr__(self, "seed", get_seed(self.seed))

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.norm}-seed{self.seed}"

    @property
    def title(self) -> str:
        what = "No" if self.norm == "none" else LABELS[self.norm]
        data = "" if self.recipe.data == CIFAR else f", {self.recipe.data}"
        how = f"{self.recipe.epochs} epochs of {self.recipe.name}, seed {self.seed}{data}"
        return f"{what} normalization, {how}"

    def get_path(self, folder: str | Path, suffix: str) -> Path:
        """Return the path of this run's file with that suffix in `folder`."""
        return Path(folder) / self.precision / f"{self.name}{suffix}"


def get_seed(value: str | int) -> int:
    """Return `value` as an int; ValueError unless it is a whole number from 0 to 2**32 - 1."""
    text = str(value).strip()
    # PyTorch would truncate 1.5, and on a CPU it uses a seed modulo 2**32.
    if not re.fullmatch("[0-9]+", text) or int(text) >= 2**32:
        raise ValueError(f"SEED is {value!r}, but must be a whole number from 0 to {2**32 - 1}")
    return int(text)


# --- The record ----------------------------------------------------------------------------------


class Training(NamedTuple):
    """The model and all that `utils.fit` trains it with; made by `utils.assemble` or a notebook."""

    model: nn.Module
    train_loader: Any  # utils.Loader
    test_loader: Any
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    criterion: Any  # maps log-probabilities (N, 10) and labels (N,) to a loss


def get_device_name(device: torch.device) -> str:
    """Return the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions
    return capabilities.get("cpu_name") or platform.machine()


def get_environment(device: torch.device, precision: str) -> dict[str, str | int | bool]:
    """Return what affects a run's digits besides its recipe, norm and seed."""
    return {
        "torch": str(torch.__version__),
        "device": get_device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        **get_code(),
    }


@functools.cache  # the code as of the first call
def get_code() -> dict[str, str | bool]:
    """Return the git commit and whether tracked files outside results/ are unchanged, or {}."""
    root = Path(__file__).resolve().parent
    # Ask this folder's own repository, not an enclosing one or the one in the variable GIT_DIR.
    command = ["git", "-C", str(root), f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    command += ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    command += ["--", ".", ":!results"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return {}
    head, *lines = done.stdout.splitlines()  # "# branch.oid COMMIT", other headers, then changes
    return {"commit": head.split()[-1], "clean": all(line.startswith("#") for line in lines)}


def describe_run(run: Run, data: Data) -> dict[str, Any]:
    """Return what every result records about its run, data and environment."""
    sizes = {"train_size": len(data.train), "test_size": len(data.test)}
    checksums = [get_checksum(part) for part in (data.train, data.test)]
    return {
        "recipe": asdict(run.recipe),
        "norm": run.norm,
        "seed": run.seed,
        "data": {"name": run.recipe.data, **sizes, "checksums": checksums},
        "environment": get_environment(data.train.tensors[0].device, run.precision),
    }


def get_checksum(dataset: TensorDataset) -> int:
    """Return the CRC-32 of a data set's images and labels."""
    arrays = [tensor.contiguous().cpu().numpy() for tensor in dataset.tensors]
    return functools.reduce(lambda crc, array: zlib.crc32(array, crc), arrays, 0)


def describe_training(training: Training) -> dict[str, Any]:
    """Describe the parts of a training as plain JSON; they may differ from the recipe.

    Weights, and settings that change during training, such as the learning rate, are left out.
    """
    model, train_loader, test_loader, optimizer, scheduler, criterion = training
    parameters = list(model.parameters())
    groups = [{"size": len(g["params"])} | g | {"params": None} for g in optimizer.param_groups]
    settings = {k: v for k, v in getattr(criterion, "__dict__", {}).items() if k[0] != "_"}
    settings |= criterion.state_dict() if isinstance(criterion, nn.Module) else {}
    with contextlib.suppress(OSError, TypeError):  # a function's text is only its name
        settings["source"] = inspect.getsource(criterion)
    cycled = {"momentum", "betas"} if getattr(scheduler, "cycle_momentum", False) else set()
    description = {
        "network": str(model),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "optimizer": {"class": type(optimizer).__name__, "groups": groups},
        "scheduler": {"class": type(scheduler).__name__} | scheduler.state_dict(),
        "loss": {"class": type(criterion).__name__, "text": str(criterion)} | settings,
        "train_loader": str(train_loader),
        "test_loader": str(test_loader),
    }
    return _make_plain(description, _MOVING | cycled)


_MOVING = {"params", "lr", "last_epoch", "training", "T_cur", "T_i"}
_MOVING |= {"_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}


def _make_plain(nest: Any, left_out: Collection[str] = ()) -> Any:
    """Convert nested data to plain JSON values, dropping the keys in `left_out` at every level.

    Tensors become lists, NaN and infinities None, and other objects text, without their address,
    which differs between processes.
    """
    text = json.dumps(
        nest, default=lambda part: part.tolist() if hasattr(part, "tolist") else str(part)
    )
    return json.loads(
        re.sub(r" at 0x\w+", "", text),
        parse_constant=lambda _: None,
        object_hook=lambda part: {k: v for k, v in part.items() if k not in left_out},
    )


def make_json(result: Mapping[str, Any]) -> bytes:
    """Return a result as JSON; NaN and infinities become null."""
    return (json.dumps(_make_plain(result), indent=1, allow_nan=False) + "\n").encode()


def is_same_recipe(theirs: Mapping[str, Any], recipe: Recipe) -> bool:
    """Return whether `theirs`, the recipe of a result, equals `recipe`.

    Fields that the result lacks count as defaults; fields that Recipe has lost must be 0 or False.
    """
    ours = asdict(recipe)
    gone = {name: value for name, value in theirs.items() if name not in ours and not value}
    return asdict(Recipe(recipe.name)) | theirs == ours | gone


def say(line: str) -> None:
    """Print a line; in a notebook also to the terminal, where nbconvert shows no output."""
    print(line, flush=True)
    if type(sys.stdout).__module__.startswith("ipykernel"):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # if there is no terminal
            os.write(sys.stderr.fileno(), f"{line}\n".encode())


# --- Checkpoint ----------------------------------------------------------------------------------


class Checkpoint:
    """The full state of a run after its last finished epoch, in one file in `folder`.

    `environments` lists the environments that trained the run, the current one last.
    """

    def __init__(self, run: Run, training: Training, folder: str | Path):
        self.path = run.get_path(folder, ".pt")
        self.parts = {name: getattr(training, name) for name in ("model", "optimizer", "scheduler")}
        self.device = next(training.model.parameters()).device
        self.environments = [get_environment(self.device, run.precision)]
        self.identity = asdict(run) | describe_training(training)
        self.identity["network"] += f", {self.identity.pop('trainable')} trainable parameters"
        self.identity["data"] = [get_checksum(loader.dataset) for loader in training[1:3]]

    def save(self, history: Mapping[str, list[float]]) -> None:
        """Save the state atomically, unless a number is not finite (FloatingPointError)."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite(**history, weights=state["model"], momentum=state["optimizer"])
        state |= {"identity": self.identity, "history": history}
        state |= {"environments": self.environments, "cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        # `weights_only` would refuse to load NumPy's numbers, such as a learning rate.
        state = tree_map(lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, state)
        write_whole({self.path: make_pt(state)})

    def load(self) -> dict[str, list[float]]:
        """Restore the saved state and return its history, or {} if there is none.

        Raises ValueError if the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return {}
        state = self._read()
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["cpu_rng"])
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        done = len(state["history"]["lr"])
        say(f"Going on after epoch {done} from {self.path}; to start over, delete that file.")
        (now,), last = self.environments, state["environments"][-1]
        pairs = {name: (last.get(name), now.get(name)) for name in last | now}
        self.environments = state["environments"]
        if told := [f"{name} was {a}, is {b}" for name, (a, b) in pairs.items() if a != b]:
            say(f"The last digits may differ from an uninterrupted run's: {'; '.join(told)}.")
            self.environments.append(now)
        return state["history"]

    def _read(self) -> dict[str, Any]:
        content, state = io.BytesIO(self.path.read_bytes()), {}
        with contextlib.suppress(Exception):  # a damaged file can raise anything
            state = torch.load(content, map_location="cpu", weights_only=True)
        if not (theirs := isinstance(state, dict) and state.get("identity")):
            problem = "is damaged"
        elif other := [name for name in self.identity if theirs.get(name) != self.identity[name]]:
            problem = f"belongs to another run, which differs in: {', '.join(other)}"
        else:
            return state
        raise ValueError(f"{self.path} {problem}. Move or delete it, and run this again.")


ADVICE = "Try a lower learning rate or a longer warm-up."


def check_finite(**kept: Any) -> None:
    """Raise FloatingPointError if any of `kept` holds a NaN or an infinity, naming the first."""
    for name, nest in kept.items():
        numbers = [leaf for leaf in tree_leaves(nest) if isinstance(leaf, float | torch.Tensor)]
        if not all(torch.as_tensor(number).isfinite().all() for number in numbers):
            said = f"The run diverged: its {name} is not finite any more. {ADVICE}"
            raise FloatingPointError(f"{said} What was saved before is unchanged.")


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write one file per path; move them into place, in order, once all are on the disk."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def make_pt(state: Mapping[str, Any]) -> bytes:
    """Return a state as `torch.save` writes it."""
    buffer = io.BytesIO()  # on a full disk torch.save would not raise an OSError
    torch.save(state, buffer)
    return buffer.getvalue()
