"""Compile every kernel as the backend would launch it on a GPU that is not here; print JSON.

    python -m tests.ilora_kernels.compile_kernels sm_90

The backend's own forward and backward run on tensors without memory, for a GPU of the target, with
the launch itself replaced by a note of what would be launched. So shapes, constants and
configurations are the real ones. Must run in a process of its own, without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from ilora_kernels.backends import triton as backend
from ilora_kernels.backends.triton.launch import Settings

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Whose kernel computes the frozen product: the one for Hopper, Triton's own, or the library's.
PRODUCTS = {"sm_90": ("hopper", "triton", "library"), "sm_100": ("triton", "library")}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX_INSTRUCTIONS = ("HGMMA", "HMMA", "UTCHMMA")
DECODED_ROWS = (16, 32, 64, 128)  # of a decoding step; the last of each bucket of padded rows
DECODED_COLUMNS = (4096, 14336)  # of its y; one of each bucket
ROWS, WIDTH, EXPERTS, INSTANCES = (1024, 2048, 4096, 16384), 4096, 4, 8


@dataclass(frozen=True)
class Launch:
    """One launch of a pass, as handed to ``launch``."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    overlap: bool
    registers: int | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What is compiled once."""
        types = tuple(map(type_of, self.arguments))
        return (self.kernel.fn.__name__, types, self.constants, self.num_warps, self.num_stages)


def main(name: str) -> None:
    assert not triton.knobs.runtime.interpret
    records, seen = [], {}
    found = [(16, *item) for item in passes(name).items()]
    if name in PRODUCTS:
        found += [(64, *item) for item in passes(name, 64).items()]
    for rank, (pass_name, rows, dropout_p, product), launches in found:
        for launch in launches:
            if launch.key not in seen:
                seen[launch.key] = resources(launch, name)
            records.append(
                {
                    "rank": rank,
                    "pass": pass_name,
                    "rows": rows,
                    "dropout_p": dropout_p,
                    "product": product,
                    "kernel": launch.kernel.fn.__name__,
                    "masked": dict(launch.constants).get("MASKED", False),
                    "num_warps": launch.num_warps,
                    "num_stages": launch.num_stages,
                    "error": None,
                    **seen[launch.key],
                }
            )
    print(json.dumps(records))


def passes(target: str, rank: int = 16) -> dict[tuple[str, int, float, str], list[Launch]]:
    """What each pass launches, for every bucket of rows, with and without dropout.

    With each of the products that the target has; with the last of several for few rows alone. And
    decoding steps, except on AMD's GPUs, where those take the usual way.
    """
    noted = imitate(target)
    linear = importlib.import_module(f"{backend.__name__}.linear")
    found = {}
    for product in (products := PRODUCTS.get(target, ("library",))):
        linear.fusing_pays = lambda *_, fused=product != "library": fused
        linear.has_hopper_kernels = lambda _, its=product == "hopper": its
        linear._plan.cache_clear()
        for rows in ROWS[:1] if product == "library" and len(products) > 1 else ROWS:
            for dropout_p in (0.0, 0.1):
                for pass_name, run in (("forward", run_forward), ("backward", run_backward)):
                    noted.clear()
                    run(rows, rank, dropout_p)
                    found[pass_name, rows, dropout_p, product] = list(noted)
    for rows in DECODED_ROWS if TARGETS[target].backend == "cuda" else ():
        for columns in DECODED_COLUMNS:
            noted.clear()
            run_forward(rows, rank, 0.0, columns)
            found[f"decode to {columns} columns", rows, 0.0, "decode"] = list(noted)
    return found


def imitate(target: str) -> list[Launch]:
    """Make the backend take itself to be on the target; return the list of what it launches."""
    noted: list[Launch] = []

    def note(how: Settings, grid: Any, tensors: Any, numbers: Any) -> None:
        arguments = (*how.described(tensors), *numbers)
        constants = tuple(how.constants.items())
        options = (how.num_warps, how.num_stages, how.overlap, how.registers)
        noted.append(Launch(how.kernel, arguments, constants, *options))

    hopper_or_newer = target in ("sm_90", "sm_100")
    replaced = {
        "launch": note,
        "current_device": lambda: 0,
        "has_copy_engine": lambda _: hopper_or_newer,
        "holds_product": lambda _: hopper_or_newer,
        "can_overlap": lambda _: hopper_or_newer,
        "can_flatten": lambda _: target != "sm_100",
        "multiprocessors": lambda _: 132,
    }
    names = ("linear", "shrink", "gradients", "delta", "decode")
    for name in names:
        module = importlib.import_module(f"{backend.__name__}.{name}")
        for attribute, value in replaced.items():
            if hasattr(module, attribute):
                setattr(module, attribute, value)
    return noted


def run_forward(rows: int, rank: int, dropout_p: float, columns: int = WIDTH) -> None:
    backend._forward(
        matrix(rows, WIDTH), matrix(columns, WIDTH), None, None, *low_rank(rows, rank, columns),
        dropout_p, seed(),
    )  # fmt: skip


def run_backward(rows: int, rank: int, dropout_p: float) -> None:
    lora_A, lora_B, gate, cu_seqlens, *scalars = low_rank(rows, rank)
    xa = torch.empty(rows, rank, device="meta")
    backend._backward(
        matrix(rows, WIDTH), matrix(rows, WIDTH), matrix(WIDTH, WIDTH), lora_A, lora_B, gate,
        cu_seqlens, xa, *scalars, dropout_p, seed(), (True,) * 4,
    )  # fmt: skip


def matrix(rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.bfloat16, device="meta")


def seed() -> Tensor:
    return torch.empty(1, dtype=torch.int64, device="meta")


def low_rank(rows: int, rank: int, columns: int = WIDTH) -> tuple[Any, ...]:
    gate = torch.empty(INSTANCES, EXPERTS, device="meta")
    return matrix(rank, WIDTH), matrix(columns, rank), gate, None, rows // INSTANCES, 1.0


def resources(launch: Launch, name: str) -> dict[str, Any]:
    """Registers a thread, spills, shared bytes and matrix instructions; or why it does not compile."""
    target = TARGETS[name]
    constants = dict(launch.constants)
    names = launch.kernel.arg_names
    signature = dict(zip(names, map(type_of, launch.arguments)))  # noqa: B905 - constants follow
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == list(names)
    # On a GPU the addresses of whole tensors are multiples of 16 bytes.
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    language = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = language(launch.kernel, signature, constants, attributes)
    options: dict[str, Any] = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    if launch.overlap:
        options["launch_pdl"] = True
    if launch.registers is not None:
        options["maxnreg"] = launch.registers
    try:
        compiled = triton.compile(source, target=target, options=options)
    except (RuntimeError, triton.CompilationError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    count = amd_resources if target.backend == "hip" else nvidia_resources
    return {"shared": compiled.metadata.shared, **count(compiled.asm)}


def type_of(argument: Any) -> str:
    names = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"}
    if isinstance(argument, TensorDescriptor | GluonDescriptor):
        layout = f",{argument.layout!r}" if isinstance(argument, GluonDescriptor) else ""
        return f"tensordesc<{names[argument.base.dtype]}{list(argument.block_shape)}{layout}>"
    if isinstance(argument, Tensor):
        return f"*{names[argument.dtype]}"
    return "fp32" if isinstance(argument, float) else "i32"


def nvidia_resources(asm: dict[str, Any]) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [NVIDIA_TOOLS / "cuobjdump", option, file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    stated = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert stated, usage
    opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", code))
    return {
        "registers": int(stated[1]),
        "spills": int(stated[2]) + opcodes["LDL"] + opcodes["STL"],
        "matrix_instructions": sum(opcodes[name] for name in MATRIX_INSTRUCTIONS),
        "overwritten_operands": overwritten_operands(asm["ptx"]),
    }


def overwritten_operands(ptx: str) -> int:
    """Asynchronous matrix instructions that may still read a's registers when those are computed anew.

    That is where the wait after one of them lets some instructions go on.
    """
    a_in_registers = re.compile(r"wgmma\.mma_async[^;]*\{[^{}]*\}, \{")
    count = waiting = 0
    for statement in ptx.split(";"):
        if a_in_registers.search(statement):
            waiting += 1
        elif wait := re.search(r"wgmma\.wait_group\.sync\.aligned (\d+)", statement):
            count += waiting if int(wait[1]) else 0
            waiting = 0
    return count


def amd_resources(asm: dict[str, Any]) -> dict[str, int]:
    code = asm["amdgcn"]
    counts = {
        kind: int(re.search(rf"\.{kind}:\s*(\d+)", code)[1])  # type: ignore[index]
        for kind in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    }
    return {
        "registers": counts["vgpr_count"],
        "spills": counts["vgpr_spill_count"] + counts["sgpr_spill_count"],
        "matrix_instructions": len(re.findall(r"^\s*v_mfma_", code, re.MULTILINE)),
    }


if __name__ == "__main__":
    main(sys.argv[1])
