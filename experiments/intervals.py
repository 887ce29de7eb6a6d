"""Intervals and tests of what several seeds gave, and the tables that show them."""

import math
import warnings
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy import stats

from experiments.results import NAMES

PARTS = {"train": "train", "test": "test", "gap": "train minus test"}


def get_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the mean (Student 1908).

    It is nan for fewer than two values.
    """
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def format_mean(values: Sequence[float], places: tuple[str, str] = (".2f", ".2f")) -> str:
    """Return the mean of the values and its 95 % interval in these formats.

    A single value has no interval, and none are a dash.
    """
    if not values:
        return "–"
    mean = format(sum(values) / len(values), places[0])
    return mean if len(values) == 1 else f"{mean} ± {get_half_width(values):{places[1]}}"


def welch(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the difference of two means, its 95 % interval, and p, by Welch's t (1947).

    The last three are nan for fewer than two values of either, and all four for none.
    """
    if not (ones and others):
        return (math.nan,) * 4
    difference = sum(ones) / len(ones) - sum(others) / len(others)
    if min(len(ones), len(others)) < 2:
        return difference, math.nan, math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's, of runs that all guess the same
        test = stats.ttest_ind(ones, others, equal_var=False)
    low, high = test.confidence_interval()
    return difference, float(low), float(high), float(test.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values corrected for being that many (Holm 1979); a nan is none, and stays."""
    corrected, highest = [math.nan] * len(ps), 0.0
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, i) in enumerate(known):
        highest = max(highest, (len(known) - rank) * p)
        corrected[i] = min(1.0, highest)
    return corrected


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """Return McNemar's exact test (1947) of two networks' hits on the same images.

    These are the number of images that only `one` has right, that only `other` has right, and the
    two-sided p-value of the hypothesis that both numbers are equal but for chance.
    """
    pairs = list(zip(one, other, strict=True))
    only_one, only_other = pairs.count((True, False)), pairs.count((False, True))
    if only_one + only_other == 0:
        return 0, 0, 1.0
    return only_one, only_other, float(stats.binomtest(only_one, only_one + only_other).pvalue)


def make_markdown(frame: pd.DataFrame) -> str:
    """Return a Markdown table of the frame and its index: numbers to two places, a dash for nan."""
    frame = frame.rename(lambda v: f"{NAMES[v]} (`{v}`)" if v in NAMES else v).reset_index()
    align = ["right" if pd.api.types.is_numeric_dtype(t) else "left" for t in frame.dtypes]
    frame = frame.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).replace("nan", "–")
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def format_differences(
    names: list[str], pairs: dict[tuple, list[pd.DataFrame]], parts: Mapping[str, str] = PARTS
) -> str:
    """Return a table of differences in these columns, each with its interval.

    In bold are those with p < 0.05 after Holm's correction for all of the table. A nan is left out.
    One of a single run has neither interval nor bold, and one of no run is a dash.
    """
    tests = [
        welch(*(part[p].dropna().tolist() for part in pair))
        for pair in pairs.values()
        for p in parts
    ]
    shown = [p < 0.05 for p in holm([p for *_, p in tests])]
    cells = [_format(*test[:3], bold) for test, bold in zip(tests, shown, strict=True)]
    rows = [cells[i : i + len(parts)] for i in range(0, len(cells), len(parts))]
    index = pd.MultiIndex.from_tuples(pairs, names=names)
    return make_markdown(pd.DataFrame(rows, index, list(parts.values())))


def _format(mean: float, low: float, high: float, bold: bool) -> str:
    if math.isnan(mean):
        return "–"
    interval = "" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})"
    return (f"**{mean:+.2f}**" if bold else f"{mean:+.2f}") + interval
