"""Renew the tables, the figures and the marked numbers of both pages from results/.

    pip install -r experiments/requirements.txt
    python -m experiments.report
    python -m experiments.report --check

A number in a sentence or a notebook is followed by its name: 85.86<!--= muon bn -->. The table
`images` needs CIFAR-10 in the folder CIFAR10_ROOT (default: data/ of the repository); without it,
--check skips that table.
"""

import argparse
import contextlib
import difflib
import io
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cifar10 import load_cifar10
from experiments import frames
from experiments.figures import draw_figures
from experiments.frames import MEASURES, select
from experiments.results import ROOT, find_root, load_frame, load_speed
from experiments.stats import contrast
from experiments.tables import format_digits, make_tables
from runs import write_whole

MARKED = re.compile(r"([-+]?[\d.,]*)<!--= (.+?) -->")  # a number and its name


def select_runs(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the runs of an arm and a recipe or a claim's value: `muon bn`, `batches 2 gn`.

    The value `best` is the one with the best mean; the arm `recomputed` is `bn recomputed`.
    """
    place, _, arm = name.rpartition(" ")
    arm, (claim, _, value) = arm.replace("recomputed", "bn recomputed"), place.partition(" ")
    if not value:
        return select(frames.get_compared(frame), recipe=claim, arm=arm)
    batches = claim == "batches"
    chosen = frames.get_batches(frame) if batches else frames.get_claim(frame, claim)
    if value == "best":
        value = frames.get_means(chosen).loc[arm].idxmax()
    return select(chosen, value=float(value), arm=arm)


def find_number(frame: pd.DataFrame, name: str) -> tuple[float, Callable[[float], str]]:
    """Return the number of that name (NaN if no run has it) and how to write it."""
    one, minus, other = name.partition(" minus ")
    if minus:
        end, _, rest = one.partition(" ")
        which, one = ("mean", one) if end not in ("low", "high") else (end, rest)
        other = other if " " in other else f"{one.rpartition(' ')[0]} {other}"
        samples = [select_runs(frame, name).test.dropna() for name in (one, other)]
        mean = samples[0].mean() - samples[1].mean()
        low, high = contrast(samples, (1, -1))[1:3]
        number = {"mean": mean, "low": low, "high": high}[which]
        return round(number, 1) + 0.0, "{:.1f}".format  # + 0.0: never "-0.0"
    match name.split():
        case ["gap", *rest]:
            return select_runs(frame, " ".join(rest)).clean_gap.mean(), "{:.1f}".format
        case ["epochs", "to", goal, *rest]:
            ended = select_runs(frame, " ".join(rest)).dropna(subset="test").history
            epochs = [frames.find_crossing(h["test_acc"], float(goal)) for h in ended]
            return pd.Series(epochs, dtype=float).mean(), "{:.1f}".format
        case ["scales", arm]:
            before = select(frames.get_scales(frame), arm=arm, moment="before")
            logs = np.log(before["median"]).groupby(before.layer).mean()
            return np.exp(logs["C1"] - logs["C10"]), format_digits
        case ["shift", arm]:
            changes = select(frames.get_shift_medians(frame), arm=arm)
            change = select(changes, measure=MEASURES["change C10"])
            return change.value.mean(), "{:.2f}".format
    return select_runs(frame, name).test.mean(), "{:.2f}".format


def get_number(frame: pd.DataFrame, name: str) -> str:
    """Return the number of that name as a sentence writes it; KeyError if there is none.

    muon bn              mean final test accuracy (%); also `batches 2 bn`, `rates best bn`
    muon bn minus gn     difference of two of these (points); also `minus reference bn`
    low muon bn minus gn lower end of its 95 % interval; also `high`
    gap muon bn          accuracy on training images minus that on test images (points)
    epochs to 70 muon bn mean number of epochs to 70 %, over the runs that get there
    scales bn            how many times smaller a channel's deviation is in C10 than in C1
    shift bn             change of C10's gradient, as a share of its norm
    """
    with contextlib.suppress(KeyError, ValueError):
        number, write = find_number(frame, name)
        if not math.isnan(number):
            return write(number)
    raise KeyError(f"no number is named {name!r}")


def renew(text: str, tables: Mapping[str, str], get: Callable[[str], str]) -> str:
    """Return a page with new tables between their markers, and new numbers before theirs."""
    for name, table in tables.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(pattern, lambda _, new=table: f"{new}\n", text, flags=re.DOTALL)
    return MARKED.sub(lambda match: f"{get(match[2])}<!--= {match[2]} -->", text)


def renew_pages(root: Path, frame: pd.DataFrame, tables: Mapping[str, str]) -> dict[Path, str]:
    """Return the new text of both pages and the notebooks in `root`; print what changes."""
    texts = {}
    pages = (root / "README.md", root / "experiments" / "README.md")
    for path in (*pages, *sorted(root.glob("ERA_*.ipynb"))):
        old = path.read_text(encoding="utf-8")
        texts[path] = renew(old, tables, lambda name: get_number(frame, name))
        lines = (text.splitlines(keepends=True) for text in (old, texts[path]))
        name = path.relative_to(root).as_posix()
        sys.stdout.writelines(difflib.unified_diff(*lines, name, f"{name}, renewed"))
    return texts


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description="Renew both pages from results/.")
    parser.add_argument("--check", action="store_true", help="show what would change, no more")
    check = parser.parse_args(arguments).check
    frame, data = load_frame(), None
    if check and not (find_root() / "cifar-10-batches-py").is_dir():
        print(f"The table `images` was not checked: there is no CIFAR-10 in {find_root()}.")
    else:
        data = load_cifar10(find_root())
    labels = data and data.test.tensors[1].numpy()
    texts = renew_pages(root, frame, make_tables(frame, labels, load_speed()))
    if check:
        sys.exit(any(path.read_text(encoding="utf-8") != text for path, text in texts.items()))
    contents = {path: text.encode() for path, text in texts.items()}
    for name, figure in draw_figures(frame, data).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        contents[root / "images" / f"{name}.png"] = buffer.getvalue()
    write_whole(contents)


if __name__ == "__main__":
    main()
