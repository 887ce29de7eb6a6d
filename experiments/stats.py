"""Intervals and tests of what several seeds gave, and the tables that hold them."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
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


def contrast(samples, weights, pooled=False) -> tuple[float, float, float, float]:
    """Return the weighted sum of the samples' means, its 95 % interval, and p, or nan.

    By Welch's t (1947); with `pooled` all samples share one variance, also those of weight 0.
    """
    sizes, weights = np.array([len(sample) for sample in samples]), np.array(weights)
    if sizes.min() < 2:
        return (math.nan,) * 4
    mean = float(weights @ [np.mean(sample) for sample in samples])
    variances, freedoms = np.array([np.var(sample, ddof=1) for sample in samples]), sizes - 1
    if pooled:
        variances = np.full(len(sizes), variances @ freedoms / freedoms.sum())
    parts = weights**2 * variances / sizes
    if not parts.any():  # runs that all guess the same
        return mean, mean, mean, float(mean == 0)
    freedom = freedoms.sum() if pooled else parts.sum() ** 2 / (parts**2 / freedoms).sum()
    error = parts.sum() ** 0.5
    half = float(stats.t.ppf(0.975, freedom) * error)
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom))


def resample(ones, others, seeds: bool, images: bool, draws=1000) -> np.ndarray:
    """Return the differences (points) of two arms in two-way bootstrap samples, (draws,).

    Each arm is (runs, images), True where right. Drawn anew are seeds, images, or both.
    """
    generator, number = np.random.default_rng(0), ones.shape[1]
    differences = []
    for _ in range(draws):
        index = generator.integers(0, number, number) if images else np.arange(number)
        shares = np.bincount(index, minlength=number) / number
        runs = ((arm @ shares) for arm in (ones, others))  # the accuracy of each
        one, other = (generator.choice(r, len(r)) if seeds else r for r in runs)
        differences.append(100 * (one.mean() - other.mean()))
    return np.array(differences)


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


def compare(families: Mapping[str, Mapping[tuple[str, str], tuple]]) -> pd.DataFrame:
    """Return `contrast` of each comparison, which is known by its row and column of a table.

    `corrected` is Holm's p over the family.
    """
    rows = [
        (family, *place, *contrast(*comparison))
        for family, comparisons in families.items()
        for place, comparison in comparisons.items()
    ]
    table = pd.DataFrame(rows, columns=["family", "row", "column", "mean", "low", "high", "p"])
    corrected = table.groupby("family", sort=False).p.transform(lambda p: holm(p.tolist()))
    return table.assign(corrected=corrected)


def format_comparisons(table: pd.DataFrame, title: str) -> str:
    """Return a table of differences and their intervals, in bold what is significant."""
    cells: dict[str, dict[str, str]] = {}
    for row in table.dropna(subset="mean").itertuples():
        mean = f"**{row.mean:+.2f}**" if row.corrected < 0.05 else f"{row.mean:+.2f}"
        cells.setdefault(row.row, {})[row.column] = f"{mean} ({row.low:+.2f} to {row.high:+.2f})"
    return make_markdown(pd.DataFrame.from_dict(cells, "index").rename_axis(title).fillna("–"))


def make_markdown(frame: pd.DataFrame) -> str:
    """Return a Markdown table of the frame and its index: numbers to two places, a dash for nan."""
    frame = frame.rename(lambda v: f"{LABELS[v]} (`{v}`)" if v in LABELS else v).reset_index()
    align = ["right" if pd.api.types.is_numeric_dtype(t) else "left" for t in frame.dtypes]
    frame = frame.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v).replace("nan", "–")
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)
