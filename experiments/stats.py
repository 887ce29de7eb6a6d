"""Intervals, tests and equivalence of means over seeds."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of sample means, and the cell of the table that reports it.

    Holm's correction runs over all comparisons of one table and family.
    """

    table: str
    family: str
    row: str
    column: str
    samples: Sequence[Sequence[float]]
    weights: Sequence[float] = (1, -1)
    pooled: bool = False  # whether all samples, even those of weight 0, share one variance


def contrast(samples, weights, pooled=False) -> tuple[float, float, float, float]:
    """Return the weighted sum of the samples' means, its 95 % interval (low, high), and p.

    Uses Welch's t (1947), or with `pooled` the t of a linear model with one variance. All four
    are nan if any sample has fewer than two values.
    """
    sizes, weights = np.array([len(sample) for sample in samples]), np.array(weights)
    if min(sizes, default=0) < 2:
        return (math.nan,) * 4
    mean = float(weights @ [np.mean(sample) for sample in samples])
    variances, freedoms = np.array([np.var(sample, ddof=1) for sample in samples]), sizes - 1
    if pooled:
        variances = np.full(len(sizes), variances @ freedoms / freedoms.sum())
    parts = weights**2 * variances / sizes
    if not parts.any():  # no variance: every run is at chance
        return mean, mean, mean, float(mean == 0)
    freedom = freedoms.sum() if pooled else parts.sum() ** 2 / (parts**2 / freedoms).sum()
    error = parts.sum() ** 0.5
    half = float(scipy.stats.t.ppf(0.975, freedom) * error)
    return mean, mean - half, mean + half, float(2 * scipy.stats.t.sf(abs(mean) / error, freedom))


def answer(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return one row per comparison, with its `contrast` and the p-value corrected by Holm.

    Columns: table, family, row, column, mean, low, high, p, corrected.
    """
    rows = [
        (c.table, c.family, c.row, c.column, *contrast(c.samples, c.weights, c.pooled))
        for c in comparisons
    ]
    columns = ["table", "family", "row", "column", "mean", "low", "high", "p"]
    answers = pd.DataFrame(rows, columns=columns)
    families = answers.groupby(["table", "family"], sort=False).p
    return answers.assign(corrected=families.transform(lambda ps: holm(ps.tolist())))


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction (1979); NaNs don't count and pass through."""
    ranked = pd.Series(ps, dtype=float).dropna().sort_values()
    corrected = (ranked * np.arange(len(ranked), 0, -1)).cummax().clip(upper=1)
    return corrected.reindex(range(len(ps))).tolist()


def equivalent(ones: Sequence[float], others: Sequence[float], margin: float) -> float:
    """Return p of "the means differ by `margin` or more", by two one-sided Welch tests (TOST)."""
    above, below = ([value + shift for value in ones] for shift in (margin, -margin))
    test = functools.partial(scipy.stats.ttest_ind, b=others, equal_var=False)
    ps = (test(above, alternative="greater").pvalue, test(below, alternative="less").pvalue)
    return float(max(ps))


def resample(ones, others, seeds: bool, images: bool, draws=1000) -> np.ndarray:
    """Return bootstrapped differences of two arms' accuracies, in points, shape (draws,).

    An arm is a boolean array (runs, images), True where right. Resamples seeds, images, or both;
    the two arms always see the same images.
    """
    generator, number = np.random.default_rng(0), ones.shape[1]
    differences = []
    for _ in range(draws):
        index = generator.integers(0, number, number) if images else np.arange(number)
        shares = np.bincount(index, minlength=number) / number
        accuracies = (arm @ shares for arm in (ones, others))
        one, other = (generator.choice(a, len(a)) if seeds else a for a in accuracies)
        differences.append(100 * (one.mean() - other.mean()))
    return np.array(differences)
