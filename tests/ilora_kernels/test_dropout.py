"""The mask: unbiased, independent, reproducible, and the same wherever it is computed."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from ilora_kernels import gated_lora
from ilora_kernels.dropout import draw_seed, keep_mask

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


def test_a_mask_does_not_depend_on_how_many_rows_and_columns_are_asked_for() -> None:
    assert torch.equal(mask(9)[:7, :5], mask(9, rows=7, columns=5))


def test_the_mask_is_the_documented_arithmetic() -> None:
    def mix(z: int) -> int:
        z ^= z >> 16
        z = z * 0x7FEB352D & 0xFFFFFFFF
        z ^= z >> 15
        z = z * 0x846CA68B & 0xFFFFFFFF
        return z ^ z >> 16

    seed, p = 0x9123456789ABCDEF - (1 << 64), 0.3
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    keep = mask(seed, p, rows=4, columns=6)
    for t in range(4):
        key = mix(mix(t) ^ mix(mix(low) ^ high))
        for j in range(6):
            bits = mix((key + j * 0x9E3779B9) & 0xFFFFFFFF)
            assert bool(keep[t, j]) == ((bits >> 8) >= round(p * 2**24))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_the_gpu_computes_the_same_mask() -> None:
    on_gpu = keep_mask(torch.tensor([77], device="cuda"), ROWS, COLUMNS, 0.3)
    assert torch.equal(on_gpu.cpu(), mask(77, 0.3))


def test_dropout_is_unbiased_and_acts_on_the_low_rank_path_alone(device: torch.device) -> None:
    x = torch.randn(3, 40, dtype=torch.float64, device=device)
    lora_A = torch.randn(2, 40, dtype=torch.float64, device=device)
    lora_B = torch.randn(5, 2, dtype=torch.float64, device=device)
    gate = torch.rand(2, dtype=torch.float64, device=device)
    draws = torch.stack([gated_lora(x, lora_A, lora_B, gate, dropout_p=0.3) for _ in range(2000)])
    error = (draws.mean(0) - gated_lora(x, lora_A, lora_B, gate)).abs()
    assert (error < 5 * draws.std(0) / 2000**0.5).all()


def test_gradients_use_the_mask_of_the_forward_pass(device: torch.device) -> None:
    x = torch.randn(6, 19, dtype=torch.float64, device=device, requires_grad=True)
    lora_A = torch.randn(4, 19, dtype=torch.float64, device=device, requires_grad=True)
    lora_B = torch.randn(5, 4, dtype=torch.float64, device=device, requires_grad=True)
    gate = torch.rand(6, 2, dtype=torch.float64, device=device, requires_grad=True)
    torch.manual_seed(11)
    seed = draw_seed(device)
    keep = keep_mask(seed, 6, 19, 0.4)
    dropped = x * keep / 0.6
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
