"""What keeps a run: its identity, its progress, its checkpoint and its result."""

import contextlib
import functools
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from tqdm import tqdm

# --- Identity ------------------------------------------------------------------------------------

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Run:
    """What makes a run the run that it is: recipe, normalization, seed and precision.

    `recipe` is a dataclass with a `name`, and the `data` that it is for. Raises ValueError,
    naming the field, for a value that can't be meant.
    """

    recipe: Any
    norm: str
    seed: int
    precision: str

    def __post_init__(self):
        if not (isinstance(self.norm, str) and re.fullmatch(r"[a-z0-9]+", self.norm)):
            raise ValueError(f"norm is {self.norm!r}, but must be small letters and digits")
        if self.precision not in PRECISIONS:
            known = " or ".join(map(repr, PRECISIONS))
            raise ValueError(f"precision is {self.precision!r}, but must be {known}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed is {self.seed!r}, but must be a whole number")
        get_seed(self.seed)

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.norm}-seed{self.seed}"

    @property
    def title(self) -> str:
        parts = (self.recipe.data, self.norm, f"recipe {self.recipe.name}", f"seed {self.seed}")
        return " | ".join((*parts, self.precision))

    def get_path(self, folder: str | Path, suffix: str) -> Path:
        """Return where in `folder` a file of this run lies, by its precision and its name."""
        return Path(folder) / self.precision / f"{self.name}{suffix}"


def get_seed(value: str | int) -> int:
    """Return the seed that `value` is or spells.

    Raises ValueError unless it is a whole number from 0 to 2^32 - 1; on a CPU a larger one would
    be the same seed as its remainder.
    """
    text = str(value).strip()
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**32:
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


