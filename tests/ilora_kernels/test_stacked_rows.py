"""The masked pass over few rows, which are cut in parts and stacked (see ``shrink``)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton")

from ilora_kernels import use_backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import PassConfig

from .problems import assert_matches_float64, random_problem

PARTS = {16: 4, 32: 2, 64: 1}  # by the rows of a block
shrink = importlib.import_module("ilora_kernels.backends.triton.shrink")


@pytest.fixture(params=PARTS)
def block_t(request: pytest.FixtureRequest) -> Iterator[int]:
    """Blocks of so many rows, for the masked pass."""
    table = configs.load(configs.TUNED_FOLDER / "default.json")
    config = PassConfig(request.param, 32, 4, 3)
    with configs.using(table | {"shrink dropout": [{"config": asdict(config)}]}):
        yield request.param


def test_a_block_has_64_rows_where_each_part_is_whole_units_and_few_products_are_for_nothing() -> (
    None
):
    assert [shrink._parts(16, 16, width) for width in (4096, 32, 48, 40)] == [4, 4, 1, 1]
    assert [shrink._parts(32, rank, 4096) for rank in (1, 16, 17, 64)] == [2, 2, 1, 1]
    assert [shrink._parts(block_t, 16, 4096) for block_t in (64, 128)] == [1, 1]


@pytest.mark.parametrize("gate_form", ["instance", "packed", "token"])
@pytest.mark.parametrize(
    ("d_in", "rank"),
    [
        pytest.param(160, 16, id="a ragged last block in every part"),
        pytest.param(32, 4, id="parts smaller than a block, a small rank"),
        pytest.param(136, 8, id="a width that is not cut"),
        pytest.param(192, 24, id="a rank that is not stacked"),
    ],
)
def test_stacked_rows_match_float64(
    triton_device: torch.device, block_t: int, gate_form: str, d_in: int, rank: int
) -> None:
    problem = random_problem(
        gate_form,
        device=triton_device,
        instances=6,
        length=13,
        d_in=d_in,
        d_out=72,
        rank=rank,
        experts=4,
        linear=False,
    )
    for x_gap in (0, 8):
        assert_matches_float64(
            problem,
            torch.float16,
            dropout_p=0.3,
            arrange=lambda x, gap=x_gap: torch.nn.functional.pad(x, (0, gap))[..., : x.shape[-1]],
        )


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_that_is_not_finite_spoils_no_other(
    triton_device: torch.device, block_t: int, value: float
) -> None:
    problem = random_problem(
        "token_2d", device=triton_device, instances=1, length=40, d_in=160, d_out=72, linear=False
    ).to(torch.float16)
    spoilt = problem.x.clone()
    spoilt[[0, 17, 39]] = value
    found = []
    with use_backend("triton"):
        for x in (problem.x, spoilt):
            torch.manual_seed(5)
            found.append(replace(problem, x=x).run(dropout_p=0.3))
    others = [row for row in range(40) if row not in (0, 17, 39)]
    assert torch.equal(found[0][others], found[1][others])
    assert not torch.isfinite(found[1][[0, 17, 39]]).any()
