"""The paired tests are scipy's, and the formulas'."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ilora.errors import InputError
from ilora.evaluation import paired
from ilora.evaluation.paired import holm, mcnemar, permutation_p


def hits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = (rng.random(n) < 0.5).astype(float)
    return first, np.where(rng.random(n) < 0.4, rng.random(n) < 0.3, first).astype(float)


@pytest.mark.parametrize("n", [12, 95, 1186])
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(n: int) -> None:
    first, second = hits(n, seed=n)
    told = mcnemar(first, second)
    assert told.only_first == sum(a > b for a, b in zip(first, second, strict=True))
    assert told.only_second == sum(a < b for a, b in zip(first, second, strict=True))
    m = told.only_first + told.only_second
    tail = sum(math.comb(m, k) for k in range(min(told.only_first, told.only_second) + 1))
    assert told.p == pytest.approx(min(1, 2 * tail / 2**m))
    assert told.p == pytest.approx(scipy.stats.binomtest(told.only_second, m, 0.5).pvalue)


def test_mcnemar_of_methods_that_never_differ_is_one() -> None:
    assert mcnemar([1, 0, 1], [1, 0, 1]) == paired.McNemar(0, 0, 1.0)


def test_mcnemar_of_anything_but_hits_is_refused() -> None:
    with pytest.raises(InputError, match="not all 0 or 1"):
        mcnemar([0.5, 1], [0, 1])


def scipys(first: np.ndarray, second: np.ndarray, resamples: float) -> float:
    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return (a - b).mean(axis=axis)

    found = scipy.stats.permutation_test(
        (first, second),
        difference,
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=1,
    )
    return float(found.pvalue)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.9])
def test_few_rows_are_permuted_in_every_way_as_scipy_does(shift: float) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(11) + shift, rng.random(11)
    expected = scipys(first, second, np.inf)
    assert permutation_p(first, second, seed=0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.04, 0.08])
def test_many_rows_are_permuted_at_random_as_scipy_does(shift: float) -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random(150) + shift, rng.random(150)
    expected = scipys(first, second, 20_000)
    p = permutation_p(first, second, seed=0, resamples=20_000)
    error = math.sqrt(2 * expected * (1 - expected) / 20_000)
    assert p == pytest.approx(expected, abs=4 * error + 1e-4)


def test_hits_permuted_in_every_way_give_mcnemars_p() -> None:
    first, second = hits(40, seed=2)
    told = mcnemar(first, second)
    assert 2 < told.only_first + told.only_second < 14  # few enough for all of them
    assert permutation_p(first, second, seed=0, resamples=1 << 14) == pytest.approx(told.p)


def test_rows_on_which_methods_agree_change_nothing() -> None:
    first, second = np.array([1.0, 0.0, 0.4]), np.array([0.0, 0.5, 0.1])
    longer = np.concatenate([first, np.ones(500)]), np.concatenate([second, np.ones(500)])
    assert permutation_p(*longer, seed=0) == permutation_p(first, second, seed=0)


def test_methods_that_never_differ_have_a_p_of_one() -> None:
    assert permutation_p([0.5, 0.25], [0.5, 0.25], seed=0) == 1


def test_a_random_p_is_never_zero_and_does_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = np.ones(200), np.zeros(200)
    assert permutation_p(first, second, seed=0, resamples=999) == 1 / 1000
    rng = np.random.default_rng(5)
    first, second = rng.random(100), rng.random(100)
    whole = permutation_p(first, second, seed=7)
    monkeypatch.setattr(paired, "BLOCK_ELEMENTS", 500)
    assert permutation_p(first, second, seed=7) == whole


def test_holm_is_the_textbooks() -> None:
    # Sorted: .005 · 4, .01 · 3, .03 · 2, .04 · 1, the last raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_keeps_false_calls_rare() -> None:
    rng = np.random.default_rng(6)
    calls = [min(holm(rng.random(8).tolist())) < 0.05 for _ in range(4000)]
    assert np.mean(calls) == pytest.approx(0.05, abs=0.014)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(InputError, match="no probability"):
        holm([0.5, p])


@pytest.mark.parametrize("test", [mcnemar, lambda a, b: permutation_p(a, b, seed=0)])
def test_columns_of_different_lengths_are_refused(test: object) -> None:
    with pytest.raises(InputError, match="first has 2 rows and second 3"):
        test([1, 0], [1, 0, 1])  # type: ignore[operator]
