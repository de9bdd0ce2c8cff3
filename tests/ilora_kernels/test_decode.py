"""Few rows, as in serving: decoding on every gate form, and which calls they take."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ilora_kernels.backends import triton as backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import DecodeConfig
from ilora_kernels.backends.triton.decode import can_decode
from ilora_kernels.backends.triton.launch import describable

from .problems import GATE_FORMS, assert_matches_float64, random_problem

# Two and a bit tiles of d_out, and a d_in that no step divides.
SIZE = {"instances": 7, "length": 3, "d_in": 456, "d_out": 136, "rank": 6, "experts": 3}
SMALL = DecodeConfig(64, 32, 2, 2, True, 4, 3)
WAYS = {
    "descriptors": SMALL,
    "pointers": replace(SMALL, copy_engine=False),
    "uncut": replace(SMALL, block_k=256),
}


@pytest.fixture(params=WAYS)
def decoded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decode one way; the list of the numbers of rows that were."""
    table = dict(configs.load(configs.TUNED_FOLDER / "default.json"))
    table["decode"] = [{"config": asdict(WAYS[request.param])}]
    calls: list[int] = []
    original = backend.decode

    def counted(x: Tensor, *arguments: Any) -> None:
        calls.append(x.shape[0])
        original(x, *arguments)

    monkeypatch.setattr(backend, "decode", counted)
    with configs.using(table):
        yield calls


@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_every_way_matches_float64_for_every_gate_form(
    triton_device: torch.device, decoded: list[int], gate_form: str
) -> None:
    problem = random_problem(gate_form, device=triton_device, **SIZE)
    assert_matches_float64(problem, torch.float16)  # the gradients too: they start from x Aᵀ
    assert decoded == [problem.x.shape[:-1].numel()]


@pytest.mark.parametrize("rows", [1, 2, 17, 128])
@pytest.mark.parametrize("rank", [1, 16, 33])
def test_every_number_of_rows_and_rank_matches_float64(
    triton_device: torch.device, decoded: list[int], rows: int, rank: int
) -> None:
    size = SIZE | {"instances": rows, "length": 1, "rank": rank, "experts": 1}
    assert_matches_float64(
        random_problem("instance", device=triton_device, bias=False, **size), torch.float16
    )
    assert decoded == [rows]


@pytest.mark.parametrize(
    "change",
    [
        {"instances": 129, "length": 1},
        {"rank": 129, "experts": 1},
        {"d_in": 451},
        {"linear": False},
    ],
    ids=str,
)
def test_other_calls_go_the_usual_way(
    triton_device: torch.device, decoded: list[int], change: dict[str, Any]
) -> None:
    size = SIZE | {"instances": 2} | change
    problem = random_problem("instance", device=triton_device, **size)
    assert_matches_float64(problem, torch.float16)
    assert decoded == []


def test_dropout_and_float32_go_the_usual_way(
    triton_device: torch.device, decoded: list[int]
) -> None:
    problem = random_problem("instance", device=triton_device, **SIZE)
    assert_matches_float64(problem, torch.float16, dropout_p=0.3)
    assert_matches_float64(problem, torch.float32)
    assert decoded == []


def test_offsets_that_an_int32_does_not_hold_go_the_usual_way() -> None:
    def matrix(rows: int) -> Tensor:
        return torch.empty(rows, 8, dtype=torch.float16, device="meta")

    most = 2**31 // 128 - 128  # outputs, for 128 rows and a rank of 128
    assert can_decode(matrix(1), matrix(most - 1), matrix(4), None)
    assert not can_decode(matrix(1), matrix(most), matrix(4), None)
    assert describable(matrix(1).as_strided((1, 8), (2**31 - 8, 1)))
    assert not describable(matrix(1).as_strided((1, 8), (2**31, 1)))
    wide = torch.empty(2**12, 2**19, dtype=torch.float16, device="meta")
    assert backend._factor(wide[:-1, :16]).stride(0) == 2**19
    assert backend._factor(wide[:, :16]).stride(0) == 16  # a copy


def test_strided_rows_of_x_are_read_in_place(
    triton_device: torch.device, decoded: list[int]
) -> None:
    def every_second_row(x: Tensor) -> Tensor:
        return torch.stack([x, torch.full_like(x, torch.nan)], 1).flatten(0, 1)[::2]

    problem = random_problem("token_2d", device=triton_device, **SIZE)
    assert_matches_float64(problem, torch.float16, arrange=every_second_row)
    assert decoded == [21]


def test_the_parts_of_d_in_fill_the_gpu_at_most_once() -> None:
    for columns, depth in [(4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (8, 8)]:
        splits = configs.decode_splits(columns, depth, replace(SMALL, block_n=128), 132)
        tiles = -(-columns // 128) + 1
        assert splits == 1 or tiles * splits <= 2 * 132
        assert tiles * (splits + 1) > 2 * 132 or splits == max(1, -(-depth // 32) // 4)


def test_blocks_are_large_only_where_small_ones_are_more_than_the_multiprocessors() -> None:
    """By the shipped file, for an H100's 132 and the many rows that every block reads again."""
    with configs.using(configs.load(configs.TUNED_FOLDER / "default.json")):
        for columns in (8, 4096, 8192, 11008, 14336):
            sizes = {configs.choose("decode", rows, 16, 0, columns).block_n for rows in (65, 128)}
            assert sizes == {64 if -(-columns // 64) < 132 else 128}
            for rows in (1, 16, 64):
                assert configs.choose("decode", rows, 16, 0, columns).block_n == 64


def test_rows_do_not_depend_on_their_neighbours(
    triton_device: torch.device, decoded: list[int]
) -> None:
    """Other users' rows and gates, of any size, leave a user's result as it was, to the bit."""
    problem = random_problem("instance", device=triton_device, **SIZE).to(torch.float16)

    def loud(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[1:] = 100 * tensor[1:].flip(0)
        return changed

    y = problem.run()
    other = replace(problem, x=loud(problem.x), gate=loud(problem.gate)).run()
    assert torch.equal(y[0], other[0])
    assert not torch.equal(y[1], other[1])
