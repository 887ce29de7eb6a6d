"""A run: its recipe, what identifies it, its checkpoint, and what its result records."""

import contextlib
import functools
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from cifar10 import CIFAR, SAMPLE, Data

# --- The recipe ----------------------------------------------------------------------------------


def _number(default: float, low: float = 0, high: float = math.inf) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"known": (default, *others)})


@dataclass(frozen=True)
class Recipe:
    """Every hyperparameter of a run, with its limits; the defaults are those of `onecycle`."""

    name: str
    data: str = _choice(CIFAR, SAMPLE)
    epochs: int = _number(20, 1)  # as published
    batch_size: int = _number(128, 1)  # images
    optimizer: str = _choice("sgd", "muon", "normalized", "adamw")
    lr: float = _number(0.05)  # onecycle: the highest
    affine_lr: float = _number(0.05)  # muon: of the scales and shifts, which SGD trains
    momentum: float = _number(0.9, 0, 1)
    nesterov: bool = _number(True, 0, 1)
    weight_decay: float = _number(5e-4)  # sgd: all parameters; others: convolutions, decoupled
    scheduler: str = _choice("onecycle", "step")
    warmup: float = _number(0.2, 0, 1)  # onecycle: share of the steps in which the rate rises
    start_factor: float = _number(0.1, 1e-6, 1)  # onecycle: first learning rate, as a share of `lr`
    step_epochs: int = _number(6, 1)  # step: epochs between two drops of the learning rate
    step_factor: float = _number(0.1)  # step: what a drop multiplies it by
    loss: str = _choice("nll")  # negative log likelihood
    groups: int = _number(4, 1)  # of group normalization
    dropout: float = _number(0.0, 0, 0.99)  # probability
    crop: int = _number(2, 0, 31)  # most pixels of a random shift; fewer than the image has
    rotation: float = _number(0.0)  # most degrees of a random turn, either way
    resize: float = _number(0.0, 0, 0.99)  # most that an image grows or shrinks, as a share
    flip: float = _number(0.5, 0, 1)  # probability of a horizontal flip
    small_epochs: int = _number(0)  # first epochs, on smaller images: a step costs less
    small_size: int = _number(24, 20)  # pixels per side of such an image; C10 needs 20

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.+-]{,99}", str(self.name), re.ASCII):
            raise ValueError(f"name is {self.name!r}, but must be fit for the name of a file")
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if known := item.metadata.get("known"):
                check_choice(item.name, value, known)
            else:  # stored as Python's own number, whatever library's it was
                object.__setattr__(self, item.name, _convert(item, value))


def _convert(item: Any, value: Any) -> int | float | bool:
    """Return `value` in the type of the recipe's field; ValueError outside the field's limits."""
    low, high = item.metadata["low"], item.metadata["high"]
    number = item.type(value) if math.isfinite(value) else value
    is_flag = isinstance(value, bool) and item.type is not bool
    if is_flag or number != value or not low <= number <= high or number == math.inf:
        kind = "a whole number" if item.type is int else "a number"
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{item.name} is {value!r}, but must be {kind} {limits}")
    return number


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
            "reference",  # the published experiment's, to the letter
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


def get_recipe(name: str | Recipe) -> Recipe:
    """Return the recipe of that name, or the recipe itself."""
    if isinstance(name, Recipe):
        return name
    check_choice("RECIPE", str(name).strip(), RECIPES)
    return RECIPES[str(name).strip()]


# --- Identity ------------------------------------------------------------------------------------

PRECISIONS = ("float32", "bfloat16")


class Labels(dict):
    """Names for display; a norm of the user's own is shown as it is."""

    def __missing__(self, name: str) -> str:
        return name


LABELS = Labels(bn="Batch", gn="Group", ln="Layer", none="None", he="None, He init")


@dataclass(frozen=True)
class Run:
    """What identifies a run. `norm` is one of models.NORMS, or "he" for He initialization."""

    recipe: Recipe
    norm: str
    seed: int
    precision: str

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+", str(self.norm)):
            raise ValueError(f"norm is {self.norm!r}, but must be small letters and digits")
        check_choice("precision", self.precision, PRECISIONS)
        if get_seed(self.seed) != self.seed:
            raise ValueError(f"seed is {self.seed!r}, but must be a whole number")

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
        """Return the path of this run's file in `folder`, by precision and name."""
        return Path(folder) / self.precision / f"{self.name}{suffix}"


