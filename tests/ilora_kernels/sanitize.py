"""A few small forward and backward passes of a backend, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck  python -m tests.ilora_kernels.sanitize
    compute-sanitizer --tool racecheck python -m tests.ilora_kernels.sanitize

and for the CUDA kernels, of which initcheck and synccheck have a say too

    compute-sanitizer --tool initcheck python -m tests.ilora_kernels.sanitize cuda

Triton's kernels run with and without descriptors, masks and packed gates (a first run without a tool
compiles them); those of CUDA with and without tensor cores, at ranks of each of their templates. A tool
slows a kernel down by a factor of hundreds, hence the sizes. Results are checked too: a tool that
changes the timing may show what a plain run does not.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
import time
from dataclasses import asdict
from unittest.mock import patch

import torch
from torch import Tensor

# memcheck then sees where each tensor ends, not only where the pool of all of them does.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
if not torch.cuda.is_available():  # before triton is imported: a dry run, for this file's own sake
    os.environ.setdefault("TRITON_INTERPRET", "1")

from ilora_kernels import use_backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import DecodeConfig

from .cuda_on_cpu import cuda_on_cpu
from .problems import assert_matches_float64, random_problem
from .tf32 import assert_errs_as_tf32_does

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WHOLE_UNITS = {"instances": 12, "length": 25, "d_in": 136, "d_out": 264}  # of 16 bytes
ODD = {"instances": 12, "length": 25, "d_in": 67, "d_out": 77}
FEW_ROWS = {"instances": 5, "length": 7, "d_in": 264, "d_out": 136}
CASES = [
    ("instance", WHOLE_UNITS, True),
    ("packed", WHOLE_UNITS, True),
    ("instance", WHOLE_UNITS, False),
    ("packed", ODD, False),
    ("token_2d", ODD, False),
]


def main() -> None:
    start = time.perf_counter()
    backend = sys.argv[1] if len(sys.argv) > 1 else "triton"
    {"triton": run_triton, "cuda": run_cuda}[backend]()
    print(f"all computed and right, {time.perf_counter() - start:.1f} s")


def run_cuda() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(torch.nn.functional, "linear", plain_linear))
        stack.enter_context(patch.object(Tensor, "__matmul__", plain_product))
        if DEVICE == "cpu":
            stack.enter_context(cuda_on_cpu())
        stack.enter_context(use_backend("cuda"))
        forms, sizes = ("instance", "packed", "token_2d"), (WHOLE_UNITS, ODD)
        cases = [(16, torch.float16, *case) for case in itertools.product(forms, sizes, (0.0, 0.3))]
        cases += [  # each rank has templates of its own, with tensor cores and without
            (rank, torch.bfloat16, "packed", size, dropout_p)
            for rank in (32, 160)
            for size, dropout_p in ((WHOLE_UNITS, 0.3), (ODD, 0.0))
        ]
        for rank, dtype, gate_form, size, dropout_p in cases:
            problem = random_problem(gate_form, device=DEVICE, rank=rank, experts=4, **size)
            assert_matches_float64(problem, dtype, dropout_p=dropout_p)
            print(f"{gate_form}, rank {rank}, dropout {dropout_p}", flush=True)
        problem = random_problem("packed", device=DEVICE, rank=32, experts=4, **WHOLE_UNITS)
        assert_errs_as_tf32_does(problem, dropout_p=0.3)
        print("packed, rank 32, dropout 0.3, TF32", flush=True)
        narrow = random_problem("instance", device=DEVICE, length=600, d_in=16, d_out=24)
        for dtype in (torch.float32, torch.bfloat16):
            assert_matches_float64(narrow, dtype, dropout_p=0.3)


# initcheck does not see what the copy engine writes, as the library's products for Hopper do. Here they
# are computed and stored in the ordinary way, the formula's as well as the backend's.
def plain_product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` for ``a [..., M, N]`` and a matrix ``b``, accumulated in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    rows = a.flatten(0, -2).to(wide)
    product = (rows[:, :, None] * b.to(wide)).sum(1)
    return product.to(a.dtype).unflatten(0, a.shape[:-1])


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + bias``."""
    y = x @ weight.T
    return y if bias is None else y + bias


def run_triton() -> None:
    linear = importlib.import_module("ilora_kernels.backends.triton.linear")
    replay = importlib.import_module("ilora_kernels.backends.triton.replay")
    linear.multiprocessors = lambda _: 4  # several tiles a program
    with use_backend("triton"):
        for (gate_form, size, fused), dropout_p in itertools.product(CASES, (0.0, 0.3)):
            linear.fusing_pays = lambda *_, fused=fused: fused
            replay.forget()
            problem = random_problem(gate_form, device=DEVICE, rank=16, experts=4, **size)
            assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
            print(f"{gate_form}, dropout {dropout_p}, fused {fused}", flush=True)
        # Few rows; sums of several parts of d_in.
        table = configs.load(configs.TUNED_FOLDER / "default.json")
        for copied in (True, False):
            config = DecodeConfig(64, 32, 2, 2, copied, 4, 3)
            with configs.using(table | {"decode": [{"config": asdict(config)}]}):
                problem = random_problem("token", device=DEVICE, rank=16, experts=4, **FEW_ROWS)
                assert_matches_float64(problem, torch.float16)
            print(f"few rows, copy engine {copied}", flush=True)
        # Many rows of few columns: sums split over programs.
        narrow = random_problem("instance", device=DEVICE, length=600, d_in=16, d_out=24)
        assert_matches_float64(narrow, torch.float32, dropout_p=0.3)


if __name__ == "__main__":
    main()
