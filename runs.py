"""A run: its recipe, what it is known by, its checkpoint, and what its result says."""

import contextlib
import functools
import io
import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from cifar10 import CIFAR, GRATINGS

# --- The recipe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Every hyperparameter of a run; the defaults are those of `onecycle`."""

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
    groups: int = 4  # of group normalization
    dropout: float = 0.0  # probability
    crop: int = 2  # pixels by which an image is shifted at most, in both directions
    rotation: float = 0.0  # degrees by which an image is turned at most, either way
    resize: float = 0.0  # share by which an image is enlarged or made smaller at most
    flip: float = 0.5  # probability of a horizontal flip
    small_epochs: int = 0  # first epochs, which see the images smaller: a step costs less
    small_size: int = 24  # pixels a side of such an image

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.+-]{,99}", str(self.name), re.ASCII):
            raise ValueError(f"name is {self.name!r}, but must be fit for the name of a file")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.type is str:
                check_choice(field.name, value, _KNOWN[field.name])
                continue
            low, high = _LOWEST.get(field.name, 0), _HIGHEST.get(field.name, 3e38)
            if not low <= value <= high:  # also for nan
                raise ValueError(f"{field.name} is {value!r}, but must be from {low} to {high}")


_KNOWN = {
    "data": (CIFAR, GRATINGS),
    "optimizer": ("sgd", "muon"),
    "scheduler": ("onecycle", "step"),
    "loss": ("nll",),
}
_LOWEST = {"epochs": 1, "groups": 1, "small_size": 20}  # of a smaller image C10 leaves nothing
_HIGHEST = {  # which PyTorch would take without a word, and train nothing or something else
    **dict.fromkeys(("momentum", "warmup", "start_factor", "flip"), 1),
    "crop": 31,  # a reflection is shorter than the image
    **dict.fromkeys(("dropout", "resize"), 0.99),
}


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
        # Proves in seconds that everything runs. No flip: it would turn 18 degrees into 162.
        replace(_MUON, name="smoke", data=GRATINGS, epochs=3, batch_size=64, flip=0.0),
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
    def __missing__(self, name: str) -> str:
        return name  # of a norm of the user's own


LABELS = Labels(bn="Batch", gn="Group", ln="Layer", none="None", he="None, He init")


@dataclass(frozen=True)
class Run:
    """What a run is known by. `norm` is one of models.NORMS, or "he" for He initialization."""

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
        """Return where in `folder` a file of this run lies, by its precision and its name."""
        return Path(folder) / self.precision / f"{self.name}{suffix}"


def get_seed(value: str | int) -> int:
    """Return the seed that `value` is or spells."""
    text = str(value).strip()
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**32:  # a CPU takes the remainder
        raise ValueError(
            f"SEED is {value!r}, but must be a whole number from 0 to {2**32 - 1}, such as SEED=1"
        )
    return int(text)


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

    def ask(*what: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *what], capture_output=True, check=True)
        return done.stdout.decode().strip()

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return {"commit": ask("rev-parse", "HEAD"), "clean": not changes}
    except (OSError, subprocess.CalledProcessError):
        return {}


def describe(run: Run, data: Any, device: torch.device) -> dict[str, Any]:
    """Return what every result says of its run, its data and what the digits depend on."""
    sizes = {"train_size": len(data.train), "test_size": len(data.test)}
    return {
        "recipe": asdict(run.recipe),
        "norm": run.norm,
        "seed": run.seed,
        "data": {"name": run.recipe.data, **sizes},
        "environment": get_environment(device, run.precision),
    }


def describe_parts(model, train_loader, test_loader, optimizer, scheduler, criterion) -> dict:
    """Return what trains, without its state, as JSON: it need not be what the recipe says."""
    groups = [
        {"size": len(group["params"])} | {k: v for k, v in group.items() if k not in _MOVING}
        for group in optimizer.param_groups
    ]
    parts = {
        "network": str(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizer": {"class": type(optimizer).__name__, "groups": groups},
        "scheduler": _describe(scheduler, scheduler.state_dict()),
        "loss": _describe(criterion, vars(criterion)),
        "train_loader": str(train_loader),
        "test_loader": str(test_loader),
    }
    said = json.dumps(parts, default=str)
    return json.loads(re.sub(r" at 0x\w+", "", said))  # a function's place differs in each run


_MOVING = ("params", "lr", "last_epoch", "training")  # what no recipe says


def _describe(part: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    settings = {k: v for k, v in fields.items() if isinstance(v, int | float | str)}
    settings = {k: v for k, v in settings.items() if k[0] != "_" and k not in _MOVING}
    return {"class": type(part).__name__, **settings}


def say(line: str) -> None:
    """Print a line; from a notebook also in the terminal in which its kernel was started."""
    print(line, flush=True)
    if type(sys.stdout).__module__.startswith("ipykernel"):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there may be none
            os.write(sys.stderr.fileno(), f"{line}\n".encode())  # a kernel's own keeps the old one


# --- Checkpoint ----------------------------------------------------------------------------------


class Checkpoint:
    """The whole state of a run after its last finished epoch, in one file of `folder`."""

    def __init__(self, run: Run, parts: tuple, folder: str | Path):
        model, _, _, optimizer, scheduler, _ = parts
        self.path = run.get_path(folder, ".pt")
        self.parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        self.device = next(model.parameters()).device
        # Only a run of which all of this is the same would end in the same digits.
        environment = get_environment(self.device, run.precision)
        self.identity = {**asdict(run), "environment": environment, **describe_parts(*parts)}

    def save(self, history: Mapping[str, list[float]]) -> None:
        """Put the state in the place of the last one, at once, if all of it is finite."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite(**history, weights=state["model"], momentum=state["optimizer"])
        state |= {"identity": self.identity, "history": history, "cpu_rng": torch.get_rng_state()}
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
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        done = len(state["history"]["lr"])
        say(f"Going on after epoch {done} from {self.path}; to start over, delete that file.")
        return state["history"]

    def _read(self) -> dict[str, Any]:
        problem = "is damaged"
        with contextlib.suppress(Exception):  # a damaged file can raise anything
            with zipfile.ZipFile(self.path) as archive:
                whole = archive.testzip() is None  # torch.load does not look at the checksums
            state = torch.load(self.path, map_location="cpu", weights_only=True) if whole else {}
            theirs = state.get("identity", {})
            if theirs == self.identity:
                return state
            if theirs:
                other = [k for k, v in self.identity.items() if theirs.get(k) != v]
                problem = f"was made with another {', '.join(other)}"
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

    Raises OSError if one can't be written, with what was there before left as it was.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        names = " and ".join(map(str, contents))
        said = f"{names} could not be written ({error.strerror}); what was there is kept"
        raise OSError(error.errno, said) from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()


# --- Result --------------------------------------------------------------------------------------


def is_same_recipe(theirs: Mapping[str, Any], recipe: Recipe) -> bool:
    """Return whether `theirs`, of a result, are the fields of the recipe.

    A field that is newer than the result had no effect then, as it has none at its default; one
    that is gone since had none if it was off.
    """
    ours = asdict(recipe)
    gone = {name: value for name, value in theirs.items() if name not in ours and not value}
    return asdict(Recipe(recipe.name)) | theirs == ours | gone


def make_json(result: Mapping[str, Any]) -> bytes:
    """Return a result as JSON; ValueError for a number that JSON does not have."""
    return (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()


def make_pt(state: Mapping[str, Any]) -> bytes:
    """Return a state as `torch.save` writes it."""
    buffer = io.BytesIO()  # since on a full disk torch.save raises an error of its own
    torch.save(state, buffer)
    return buffer.getvalue()