def get_environment(device: torch.device, precision: str) -> dict[str, str | int]:
    """Return what the digits of a run depend on besides recipe, norm and seed."""
    return {
        "torch": str(torch.__version__),
        "device": get_device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


@functools.cache  # so that it is the code as it was when it was first asked for
def get_code() -> dict[str, str | bool]:
    """Return the git commit of the code, and whether its .py files are as committed.

    It is empty where git can't tell.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        # The first fails where another repository, which does not know this file, is around it.
        _, commit, changed = (
            subprocess.run([*git, *what], capture_output=True, check=True).stdout.decode().strip()
            for what in (
                ["ls-files", "--error-unmatch", Path(__file__).name],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "*.py"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "clean": not changed}


# --- Progress ------------------------------------------------------------------------------------


class Progress(tqdm):
    """A progress bar under lines of text, as one output that a notebook updates in place.

    What a notebook saves is the last state: the lines alone. (A bar that is printed leaves each of
    its states in the file.) The same lines are printed: a script's to its standard output, a
    notebook's to the terminal in which its kernel was started; there is a bar if that is a
    terminal, and there are plain lines alone if it is not.
    """

    def __init__(self, desc: str, **options):
        self.lines, self.output, self.stream = [], None, sys.stdout
        if "IPython" in sys.modules and hasattr(sys.modules["IPython"].get_ipython(), "kernel"):
            from IPython.display import display

            self.output = display({"text/plain": desc}, raw=True, display_id=True)
            self.stream = _find_terminal()
        terminal = self.stream if self.stream.isatty() else io.StringIO()
        # disable=False: the lines are the record of a run, whatever TQDM_DISABLE says of bars.
        super().__init__(file=terminal, leave=False, mininterval=0.5, disable=False, **options)
        self.add_line(desc)

    def add_line(self, line: str) -> None:
        self.lines.append(line)
        with contextlib.suppress(OSError), self.external_write_mode(file=self.stream):
            print(line, file=self.stream, flush=True)
        self.refresh()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the lines and the bar; tqdm calls this, with an empty `msg` at the end."""
        with contextlib.suppress(OSError):  # the terminal was closed
            super().display(msg, pos)
        text = "\n".join([*self.lines, str(self) if msg is None else msg])
        if self.output is not None:
            self.output.update({"text/plain": text.rstrip("\n")}, raw=True)


def _find_terminal() -> TextIO:
    """Return the standard error that a kernel was started with, or a stream that goes nowhere."""
    for stream in (sys.stderr, sys.__stderr__):  # a kernel's own gives the number of the old one
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return open(stream.fileno(), "w", encoding="utf-8", errors="replace", closefd=False)
    return io.StringIO()


# --- Checkpoint ----------------------------------------------------------------------------------


class Checkpoint:
    """The whole state of a run after its last finished epoch, in one file of `folder`."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        folder: str | Path,
        steps: int,
    ):
        """Take the run, its parts, and the number of steps in an epoch."""
        self.path = run.get_path(folder, ".pt")
        self.parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        self.device = next(model.parameters()).device
        # Only a run of which all of this is the same would end in the same digits.
        environment = get_environment(self.device, run.precision)
        network = {"network": str(model), "steps": steps}
        self.identity = {"format": 3, **asdict(run), "environment": environment, **network}
        get_code()  # now: the files may change while the run lasts

    def save(self, history: Mapping[str, list[float]]) -> None:
        """Put the state in the place of the last one, at once.

        Raises OSError if it can't, and FloatingPointError, with the last one left as it was, for a
        state that holds a number that is not finite.
        """
        state = {name: part.state_dict() for name, part in self.parts.items()}
        check_finite(**history, weights=state["model"], momentum=state["optimizer"])
        state |= {"identity": self.identity, "history": history, "cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        write_whole({self.path: make_pt(state)})

    def load(self) -> dict[str, list[float]]:
        """Take up the saved state and return its history; {} if there is none.

        Says in one line what it did. A checkpoint that is damaged or not of this run is not used,
        and kept under another name.
        """
        if not self.path.exists():
            return {}
        state, problem = self._read()
        if problem:
            aside = self.path.with_name(f"{self.path.stem}-unused-{time.time_ns()}.pt")
            self.path.rename(aside)
            print(f"{self.path} {problem}. It is kept as {aside.name}; this run starts afresh.")
            return {}
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["cpu_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        done = len(next(iter(state["history"].values())))
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
            return {}, "is of another recipe, norm, seed, precision, network, data or version"
        return state, ""


def check_finite(**kept: Any) -> None:
    """Raise FloatingPointError that names the first of `kept` that holds a nan or an infinity.

    Each is a number, a tensor, or any nest of them in mappings and sequences.
    """
    for name, nest in kept.items():
        if not all(torch.as_tensor(number).isfinite().all() for number in _get_numbers(nest)):
            raise FloatingPointError(
                f"The run diverged: its {name} is not finite any more. What was kept before is "
                "unchanged. Try a lower learning rate or a longer warm-up."
            )


def _get_numbers(nest: Any) -> Iterator[float | torch.Tensor]:
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    if isinstance(nest, list | tuple):
        for value in nest:
            yield from _get_numbers(value)
    elif isinstance(nest, float | torch.Tensor):
        yield nest


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
        raise OSError(
            error.errno,
            f"{names} could not be written ({error.strerror}). What was there is unchanged. Make "
            "room and let the folder be written to, then run this again",
        ) from None
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink()


# --- Result --------------------------------------------------------------------------------------


def describe(run: Run, data: Any, device: torch.device) -> dict[str, Any]:
    """Return what every result says of its run, its data and what the digits depend on."""
    sizes = {"train_size": len(data.train), "test_size": len(data.test)}
    return {
        "recipe": asdict(run.recipe),
        "norm": run.norm,
        "seed": run.seed,
        "data": {"name": run.recipe.data, **sizes},
        "environment": get_environment(device, run.precision) | get_code(),
    }


def is_same_recipe(theirs: Mapping[str, Any], recipe: Any) -> bool:
    """Tell whether `theirs`, of a result, are the fields of the recipe.

    A field that is newer than the result had no effect then, as it has none at its default.
    """
    return asdict(type(recipe)(recipe.name)) | theirs == asdict(recipe)


def make_json(result: Mapping[str, Any]) -> bytes:
    """Return a result as JSON; ValueError for a number that JSON does not have."""
    return (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()


def make_pt(state: Mapping[str, Any]) -> bytes:
    """Return a state as `torch.save` writes it.

    Into memory, since on a full disk `torch.save` raises an error of its own over the system's.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_result(
    run: Run,
    data: Any,
    model: nn.Module,
    history: Mapping[str, list[float]],
    clean_train_acc: float,
    prediction: torch.Tensor,
    folder: str | Path = "results",
    checkpoints: str | Path = "checkpoints",
) -> str:
    """Write the run's JSON and its weights to `folder`, and return a sentence that says so.

    `clean_train_acc` is the final accuracy (%) on the training images without augmentation,
    `prediction` the final log-probabilities (N, 10) of the test set. A run on stand-in data writes
    nothing, nor does one over a result of other hyperparameters or other data. Each file appears
    whole or not at all, the weights first; raises OSError if they can't, and FloatingPointError for
    what is not finite. A finished run's checkpoint is removed.
    """
    path = run.get_path(folder, ".json")
    if data.stand_in:
        said = f"Nothing was written: this run was on {run.recipe.data}."
    elif other := _find_difference(path, describe(run, data, prediction.device), run.recipe):
        return (
            f"Nothing was written: {path} is there, of other {other}. Move it away and run this "
            "again: the checkpoint is kept, so nothing is trained twice."
        )
    else:
        weights, state = path.with_suffix(".pt"), model.state_dict()
        check_finite(
            **history, accuracy=clean_train_acc, weights=state, **{"test prediction": prediction}
        )
        result = {
            **describe(run, data, prediction.device),
            "parameters": sum(p.numel() for p in model.parameters()),
            "history": history,
            "clean_train_acc": clean_train_acc,
            "test_predictions": "".join(map(str, prediction.argmax(dim=1).tolist())),
        }
        write_whole({weights: make_pt(state), path: make_json(result)})
        said = f"Written: {path} and {weights.name}, the weights."
    run.get_path(checkpoints, ".pt").unlink(missing_ok=True)
    return said


def _find_difference(path: Path, ours: Mapping[str, Any], recipe: Any) -> str:
    """Return what a result at `path` is of, that ours is not; "" if it is the same or none."""
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        same, data = is_same_recipe(dict(theirs["recipe"]), recipe), theirs["data"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    if not same:
        return "hyperparameters"
    return "data" if data != ours["data"] else ""
