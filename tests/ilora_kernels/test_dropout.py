"""The mask: unbiased, independent, reproducible, and the same wherever it is computed."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import Tensor

from ilora_kernels import gated_lora, gated_lora_linear
from ilora_kernels.dropout import draw_seed, keep_mask, threshold_and_scale

ROWS, COLUMNS = 512, 384


def mask(
    seed: int, dropout_p: float = 0.5, rows: int = ROWS, columns: int = COLUMNS
) -> torch.Tensor:
    return keep_mask(torch.tensor([seed]), rows, columns, dropout_p)


@pytest.mark.parametrize("dropout_p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_p(dropout_p: float) -> None:
    dropped = sum(int((~mask(seed, dropout_p)).sum()) for seed in range(8))
    test = stats.binomtest(dropped, 8 * ROWS * COLUMNS, dropout_p)
    assert test.pvalue > 1e-4


def test_rows_and_columns_each_drop_as_independent_elements_would() -> None:
    keep = mask(3).double()
    for axis, length in ((0, ROWS), (1, COLUMNS)):
        standardised = (keep.sum(axis) - length / 2) / (length / 4) ** 0.5
        assert stats.kstest(standardised.numpy(), "norm").pvalue > 1e-4
        assert stats.chi2.sf(float(standardised.square().sum()), len(standardised)) > 1e-4


def test_neighbours_and_seeds_are_uncorrelated() -> None:
    signs = mask(5).double() * 2 - 1
    others = {
        "the next row": signs.roll(1, 0),
        "the next column": signs.roll(1, 1),
        "the next seed": mask(6).double() * 2 - 1,
        "another high word": mask(5 + (1 << 32)).double() * 2 - 1,
    }
    for name, other in others.items():
        z = float((signs * other).sum()) / (ROWS * COLUMNS) ** 0.5
        assert abs(z) < 4.5, name


# ---- Statistics of large masks. One hash serves two neighbouring columns and is one multiplication
# short of a full mixer: these find what that would leave behind. The seeds are fixed, so that a
# bound of one in a million does not fail by chance.

LARGE = 2048
MASKS = [(2**40 + 7, 0.1), (0, 0.5), (-1, 0.1), (12345, 0.5)]


def standardised(keep: Tensor, dropout_p: float) -> Tensor:
    """Mean zero and variance one for independent elements dropped with probability p."""
    return ((~keep).double() - dropout_p) / (dropout_p * (1 - dropout_p)) ** 0.5


def exact_p(dropout_p: float) -> float:
    return threshold_and_scale(dropout_p)[0] / 2**16


def worst_correlation_over_lags(z: Tensor) -> tuple[float, float]:
    """The largest |z| of a standardised mask against itself shifted by rows and columns.

    Among all shifts, and among those along a row or a column alone; the shifts wrap around.
    """
    power = torch.fft.rfft2(z).abs().square()
    lags = torch.fft.irfft2(power, s=z.shape).abs() / z.numel() ** 0.5
    lags[0, 0] = 0.0
    return float(lags.max()), max(float(lags[0].max()), float(lags[:, 0].max()))


def strongest_wave(keep: Tensor, dropout_p: float) -> float:
    """The largest power of a plane wave; an exponential variable of mean one for independence."""
    z = standardised(keep, dropout_p)
    return float(torch.fft.rfft2(z).abs().square().max()) / z.numel()


def pattern_p_value(keep: Tensor, dropout_p: float, height: int, width: int) -> float:
    """How likely independence makes the counts of all patterns of a ``height x width`` window."""
    size = height * width
    rows, columns = (
        side // block * block for side, block in zip(keep.shape, (height, width), strict=True)
    )
    windows = (~keep[:rows, :columns]).long().unfold(0, height, height).unfold(1, width, width)
    number = (windows.flatten(-2) << torch.arange(size)).sum(-1).flatten()
    seen = torch.bincount(number, minlength=2**size).double()
    bits = torch.arange(2**size)[:, None] >> torch.arange(size) & 1
    expected = (bits * dropout_p + (1 - bits) * (1 - dropout_p)).double().prod(-1) * len(number)
    rare = expected < 10
    if rare.any():  # one class of all that are too rare for the approximation
        seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return float(stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1))


def views_of(keep: Tensor, dropout_p: float) -> dict[str, Tensor]:
    """The mask, what each half of its hashes decides, and the product of the two halves."""
    z = standardised(keep, dropout_p).float()
    low, high = z[:, 0::2], z[:, 1::2]
    return {"whole": z, "low halves": low, "high halves": high, "products": low * high}


@pytest.mark.parametrize(("seed", "dropout_p"), MASKS[:2])
def test_no_shift_of_a_mask_is_correlated_with_it(seed: int, dropout_p: float) -> None:
    # 4096 columns and more: a hash of one multiplication repeats itself after 599 pairs, say.
    keep = mask(seed, dropout_p, 4096, 4096)
    for name, view in views_of(keep, exact_p(dropout_p)).items():
        anywhere, along_an_axis = worst_correlation_over_lags(view)
        assert anywhere < 7.0, name  # of 8.4 million, one that large is seen once in 50 000 masks
        assert along_an_axis < 6.0, name  # of 4 000: once in 125 000


@pytest.mark.parametrize(("seed", "dropout_p"), MASKS)
def test_no_wave_stands_out_of_the_spectrum_of_a_mask(seed: int, dropout_p: float) -> None:
    keep = mask(seed, dropout_p, LARGE, LARGE)
    assert strongest_wave(keep, exact_p(dropout_p)) < 28.0  # 2.1 million times exp(-28): 1e-6


@pytest.mark.parametrize("window", [(1, 8), (8, 1), (3, 4), (2, 6)], ids=str)
@pytest.mark.parametrize(("seed", "dropout_p"), MASKS)
def test_every_pattern_is_as_frequent_as_independence_makes_it(
    seed: int, dropout_p: float, window: tuple[int, int]
) -> None:
    keep = mask(seed, dropout_p, LARGE, LARGE)
    assert pattern_p_value(keep, exact_p(dropout_p), *window) > 1e-6


@pytest.mark.parametrize(("seed", "dropout_p"), MASKS)
def test_large_masks_drop_as_much_in_every_row_and_column(seed: int, dropout_p: float) -> None:
    z = standardised(mask(seed, dropout_p, LARGE, LARGE), exact_p(dropout_p))
    for axis in (0, 1):
        squares = (z.sum(axis) / LARGE**0.5).square().sum()
        assert 1e-6 < stats.chi2.sf(float(squares), LARGE) < 1 - 1e-6


def test_a_mask_does_not_depend_on_how_many_rows_and_columns_are_asked_for() -> None:
    assert torch.equal(mask(9)[:7, :5], mask(9, rows=7, columns=5))


def test_the_mask_is_the_documented_arithmetic() -> None:
    def scramble(z: int) -> int:
        z ^= z >> 16
        z = z * 0x7FEB352D & 0xFFFFFFFF
        z ^= z >> 15
        return z * 0x846CA68B & 0xFFFFFFFF

    def mix(z: int) -> int:
        z = scramble(z)
        return z ^ z >> 16

    seed, p = 0x9123456789ABCDEF - (1 << 64), 0.3
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    keep = mask(seed, p, rows=40, columns=7)
    for t in range(40):
        key = mix(mix(t) ^ mix(mix(low) ^ high))
        for j in range(7):
            bits = scramble((key + j // 2 * 0x9E3779B9) & 0xFFFFFFFF)
            half = bits >> 16 if j % 2 else bits & 0xFFFF
            assert bool(keep[t, j]) == (half >= round(p * 2**16))


@pytest.mark.parametrize("dropout_p", [1e-9, 0.1, 0.3, 0.5, 0.999999])
def test_what_stays_is_divided_by_the_exact_share_that_stays(dropout_p: float) -> None:
    threshold, scale = threshold_and_scale(dropout_p)
    assert abs(threshold - dropout_p * 2**16) <= 1
    assert threshold < 2**16  # p < 1 never drops everything
    assert Fraction(scale) * (2**16 - threshold) == pytest.approx(2**16, rel=2e-16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_the_gpu_computes_the_same_mask() -> None:
    on_gpu = keep_mask(torch.tensor([77], device="cuda"), ROWS, COLUMNS, 0.3)
    assert torch.equal(on_gpu.cpu(), mask(77, 0.3))


def test_dropout_is_unbiased_and_acts_on_the_low_rank_path_alone(device: torch.device) -> None:
    x = torch.randn(3, 40, device=device)
    lora_A = torch.randn(2, 40, device=device)
    lora_B = torch.randn(5, 2, device=device)
    gate = torch.rand(2, device=device)
    often = x.repeat(200, 1)  # every row has a mask of its own
    draws = torch.cat(
        [gated_lora(often, lora_A, lora_B, gate, dropout_p=0.3).view(200, 3, 5) for _ in range(2)]
    )
    error = (draws.mean(0) - gated_lora(x, lora_A, lora_B, gate)).abs()
    assert (error < 5 * draws.std(0) / 400**0.5).all()
    weight = torch.randn(5, 40, device=device)
    y = gated_lora_linear(x, weight, None, lora_A, lora_B, torch.zeros(2, device=device))
    same = gated_lora_linear(
        x, weight, None, lora_A, lora_B, torch.zeros(2, device=device), dropout_p=0.9
    )
    assert torch.equal(same, y)


def test_gradients_use_the_mask_of_the_forward_pass(device: torch.device) -> None:
    x = torch.randn(6, 19, device=device, requires_grad=True)
    lora_A = torch.randn(4, 19, device=device, requires_grad=True)
    lora_B = torch.randn(5, 4, device=device, requires_grad=True)
    gate = torch.rand(6, 2, device=device, requires_grad=True)
    torch.manual_seed(11)
    seed = draw_seed(device)
    keep = keep_mask(seed, 6, 19, 0.4)
    dropped = x * keep * threshold_and_scale(0.4)[1]
    expected = ((dropped @ lora_A.T) * gate.repeat_interleave(2, 1)) @ lora_B.T
    torch.manual_seed(11)
    actual = gated_lora(x, lora_A, lora_B, gate, dropout_p=0.4)
    torch.testing.assert_close(actual, expected)
    inputs = (x, lora_A, lora_B, gate)
    direction = torch.randn_like(actual)
    pairs = zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    )
    for a, e in pairs:
        torch.testing.assert_close(a, e)


def test_manual_seed_governs_the_mask(device: torch.device) -> None:
    def draw() -> torch.Tensor:
        ones = torch.ones(4, 64, device=device)
        return gated_lora(
            ones, ones[:2], torch.ones(3, 2, device=device), ones[0, :1], dropout_p=0.5
        )

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)
