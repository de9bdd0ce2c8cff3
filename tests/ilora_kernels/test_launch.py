"""Launching: maps and compiled kernels kept by value, and Triton's own launcher where it is unknown."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

launching = importlib.import_module("ilora_kernels.backends.triton.launch")
tensor_maps = importlib.import_module("ilora_kernels.backends.triton.tensor_maps")

META = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [64, 64], "fp4_padded": False}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """An empty memo over a driver that encodes by noting what it would encode."""
    done: list[tuple[int, ...]] = []

    def make_tensordesc_arg(descriptor: Any, meta: dict[str, Any]) -> list[Any]:
        sizes = (*descriptor.shape, *descriptor.strides)
        done.append((descriptor.base.data_ptr(), *sizes, *descriptor.block_shape))
        return [SimpleNamespace(of=done[-1]), *sizes]

    driver = ModuleType("triton.backends.nvidia.driver")
    monkeypatch.setattr(driver, "make_tensordesc_arg", make_tensordesc_arg, raising=False)
    monkeypatch.setitem(sys.modules, driver.__name__, driver)
    monkeypatch.setattr(tensor_maps, "_maps", {})
    return done


def maps_of(matrix: Tensor, *metas: dict[str, Any]) -> tuple[Any, ...]:
    layouts = tensor_maps.layouts(metas or (META,))
    found: tuple[Any, ...] = tensor_maps.maps_at(
        matrix.data_ptr(), matrix.shape, matrix.stride(), layouts
    )
    return found


# ---- The memo


def test_the_same_values_are_the_same_map(encoded: list[tuple[int, ...]]) -> None:
    matrix = torch.zeros(128, 64)
    (first, *sizes), (again, *_) = maps_of(matrix), maps_of(matrix.view(128, 64), dict(META))
    assert again is first
    assert sizes == [128, 64, 64, 1]
    assert len(encoded) == 1


def test_memory_given_out_again_for_another_shape_is_another_map(
    encoded: list[tuple[int, ...]],
) -> None:
    storage = torch.zeros(128 * 64)
    for shape in ((128, 64), (64, 128), (128, 64)):
        matrix = storage.view(shape)
        found, *sizes = maps_of(matrix)
        assert found.of == (matrix.data_ptr(), *shape, shape[1], 1, 64, 64)
        assert sizes == [*shape, shape[1], 1]
    assert len(encoded) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[8:],
        lambda m: m[:64],
        lambda m: m[:, :32],
        lambda m: m.view(64, 128)[:, :64],
    ],
    ids=["address", "rows", "columns", "stride"],
)
def test_a_matrix_that_differs_in_one_value_has_a_map_of_its_own(
    encoded: list[tuple[int, ...]], change: Any
) -> None:
    matrix = torch.zeros(128, 64)
    changed = change(matrix)
    assert maps_of(changed)[0] is not maps_of(matrix)[0]
    assert len(encoded) == 2


@pytest.mark.parametrize("name", META)
def test_a_layout_that_differs_in_one_value_has_a_map_of_its_own(
    encoded: list[tuple[int, ...]], name: str
) -> None:
    matrix = torch.zeros(128, 64)
    changed = META | {name: [64, 32] if name == "block_size" else 1}
    assert maps_of(matrix, changed)[0] is not maps_of(matrix)[0]
    assert len(encoded) == 2


def test_a_matrix_read_in_two_blocks_has_both_maps_in_order(
    encoded: list[tuple[int, ...]],
) -> None:
    matrix = torch.zeros(128, 64)
    whole, *rest = maps_of(matrix, META, META | {"block_size": [64, 32]})
    half = rest[4]
    assert (whole.of[-2:], half.of[-2:]) == ((64, 64), (64, 32))
    assert rest[:4] == rest[5:] == [128, 64, 64, 1]
    assert maps_of(matrix)[0] is not whole  # the first of two is no entry for it alone


def test_the_memo_holds_no_more_than_it_may(
    encoded: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_maps, "MOST_ENTRIES", 4)
    storage = torch.zeros(64, 64)
    for first in (*range(11), *range(11)):
        found, *_ = maps_of(storage[first:])
        assert found.of[0] == storage[first:].data_ptr()
        assert len(tensor_maps._maps) <= 4


# ---- Which launcher is called


class CudaLauncher:
    """Shaped as Triton 3.6's; ``launch`` captures a C function, here any builtin one."""

    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid, launch_pdl = False, True

    def __init__(self, metas: list[Any], launcher: Any = print) -> None:
        tensordesc_meta = metas

        def inner(*arguments: Any) -> None:
            launcher(*arguments, tensordesc_meta)

        self.launch = inner if metas else launcher


class OtherLauncher(CudaLauncher):
    pass


def prepared(launcher: Any, blocks: Any = (((64, 64),),)) -> Any:
    compiled = SimpleNamespace(run=launcher, function=7, packed_metadata=(4, 1, 0))
    return launching._prepared(compiled, blocks)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "TRITON_IS_KNOWN", True)


def test_the_c_function_is_called_with_what_tritons_launcher_would_add() -> None:
    run, head, matrices = prepared(CudaLauncher([META, META]), (((64, 64), (64, 64)),))
    assert run is print
    assert head == (7, False, True, None, None, (4, 1, 0), None, None, None)
    assert [len(m.metas) for m in matrices] == [2]


