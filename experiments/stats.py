"""Intervals and tests of what several seeds gave, and the tables that hold them."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from utils import LABELS


def get_half_width(values: Sequence[float]) -> float:
    """Return half the width of the mean's 95 % interval (Student 1908); nan below two values."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def format_mean(values: Iterable[float], places: tuple[str, str] = (".2f", ".2f")) -> str:
    """Return the mean of the values that are not nan, and its 95 % interval; a dash for none."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    mean = format(sum(values) / len(values), places[0])
    return mean if len(values) == 1 else f"{mean} ± {get_half_width(values):{places[1]}}"


def welch(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the difference of two means, its 95 % interval, and p, by Welch's t (1947), or nan."""
    if not (len(ones) and len(others)):
        return (math.nan,) * 4
    difference = sum(ones) / len(ones) - sum(others) / len(others)
    if min(len(ones), len(others)) < 2:
        return difference, math.nan, math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's, of runs that all guess the same
        test = stats.ttest_ind(ones, others, equal_var=False)
    low, high = test.confidence_interval()
    return difference, float(low), float(high), float(test.pvalue)


def equivalent(ones: Sequence[float], others: Sequence[float], margin: float) -> float:
    """Return p of "the means differ by `margin` or more": two one-sided Welch tests (TOST)."""
    above, below = ([value + shift for value in ones] for shift in (margin, -margin))
    tests = ((above, "greater"), (below, "less"))
    ps = [stats.ttest_ind(v, others, equal_var=False, alternative=side).pvalue for v, side in tests]
    return float(max(ps))


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values corrected for being that many (Holm 1979); a nan is none, and stays."""
    corrected, highest = [math.nan] * len(ps), 0.0
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, i) in enumerate(known):
        highest = max(highest, (len(known) - rank) * p)
        corrected[i] = min(1.0, highest)
    return corrected


def differences(frame, by, arm, pairs, values, family=lambda row: True) -> pd.DataFrame:
    """Return a row for each group of `by`, pair of values of `arm`, and column of `values`.

    These name columns of the DataFrame. `of` is the column's title in `values`; `mean`, `low`,
    `high` and `p` are Welch's. `corrected` is Holm's p over the rows of which `family` is true,
    those that a prediction named, else nan.
    """
    rows = [
        (*key, f"{one} - {other}", title)
        + welch(*(part[part[arm] == name][value].dropna().tolist() for name in (one, other)))
        for key, part in frame.groupby(list(by), sort=False)
        for one, other in pairs
        for value, title in values.items()
    ]
    table = pd.DataFrame(rows, columns=[*by, "difference", "of", "mean", "low", "high", "p"])
    ps = [row.p if family(row) else math.nan for row in table.itertuples()]
    return table.assign(corrected=holm(ps))


def format_differences(table: pd.DataFrame, rows: Sequence[str], columns: str = "of") -> str:
    """Return `differences` as Markdown, `rows` by `columns`, in bold what is significant."""

    def write(row: Any) -> str:
        if math.isnan(row.mean):
            return "–"
        mean = f"**{row.mean:+.2f}**" if row.corrected < 0.05 else f"{row.mean:+.2f}"
        return mean if math.isnan(row.low) else f"{mean} ({row.low:+.2f} to {row.high:+.2f})"

    cells = table.assign(cell=[write(row) for row in table.itertuples()])
    cells, titles = cells.groupby(list(rows), sort=False).cell.agg(list), table[columns].unique()
    return make_markdown(pd.DataFrame(cells.tolist(), cells.index, titles))


def make_markdown(frame: pd.DataFrame) -> str:
    """Return a Markdown table of the frame and its index: numbers to two places, a dash for nan."""
    frame = frame.rename(lambda v: f"{LABELS[v]} (`{v}`)" if v in LABELS else v).reset_index()
    align = ["right" if pd.api.types.is_numeric_dtype(t) else "left" for t in frame.dtypes]
    frame = frame.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).replace("nan", "–")
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)
