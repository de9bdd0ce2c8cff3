"""Is one method better than another on the same users? Paired tests, and many of them at once.

Rows are users; both methods have answered the same ones, so what separates them lies in the rows on
which they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from ilora.errors import InputError
from ilora.evaluation.statistics import BLOCK_ELEMENTS, FloatArray, as_rows


@dataclass(frozen=True)
class McNemar:
    """Rows that one method alone has right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test of two columns ``[n]`` of hits, 0 or 1 (McNemar 1947).

        p = P(|X - m/2| ≥ |only_first - m/2|),   X ~ Binomial(m, ½),   m = only_first + only_second

    If the methods are equally good, a row on which they differ falls to either with probability ½.
    Without such a row p is 1.

    Raises:
        InputError: other values than 0 and 1, or not one of each a row.
    """
    one, two = paired_columns(first, second)
    if not is_binary(one) or not is_binary(two):
        raise InputError("values are not all 0 or 1; McNemar's test compares hits")
    only_first = int(((one == 1) & (two == 0)).sum())
    only_second = int(((one == 0) & (two == 1)).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def permutation_p(
    first: ArrayLike, second: ArrayLike, *, seed: int, resamples: int = 10_000
) -> float:
    """Two-sided p-value of the paired permutation test of the means of two columns ``[n]``.

        p = P(|Σ s_i d_i| ≥ |Σ d_i|),   d = first - second,   s_i = ± 1 at random

    If the methods are equally good, either could have got either figure of a row. Exact where the
    rows that differ have no more than ``resamples`` sign patterns; else ``(1 + count) / (1 +
    resamples)`` over random patterns, which is never 0 (Phipson and Smyth 2010).

    Raises:
        InputError: not one finite number of each a row, or ``resamples`` below 1.
    """
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; draw at least 1, better 10000")
    one, two = paired_columns(first, second)
    differences = (one - two)[one != two]
    m = len(differences)
    seen = abs(differences.sum())
    # Sums of the same numbers in another order differ in their last bits.
    bound = seen - 1e-9 * np.abs(differences).sum()
    exact = m < 60 and 2**m <= resamples
    rng = np.random.default_rng(seed)
    total = 2**m if exact else resamples
    block = max(1, BLOCK_ELEMENTS // max(1, m))
    count = 0
    for start in range(0, total, block):
        size = min(block, total - start)
        if exact:
            signs = np.arange(start, start + size)[:, None] >> np.arange(m) & 1
        else:
            signs = rng.integers(2, size=(size, m))
        sums = (2.0 * signs - 1.0) @ differences
        count += int((np.abs(sums) >= bound).sum())
    return count / total if exact else (1 + count) / (1 + total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the order given.

        adjusted of the i-th smallest of m = max over j ≤ i of min(1, (m - j + 1) · p_j)

    Calling significant what stays below α keeps the probability of any false call below α, whatever
    the tests have to do with one another.

    Raises:
        InputError: a value outside of 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("p_values holds a number that is no probability; they lie in 0 to 1")
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]


def paired_columns(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as finite float64 ``[n]``.

    Raises:
        InputError: not one number of each a row.
    """
    one, two = as_rows(first), as_rows(second)
    if len(one) != len(two):
        raise InputError(
            f"first has {len(one)} rows and second {len(two)}; compare the same rows of both"
        )
    return one, two


def is_binary(values: FloatArray) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())