def test_a_kernel_without_descriptors_is_called_directly_too() -> None:
    run, _, matrices = prepared(CudaLauncher([]), ())
    assert run is print
    assert matrices == ()


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(OtherLauncher([META]), id="another launcher"),
        pytest.param(CudaLauncher([None]), id="the matrix itself instead of a map"),
        pytest.param(CudaLauncher([META, META]), id="another number of descriptors"),
        pytest.param(CudaLauncher([META], lambda *_: None), id="no C function"),
        pytest.param(CudaLauncher([]), id="nothing around the C function"),
    ],
)
def test_where_the_launcher_is_not_the_known_one_it_is_called_itself(launcher: Any) -> None:
    assert prepared(launcher) == (launcher, (7, (4, 1, 0), None, None, None), None)


@pytest.mark.parametrize("scratch", ["global_scratch_size", "profile_scratch_size"])
def test_where_scratch_memory_is_needed_tritons_launcher_allocates_it(
    monkeypatch: pytest.MonkeyPatch, scratch: str
) -> None:
    launcher = CudaLauncher([META])
    monkeypatch.setattr(launcher, scratch, 128, raising=False)
    assert prepared(launcher).run is launcher


def test_another_version_of_triton_is_launched_its_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launching, "TRITON_IS_KNOWN", False)
    launcher = CudaLauncher([META])
    assert prepared(launcher).run is launcher


def test_another_version_of_triton_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = importlib.import_module("ilora_kernels.backends.triton")
    monkeypatch.setattr(backend, "TRITON_IS_KNOWN", True)
    assert backend.drawback() is None
    monkeypatch.setattr(backend, "TRITON_IS_KNOWN", False)
    monkeypatch.setattr("triton.__version__", "3.7.1")
    assert backend.drawback().startswith("Triton 3.7.1 is not 3.6")


@pytest.mark.parametrize(
    ("known", "interpreted", "capability", "there"),
    [
        pytest.param(True, False, 9, True, id="Hopper"),
        pytest.param(True, False, 8, False, id="Ampere"),
        pytest.param(True, False, 10, False, id="Blackwell"),
        pytest.param(True, True, 9, False, id="interpreted"),
        pytest.param(False, False, 9, False, id="another Triton"),
    ],
)
def test_hoppers_own_kernels_run_on_hopper_with_the_triton_they_were_written_for(
    monkeypatch: pytest.MonkeyPatch, known: bool, interpreted: bool, capability: int, there: bool
) -> None:
    monkeypatch.setattr(launching, "TRITON_IS_KNOWN", known)
    monkeypatch.setattr(launching, "INTERPRETED", interpreted)
    monkeypatch.setattr(launching, "_capability", lambda _: capability)
    assert launching.has_hopper_kernels.__wrapped__(0) is there


# ---- What is compiled, and with how many stages


@pytest.mark.parametrize(
    ("changed", "compiles_again"),
    [
        pytest.param({}, False, id="the same"),
        pytest.param({"rows": 96}, False, id="other sizes"),
        pytest.param({"dtype": torch.bfloat16}, True, id="another dtype"),
        pytest.param({"described": False}, True, id="pointers"),
        pytest.param({"offset": 1}, True, id="another alignment"),
        pytest.param({"num_warps": 8}, True, id="more warps"),
        pytest.param({"room": 4096}, True, id="a storage that 32 bits do not reach, on AMD"),
    ],
)
def test_a_compiled_kernel_is_used_for_its_own_dtypes_and_alignment_alone(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], compiles_again: bool
) -> None:
    """A kernel whose matrices are all described knows their dtype from nothing else."""
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "_settings", {})
    monkeypatch.setattr(launching, "_ON_AMD", True)
    monkeypatch.setattr(launching, "_SMALL_STORAGE", 1024)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    compiled: list[Any] = []
    ran: list[Any] = []
    binary = SimpleNamespace(
        run=lambda *arguments: ran.append(arguments), function=0, packed_metadata=()
    )

    class Kernel:
        fn = None

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **options: compiled.append(options) or binary

    kernel = Kernel()

    def run(
        rows: int = 64,
        dtype: torch.dtype = torch.float16,
        described: bool = True,
        offset: int = 0,
        num_warps: int = 4,
        room: int = 128,
    ) -> None:
        matrix = torch.zeros(rows, 64, dtype=dtype)
        sums = torch.zeros(room)[offset:]
        blocks = (((16, 16),),) if described else ()
        constants = {"BLOCK": 16, "DESCRIPTORS": described}
        how = launching.settings(
            kernel, constants, 0, num_warps=num_warps, num_stages=2, blocks=blocks
        )
        launching.launch(how, (1, 1, 1), (matrix, sums), (rows,))

    run()
    run(**changed)
    assert len(compiled) == 1 + compiles_again
    assert len(ran) == 1 - compiles_again


@pytest.mark.parametrize("room_for", [3, 2, 1, 0])
def test_a_kernel_that_does_not_fit_is_compiled_with_fewer_stages(room_for: int) -> None:
    tried: list[int] = []

    def run(*arguments: Any, num_stages: int, num_warps: int) -> int:
        tried.append(num_stages)
        if num_stages > room_for:
            raise OutOfResources(num_stages, room_for, "shared memory")
        return num_stages

    compile_ = launching._compile
    if room_for == 0:
        with pytest.raises(OutOfResources):
            compile_(run, (), {"num_warps": 4}, 3)
    else:
        assert compile_(run, (), {"num_warps": 4}, 3) == room_for
    assert tried == list(range(3, max(room_for, 1) - 1, -1))
