"""Intervals: how far a figure could be off for want of more test users, or of more seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t
from scipy.stats import ttest_ind

from ilora.errors import InputError

FloatArray = NDArray[np.float64]

# Elements of one block of draws: 4 Mi int64 are 32 MiB however many rows and resamples there are.
BLOCK_ELEMENTS = 1 << 22


def bootstrap_interval(
    values: ArrayLike, *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean of ``values [n]`` (Efron and Tibshirani 1993, ch. 13).

    Rows are drawn with replacement ``resamples`` times; the interval runs from the
    ``(1 - level) / 2`` quantile of the means to the ``(1 + level) / 2`` one. Values that are all
    equal (no hit at all, say) give an interval of no width: the data show no spread, which is
    not to say that the figure is exact.

    Raises:
        InputError: no value, a value that is not finite, or ``level`` or ``resamples`` out of range.
    """
    column = as_rows(values)[:, None]
    low, high = _interval(resampled_means(column, seed=seed, resamples=resamples), level)
    return float(low[0]), float(high[0])


def bootstrap_ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float] | None:
    """Percentile-bootstrap interval of ``sum(numerator) / sum(denominator)``, both ``[n]``.

    Rows are drawn, not valid rows: the number of valid answers is as random as the number of
    right ones, and so varies with the draw. Draws whose denominator is zero have no ratio and are
    left out. None when the denominator is zero in all rows, or in all draws.

    Raises:
        InputError: as `bootstrap_interval`; also for lengths that differ.
    """
    top, bottom = as_rows(numerator), as_rows(denominator)
    if len(top) != len(bottom):
        raise InputError(
            f"numerator has {len(top)} rows and denominator {len(bottom)}; give one of each a row"
        )
    means = resampled_means(np.stack([top, bottom], axis=1), seed=seed, resamples=resamples)
    means = means[means[:, 1] != 0]
    if len(means) == 0:
        return None
    low, high = _interval(means[:, :1] / means[:, 1:], level)
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    columns: dict[str, FloatArray], *, seed: int, level: float = 0.95, resamples: int = 10_000
) -> dict[str, list[float]]:
    """`bootstrap_interval` of several measures of the same rows, from the same draws of rows.

    Args:
        columns: measure -> values ``[n]``.

    Returns:
        Measure -> ``[low, high]``, ready for JSON.
    """
    rows = np.stack([as_rows(values) for values in columns.values()], axis=1)
    low, high = _interval(resampled_means(rows, seed=seed, resamples=resamples), level)
    return {name: [float(low[k]), float(high[k])] for k, name in enumerate(columns)}


def resampled_means(rows: FloatArray, *, seed: int, resamples: int = 10_000) -> FloatArray:
    """Column means of ``rows [n, m]`` under ``resamples`` draws of n rows -> ``[resamples, m]``.

    Drawing n rows and averaging is weighting each row by how often it was drawn, so a block of
    draws is one matrix product ``counts [block, n] · rows [n, m] / n``. Memory is bounded by
    ``BLOCK_ELEMENTS``.

    Raises:
        InputError: ``resamples`` below 1.
    """
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; draw at least 1, better 10000")
    n = len(rows)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // n)
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts.astype(np.float64) @ rows / n)  # integers would bypass BLAS
    return np.concatenate(means)


def _interval(resampled: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must lie between 0 and 1, as 0.95 does")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def as_rows(values: ArrayLike) -> FloatArray:
    """As float64 ``[n]``, at least one and all of them finite.

    Raises:
        InputError: they are not.
    """
    array: NDArray[Any] = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise InputError(f"values has shape {list(array.shape)}; give one number for each row")
    if not np.isfinite(array).all():
        raise InputError("values holds NaN or infinity; every row needs a number")
    return array


@dataclass(frozen=True)
class Spread:
    """Figures of several seeds, summed up; ``sd`` and ``ci95`` are None for a single one.

    Attributes:
        n: seeds.
        mean: of their figures.
        sd: their standard deviation, with n - 1 in the denominator.
        ci95: 95 % interval of the mean by Student's t with n - 1 degrees of freedom.
    """

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None


def spread(values: ArrayLike) -> Spread:
    """Mean, spread and interval over seeds: ``mean ± t(.975, n - 1) · sd / √n``.

    It says what another seed of the training could change, with these test users; with three seeds
    t is 4.3, and an interval as wide as that is honest. Seeds that happen to agree give one of no
    width, which is not to say that another one would.

    Raises:
        InputError: no value, or one that is not finite.
    """
    column = as_rows(values)
    n, mean = len(column), float(column.mean())
    if n == 1:
        return Spread(1, mean, None, None)
    sd = float(column.std(ddof=1))
    half = float(student_t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, (mean - half, mean + half))


@dataclass(frozen=True)
class SeedsApart:
    """How far the seeds of two methods are apart.

    Attributes:
        difference: of their means.
        ci95: 95 % interval of it.
        p: of no difference, both ways.
    """

    difference: float
    ci95: tuple[float, float]
    p: float


def seeds_apart(first: ArrayLike, second: ArrayLike) -> SeedsApart | None:
    """Welch's t test between the figures of two methods' seeds; None where a method has a single one.

    With test users held fixed it says whether other trainings would differ; paired tests over users
    hold the trainings fixed and say whether other users would. It is None, too, where neither
    method's seeds differ at all, which leaves nothing to measure a difference by.

    Raises:
        InputError: no value, or one that is not finite.

    Source: Welch, Biometrika 34 (1947).
    """
    one, other = as_rows(first), as_rows(second)
    if min(len(one), len(other)) < 2 or one.std() == other.std() == 0:
        return None
    result = ttest_ind(one, other, equal_var=False)
    low, high = result.confidence_interval(0.95)
    return SeedsApart(
        float(one.mean() - other.mean()), (float(low), float(high)), float(result.pvalue)
    )