def get_seed(value: str | int) -> int:
    """Return the seed that `value` is or spells."""
    text = str(value).strip()
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**32:  # a CPU takes the remainder
        raise ValueError(
            f"SEED is {value!r}, but must be a whole number from 0 to {2**32 - 1}, such as SEED=1"
        )
    return int(text)


# --- The record ----------------------------------------------------------------------------------


class Training(NamedTuple):
    """What trains: `utils.assemble` makes it as the notebooks do, and `utils.fit` takes it."""

    model: nn.Module
    train_loader: Any  # utils.Loader
    test_loader: Any
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    criterion: Any  # log-probabilities (N, 10) and labels (N,) to a loss


def get_device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions have none
    return capabilities.get("cpu_name") or platform.machine()


def get_environment(device: torch.device, precision: str) -> dict[str, str | int | bool]:
    """Return what the digits of a run depend on besides recipe, norm and seed."""
    return {
        "torch": str(torch.__version__),
        "device": get_device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        **get_code(),
    }


@functools.cache  # the code as it was when it was first asked for
def get_code() -> dict[str, str | bool]:
    """Return the git commit of the code, and whether all but results is as committed, or {}."""
    root = Path(__file__).resolve().parent
    if not (root / ".git").exists():
        return {}
    # Git's variables can name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def ask(*what: str) -> str:
        command = ["git", "-C", str(root), *what]
        return subprocess.run(command, capture_output=True, check=True, env=env).stdout.decode()

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return {"commit": ask("rev-parse", "HEAD").strip(), "clean": not changes.strip()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def describe_run(run: Run, data: Data) -> dict[str, Any]:
    """Return what every result records of its run, its data and its environment."""
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
    """Return the CRC-32 of the images and the labels of a data set."""
    arrays = [tensor.contiguous().cpu().numpy() for tensor in dataset.tensors]
    return functools.reduce(lambda crc, array: zlib.crc32(array, crc), arrays, 0)


def describe_training(training: Training) -> dict[str, Any]:
    """Return what trains, as JSON, without weights: it may differ from the recipe.

    The rate, the position of the schedule and whatever else moves in training are left out, so that
    two descriptions of one run are equal at any time.
    """
    model, train_loader, test_loader, optimizer, scheduler, criterion = training
    parameters = list(model.parameters())
    groups = [{"size": len(g["params"])} | _drop_moving(g) for g in optimizer.param_groups]
    settings = {k: v for k, v in getattr(criterion, "__dict__", {}).items() if k[0] != "_"}
    settings |= criterion.state_dict() if isinstance(criterion, nn.Module) else {}
    description = {
        "network": str(model),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "optimizer": {"class": type(optimizer).__name__, "groups": groups},
        "scheduler": {"class": type(scheduler).__name__} | _drop_moving(scheduler.state_dict()),
        "loss": {"class": type(criterion).__name__, "text": str(criterion)}
        | _drop_moving(settings),
        "train_loader": str(train_loader),
        "test_loader": str(test_loader),
    }
    return _make_plain(description)


_MOVING = {"params", "lr", "last_epoch", "training", "T_cur", "T_i"}
_MOVING |= {"_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}


def _drop_moving(state: Any) -> Any:
    """Return the state, at all its levels, without the keys that move in training."""
    if isinstance(state, Mapping):
        return {k: _drop_moving(v) for k, v in state.items() if k not in _MOVING}
    return [_drop_moving(part) for part in state] if isinstance(state, list | tuple) else state


def _make_plain(nest: Any) -> Any:
    """Return the nest as what JSON holds: tensors as lists, a nan as null, other objects as text.

    An object's address is left out, since it differs from process to process.
    """

    def spell(part: Any) -> Any:
        return part.tolist() if hasattr(part, "tolist") else re.sub(r" at 0x\w+", "", str(part))

    text = json.dumps(nest, default=spell)
    return json.loads(re.sub(r" at 0x\w+", "", text), parse_constant=lambda _: None)


def make_json(result: Mapping[str, Any]) -> bytes:
    """Return a result as JSON; a number that JSON does not have, such as nan, becomes null."""
    return (json.dumps(_make_plain(result), indent=1, allow_nan=False) + "\n").encode()


def is_same_recipe(theirs: Mapping[str, Any], recipe: Recipe) -> bool:
    """Return whether `theirs`, from a result, are the fields of the recipe.

    A field that is newer than the result had no effect then, as it has none at its default; one
    that has gone since had none if it was off.
    """
    ours = asdict(recipe)
    gone = {name: value for name, value in theirs.items() if name not in ours and not value}
    return asdict(Recipe(recipe.name)) | theirs == ours | gone


def say(line: str) -> None:
    """Print a line; from a notebook also to the terminal, where nbconvert shows nothing else."""
    print(line, flush=True)
    if type(sys.stdout).__module__.startswith("ipykernel"):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be none
            os.write(sys.stderr.fileno(), f"{line}\n".encode())  # the descriptor is the terminal's


# --- Checkpoint ----------------------------------------------------------------------------------


class Checkpoint:
    """The whole state of a run after its last finished epoch, in one file of `folder`.

    `environments` lists those in which the run was trained so far, the current one last.
    """

    def __init__(self, run: Run, training: Training, folder: str | Path):
        self.path = run.get_path(folder, ".pt")
        self.parts = {name: getattr(training, name) for name in ("model", "optimizer", "scheduler")}
        self.device = next(training.model.parameters()).device
        self.environments = [get_environment(self.device, run.precision)]
        # A run of which any of this differs is another run.
        loaders = (training.train_loader, training.test_loader)
        self.identity = asdict(run) | describe_training(training)
        self.identity["data"] = [get_checksum(loader.dataset) for loader in loaders]

    def save(self, history: Mapping[str, list[float]]) -> None:
        """Replace the last state, all at once, if every number is finite."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite(**history, weights=state["model"], momentum=state["optimizer"])
        state |= {"identity": self.identity, "history": history}
        state |= {"environments": self.environments, "cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        write_whole({self.path: make_pt(state)})

    def load(self) -> dict[str, list[float]]:
        """Take up the saved state and return its history; {} if there is none."""
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
        now, before = self.environments[-1], state["environments"]
        if before[-1] != now:
            names = dict.fromkeys([*before[-1], *now])
            changes = [(k, before[-1].get(k), now.get(k)) for k in names]
            told = [f"{k} was {old}, is {new}" for k, old, new in changes if old != new]
            say(f"The last digits may differ from those of one session: {'; '.join(told)}.")
        self.environments = before + [now] * (before[-1] != now)
        return state["history"]

    def _read(self) -> dict[str, Any]:
        """Return the saved state; ValueError if it is damaged or another run's."""
        content, state = io.BytesIO(self.path.read_bytes()), {}
        with contextlib.suppress(Exception):  # a damaged file can raise anything
            whole = zipfile.ZipFile(content).testzip() is None  # torch.load ignores checksums
            content.seek(0)
            state = torch.load(content, map_location="cpu", weights_only=True) if whole else {}
        if not (theirs := state.get("identity")):
            problem = "is damaged"
        elif other := [name for name in self.identity if theirs.get(name) != self.identity[name]]:
            problem = f"is of another run: its {', '.join(other).replace('_', ' ')} differs"
        else:
            return state
        raise ValueError(f"{self.path} {problem}. Move or delete it, and run this again.")


ADVICE = "Try a lower learning rate or a longer warm-up."


def check_finite(**kept: Any) -> None:
    """Raise FloatingPointError that names the first of `kept` with a nan or an infinity in it."""
    for name, nest in kept.items():
        numbers = [leaf for leaf in tree_leaves(nest) if isinstance(leaf, float | torch.Tensor)]
        if not all(torch.as_tensor(number).isfinite().all() for number in numbers):
            raise FloatingPointError(
                f"The run diverged: its {name} is not finite any more. What was kept before is "
                f"unchanged. {ADVICE}"
            )


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write a file for each path; when all are on the disk, put each in its place, in that order.

    Raises OSError if one can't be written. It names those whose old content is kept.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    left = list(contents)
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
            left.remove(path)
    except OSError as error:
        names = " and ".join(map(str, left))
        said = f"{names} could not be written ({error.strerror}); what was there is kept"
        raise OSError(error.errno, said) from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()


def make_pt(state: Mapping[str, Any]) -> bytes:
    """Return a state as `torch.save` writes it."""
    buffer = io.BytesIO()  # since on a full disk torch.save raises an error of its own
    torch.save(state, buffer)
    return buffer.getvalue()
