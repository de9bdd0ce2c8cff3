from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ilora.errors import InputError
from ilora.evaluation import statistics
from ilora.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_ratio_interval,
    resampled_means,
    seeds_apart,
    spread,
)

RESAMPLES = 10_000


def monte_carlo_error(resampled: np.ndarray, tail: float = 0.025) -> float:
    """Standard error of the ``tail`` quantile of these draws, by the density of a normal."""
    density = scipy.stats.norm.pdf(scipy.stats.norm.ppf(tail)) / resampled.std()
    return float(np.sqrt(tail * (1 - tail) / len(resampled)) / density)


@pytest.mark.parametrize("n", [95, 1186])
def test_the_interval_of_a_mean_is_scipy_s(n: int) -> None:
    values = np.random.default_rng(1).gamma(2.0, size=n)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=2
    )
    # Both ends are estimates from draws; their difference has √2 of one's error.
    tolerance = 4 * np.sqrt(2) * monte_carlo_error(reference.bootstrap_distribution)
    interval = bootstrap_interval(values, seed=3)
    assert interval == pytest.approx(tuple(reference.confidence_interval), abs=tolerance)


def test_the_interval_of_a_ratio_is_scipy_s() -> None:
    rng = np.random.default_rng(4)
    valid = (rng.random(200) < 0.7).astype(float)
    hit = valid * (rng.random(200) < 0.4)

    def ratio(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        return top.sum(axis=axis) / bottom.sum(axis=axis)

    reference = scipy.stats.bootstrap(
        (hit, valid), ratio, n_resamples=RESAMPLES, method="percentile", paired=True, rng=5
    )
    tolerance = 4 * np.sqrt(2) * monte_carlo_error(reference.bootstrap_distribution)
    interval = bootstrap_ratio_interval(hit, valid, seed=6)
    assert interval == pytest.approx(tuple(reference.confidence_interval), abs=tolerance)


def test_equal_seeds_give_equal_intervals_and_other_seeds_do_not() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap_interval(values, seed=1)
    lower, higher = bootstrap_interval(values, seed=1, level=0.99)
    assert lower < low < high < higher


def test_draws_do_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((40, 2))
    whole = resampled_means(rows, seed=1, resamples=101)
    monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", 400)
    np.testing.assert_allclose(resampled_means(rows, seed=1, resamples=101), whole)


def test_measures_of_the_same_rows_share_their_draws() -> None:
    values = np.random.default_rng(0).random(30)
    intervals = bootstrap_intervals({"a": values, "twice": 2 * values}, seed=1)
    assert intervals["twice"] == pytest.approx([2 * end for end in intervals["a"]])
    assert intervals["a"] == pytest.approx(list(bootstrap_interval(values, seed=1)))


def test_values_without_spread_give_an_interval_without_width() -> None:
    assert bootstrap_interval(np.zeros(9), seed=0) == (0, 0)
    assert bootstrap_interval([1.0], seed=0) == (1, 1)


def test_a_ratio_without_denominator_has_no_interval() -> None:
    assert bootstrap_ratio_interval(np.zeros(5), np.zeros(5), seed=0) is None


def test_draws_without_denominator_are_left_out_of_a_ratio() -> None:
    # One valid row of three: some 30 % of the draws miss it, the others all have the ratio 1.
    assert bootstrap_ratio_interval([0, 1, 0], [0, 1, 0], seed=0) == (1, 1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"shape \[0\]"),
        ([[1.0]], {}, r"shape \[1, 1\]"),
        ([1.0, float("nan")], {}, "NaN"),
        ([1.0], {"level": 95}, "level is 95"),
        ([1.0], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_what_has_no_interval_is_refused(
    values: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_interval(values, seed=0, **options)  # type: ignore[arg-type]


def test_a_ratio_of_different_rows_is_refused() -> None:
    with pytest.raises(InputError, match="2 rows and denominator 3"):
        bootstrap_ratio_interval([1, 0], [1, 1, 0], seed=0)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.31, 0.28, 0.36]
    told = spread(values)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert told.ci95 == pytest.approx((reference.low, reference.high))
    assert (told.n, told.mean, told.sd) == (
        3,
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
    )


def test_a_single_seed_has_no_spread() -> None:
    assert spread([0.5]) == statistics.Spread(1, 0.5, None, None)


def test_seeds_are_apart_by_welchs_formula() -> None:
    one, other = [0.3, 0.5, 0.4], [0.1, 0.2]
    error = 0.1**2 / 3, 0.005 / 2  # of the means, squared
    freedom = sum(error) ** 2 / (error[0] ** 2 / 2 + error[1] ** 2 / 1)
    found = seeds_apart(one, other)
    assert found is not None
    half = scipy.stats.t.ppf(0.975, freedom) * sum(error) ** 0.5
    assert found.difference == pytest.approx(0.25)
    assert found.ci95 == pytest.approx((0.25 - half, 0.25 + half))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(0.25 / sum(error) ** 0.5, freedom))


@pytest.mark.parametrize(("one", "other"), [([0.3], [0.1, 0.2]), ([0.3, 0.3], [0.1, 0.1])])
def test_seeds_without_spread_are_not_compared(one: list[float], other: list[float]) -> None:
    assert seeds_apart(one, other) is None
