"""Update the tables, figures and marked numbers of the pages from results/.

    pip install -r experiments/requirements.txt
    python -m experiments.report
    python -m experiments.report --check

A marked number is followed by its name: 85.86<!--= muon bn -->. The table `images` needs CIFAR-10
in the folder CIFAR10_ROOT (default: data/ in the repository); without it, --check skips that table.
"""

import argparse
import difflib
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cifar10 import load_cifar10
from experiments import frames
from experiments.figures import draw_figures
from experiments.frames import MEASURES, select
from experiments.results import NOTEBOOKS, ROOT, find_root, load_frame, load_speed
from experiments.stats import contrast
from experiments.tables import format_digits, get_minutes, make_tables
from runs import RECIPES, write_whole

PAGES = ("README.md", "experiments/README.md", "results/tuning/README.md")
MARKED = re.compile(r"([-+]?[\d.,]*)<!--= (.+?) -->")  # a number and its name


def select_runs(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the runs of that name: `muon bn` (recipe, arm) or `batches 2 gn` (claim, value, arm).

    The value `best` is the one with the best mean; the arm `recomputed` is `bn recomputed`. Those
    of `robustness` are a corruption and its amount: `robustness blur 1 ln`.
    """
    place, _, arm = name.rpartition(" ")
    arm, (claim, _, value) = arm.replace("recomputed", "bn recomputed"), place.partition(" ")
    if not value:
        return select(frames.get_compared(frame), recipe=claim, arm=arm)
    if claim == "robustness":
        return select(frames.get_robustness(frame), row=value, arm=arm)
    chosen = frames.get_claim(frame, claim)
    if value == "best":
        value = frames.get_means(chosen).loc[arm].idxmax()
    return select(chosen, value=float(value), arm=arm)


def get_difference(frame: pd.DataFrame, end: str, one: str, other: str) -> float:
    """Return the difference of two means, or the `low` or `high` end of its 95 % interval."""
    if " " not in other:  # only an arm: same recipe or value
        other = f"{one.rpartition(' ')[0]} {other}"
    samples = [select_runs(frame, name).test.dropna() for name in (one, other)]
    mean, low, high, _ = contrast(samples, (1, -1))
    return round({"low": low, "high": high}.get(end, mean), 1) + 0.0  # + 0.0: never "-0.0"


def get_number(frame: pd.DataFrame, name: str) -> str:
    """Return the number of that name, formatted for a sentence; KeyError if there is none.

    muon bn              mean final test accuracy (%); also `batches 2 bn`, `rates best bn`
    muon bn minus gn     difference of two of these (points); also `minus reference bn`
    low muon bn minus gn lower end of its 95 % interval; also `high`
    gap muon bn          accuracy on training images minus that on test images (points)
    epochs to 70 muon bn mean number of epochs to 70 %, over the runs that get there
    scales bn            how many times smaller a channel's deviation is in C10 than in C1
    shift bn             change of C10's gradient, as a share of its norm
    minutes muon bn      minutes for all epochs, from the measured time per step
    """
    difference = re.fullmatch(r"(?:(low|high) )?(.+) minus (.+)", name)
    match name.split():
        case _ if difference:
            number = f"{get_difference(frame, *difference.groups()):.1f}"
        case ["gap", *rest]:
            number = f"{select_runs(frame, ' '.join(rest)).clean_gap.mean():.1f}"
        case ["epochs", "to", goal, *rest]:
            ended = select_runs(frame, " ".join(rest)).dropna(subset="test").history
            epochs = [frames.find_crossing(h["test_acc"], float(goal)) for h in ended]
            number = f"{pd.Series(epochs, dtype=float).mean():.1f}"
        case ["scales", arm]:
            before = select(frames.get_scales(frame), arm=arm, moment="before")
            logs = np.log(before["median"]).groupby(before.layer).mean()
            number = format_digits(np.exp(logs["C1"] - logs["C10"]))
        case ["shift", arm]:
            changes = select(frames.get_shift_medians(frame), arm=arm)
            number = f"{select(changes, measure=MEASURES['change C10']).value.mean():.2f}"
        case ["minutes", recipe, arm]:
            number = f"{get_minutes(load_speed()['steps'][arm], RECIPES[recipe]):.1f}"
        case _:
            number = f"{select_runs(frame, name).test.mean():.2f}"
    if number == "nan":
        raise KeyError(f"no number is named {name!r}")
    return number


def renew(text: str, tables: Mapping[str, str], get: Callable[[str], str]) -> str:
    """Return a page with new tables between their markers and new numbers before their names."""
    for name, table in tables.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(pattern, lambda _, new=table: f"{new}\n", text, flags=re.DOTALL)
    return MARKED.sub(lambda match: f"{get(match[2])}<!--= {match[2]} -->", text)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description="Renew both pages from results/.")
    parser.add_argument("--check", action="store_true", help="show what would change, no more")
    check, stale, contents = parser.parse_args(arguments).check, False, {}
    frame, data = load_frame(), None
    if check and not (find_root() / "cifar-10-batches-py").is_dir():
        print(f"The table `images` was not checked: there is no CIFAR-10 in {find_root()}.")
    else:
        data = load_cifar10(find_root())
    labels = data and data.test.tensors[1].numpy()
    tables = make_tables(frame, labels, load_speed())
    for page in (*PAGES, *(path.name for path in NOTEBOOKS.values())):
        old = (root / page).read_text(encoding="utf-8")
        new = renew(old, tables, partial(get_number, frame))
        lines = (text.splitlines(keepends=True) for text in (old, new))
        sys.stdout.writelines(difflib.unified_diff(*lines, page, f"{page}, renewed"))
        contents[root / page], stale = new.encode(), stale or new != old
    if check:
        sys.exit(stale)
    for name, figure in draw_figures(frame, data).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110)
        contents[root / "images" / f"{name}.png"] = buffer.getvalue()
    write_whole(contents)


if __name__ == "__main__":
    main()
