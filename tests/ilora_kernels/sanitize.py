"""A few small forward and backward passes of the Triton backend, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck  python -m tests.ilora_kernels.sanitize
    compute-sanitizer --tool racecheck python -m tests.ilora_kernels.sanitize

Every kernel runs with and without descriptors, masks and packed gates. A first run without a tool
compiles them. A tool slows a kernel down by a factor of hundreds, hence the sizes. Results are
checked too: a tool that changes the timing may show what a plain run does not.
"""

from __future__ import annotations

import importlib
import itertools
import os
import time
from dataclasses import asdict

import torch

# memcheck then sees where each tensor ends, not only where the pool of all of them does.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
if not torch.cuda.is_available():  # before triton is imported: a dry run, for this file's own sake
    os.environ.setdefault("TRITON_INTERPRET", "1")

from ilora_kernels import use_backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import DecodeConfig

from .problems import assert_matches_float64, random_problem

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
    linear = importlib.import_module("ilora_kernels.backends.triton.linear")
    linear.multiprocessors = lambda _: 4  # several tiles a program
    with use_backend("triton"):
        for (gate_form, size, fused), dropout_p in itertools.product(CASES, (0.0, 0.3)):
            linear.fusing_pays = lambda *_, fused=fused: fused
            problem = random_problem(gate_form, device=DEVICE, rank=16, experts=4, **size)
            assert_matches_float64(problem, torch.float16, dropout_p=dropout_p)
            print(f"{gate_form}, dropout {dropout_p}, fused {fused}", flush=True)
        # Few rows, both ways; sums of several parts of d_in.
        table = configs.load(configs.TUNED_FOLDER / "default.json")
        for whole, copied in itertools.product((True, False), (True, False)):
            config = DecodeConfig(whole, 64, 32, 2, 2, copied, 4, 3)
            with configs.using(table | {"decode": [{"config": asdict(config)}]}):
                problem = random_problem("token", device=DEVICE, rank=16, experts=4, **FEW_ROWS)
                assert_matches_float64(problem, torch.float16)
            print(f"few rows, whole {whole}, copy engine {copied}", flush=True)
        # Many rows of few columns: sums split over programs.
        narrow = random_problem("instance", device=DEVICE, length=600, d_in=16, d_out=24)
        assert_matches_float64(narrow, torch.float32, dropout_p=0.3)
    print(f"all computed and right, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
