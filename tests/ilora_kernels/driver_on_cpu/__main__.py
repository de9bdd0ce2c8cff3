"""What reaches the driver when a pass is launched for the first time and later.

    python -m tests.ilora_kernels.driver_on_cpu FOLDER

A first launch goes through Triton; a later one calls what was compiled by itself. Both must hand the same
to the driver, for the same tensors and for others. Prints JSON: a list of cases, each with four rounds,
the last of them over tensors of other addresses: their launches, of which tensors maps were encoded, and
how many passes were computed in full, not replayed. FOLDER is for the driver and the cache.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

R, K, P = 16, 4, 0.1
MAP_BYTES = 128
NUMBER_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "fp32": 4, "fp64": 8}
# T, d_in, d_out, whether `linear` computes the product: fused, around the library's, unaligned, decoding.
CASES = [
    (512, 256, 512, True),
    (512, 256, 512, False),
    (300, 264, 513, False),
    (32, 512, 384, False),
]

Launch = tuple[str, tuple[int, ...], tuple[bytes, ...]]
launches: list[Launch] = []
encoded: list[int] = []  # addresses
computed: list[str] = []  # passes
parameters_of: dict[int, tuple[str, list[int]]] = {}  # function -> name, bytes of each parameter


def play(folder: Path) -> Any:
    """Build the driver, make torch and Triton see a GPU; return the listener, to be kept."""
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("driver.c")
    name = f"-Wl,-soname,{library.name}"
    subprocess.run(["cc", "-shared", "-fPIC", name, str(source), "-o", str(library)], check=True)
    os.environ |= {"TRITON_LIBCUDA_PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    driver = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    properties = SimpleNamespace(
        multi_processor_count=132, shared_memory_per_block_optin=227 * 1024
    )
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_name = lambda *_: "none"
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment,return-value]
    torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)  # type: ignore[assignment,return-value]
    private: Any = torch._C
    private._cuda_getDevice = lambda: 0
    private._cuda_getCurrentRawStream = lambda _: 0
    note_parameters()
    note_maps()

    @ctypes.CFUNCTYPE(
        None, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint)
    )
    def listener(function: int, values: Any, shape: Any) -> None:
        name, sizes = parameters_of[function]
        content = tuple(ctypes.string_at(values[i], size) for i, size in enumerate(sizes))
        launches.append((name, tuple(shape[:6]), content))

    driver.listen(listener)
    return listener


def note_parameters() -> None:
    """Note of every function that Triton loads how many bytes each of its parameters has."""
    compiler: Any = importlib.import_module("triton.compiler.compiler").CompiledKernel
    launcher: Any = importlib.import_module("triton.backends.nvidia.driver").CudaLauncher
    load, build = compiler._init_handles, launcher.__init__

    def built(self: Any, source: Any, metadata: Any) -> None:
        build(self, source, metadata)
        types = [kind for kind in source.signature.values() if kind != "constexpr"]
        self.parameter_bytes = [size for kind in types for size in bytes_of(kind)]

    def loaded(self: Any) -> None:
        load(self)
        parameters_of[self.function] = (self.metadata.name, self._run.parameter_bytes)

    launcher.__init__, compiler._init_handles = built, loaded


def note_maps() -> None:
    """Note whenever Triton encodes a map."""
    driver: Any = importlib.import_module("triton.backends.nvidia.driver")
    encode = driver.make_tensordesc_arg

    def noting(descriptor: Any, meta: Any) -> Any:
        encoded.append(descriptor.base.data_ptr())
        return encode(descriptor, meta)

    driver.make_tensordesc_arg = noting


def bytes_of(kind: str) -> list[int]:
    if kind.startswith("tensordesc"):  # tensordesc<bf16[64, 64], ...>: the map, sizes and strides
        dimensions = kind.partition("]")[0].count(",") + 1
        return [MAP_BYTES, *[4] * dimensions, *[8] * dimensions]
    return [8] if kind[0] == "*" else [NUMBER_BYTES[kind]]


def problem(rows: int, d_in: int, d_out: int) -> dict[str, Tensor]:
    """The tensors of a layer; odd widths make rows that the copy engine cannot read."""
    shapes = {
        "x": (rows, d_in),
        "weight": (d_out, d_in),
        "lora_A": (R, d_in),
        "lora_B": (d_out, R),
        "dy": (rows, d_out),
    }
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    return tensors | {"gate": torch.zeros(4, K), "seed": torch.zeros(1, dtype=torch.int64)}


def run(tensors: dict[str, Tensor], dropout_p: float) -> None:
    """A forward and a backward pass of the layer and of the update alone."""
    backend: Any = importlib.import_module("ilora_kernels.backends.triton")
    x, weight, lora_A, lora_B, dy, gate, seed = tensors.values()
    common = (lora_A, lora_B, gate, None)
    rest = (len(x) // 4, 2.0, dropout_p, seed if dropout_p else None)
    for base in (weight, None):
        _, xa = backend.forward(x, base, None, None, *common, *rest)
        backend.backward(dy, x, base, *common, xa, *rest, [True] * 4)


def told(tensors: dict[str, Tensor]) -> Iterator[list[Any]]:
    """The launches, with names for the addresses of a problem and numbers for others, by launch."""
    names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    for kernel, shape, content in launches:
        others: dict[int, str] = {}

        def label(address: int, others: dict[int, str] = others) -> str:
            return names.get(address) or others.setdefault(address, f"other {len(others)}")

        values: list[Any] = []
        for value in content:
            words: Sequence[int] = (
                struct.unpack(f"{len(value) // 8}Q", value) if len(value) % 8 == 0 else ()
            )
            if len(value) == MAP_BYTES:
                values.append([label(words[0]), *words[1:]])
            else:
                values.append(label(words[0]) if words and words[0] >= 2**32 else value.hex())
        yield [kernel, shape, values]


def main(folder: Path) -> None:
    kept = play(folder)
    backend: Any = importlib.import_module("ilora_kernels.backends.triton")
    check_device, backend._check_device = backend._check_device, lambda _: None
    note_passes(backend)
    found = []
    for *sizes, fused in CASES:
        linear: Any = importlib.import_module("ilora_kernels.backends.triton.linear")
        linear.fusing_pays = lambda *_, fused=fused: fused
        backend.replay.forget()
        for dropout_p in (0.0, P):
            same, other = problem(*sizes), problem(*sizes)
            rounds = []
            for tensors in (same, same, same, other):
                launches.clear()
                encoded.clear()
                computed.clear()
                run(tensors, dropout_p)
                maps = [name for name, t in tensors.items() if t.data_ptr() in encoded]
                rounds.append(
                    {
                        "launches": list(told(tensors)),
                        "encoded": maps,
                        "computed": list(computed),
                    }
                )
            found.append({"case": [*sizes, fused, dropout_p], "rounds": rounds})
    told_of_all = {"onto": onto_itself(backend), "outputs": most_outputs(backend)}
    told_of_all["refusal"] = refusal(backend, check_device)
    print(json.dumps({"cases": found} | told_of_all))
    del kept


def note_passes(backend: Any) -> None:
    """Note whenever a pass is computed in full."""
    for name in ("_forward", "_backward"):

        def noting(*arguments: Any, name: str = name, compute: Any = getattr(backend, name)) -> Any:
            computed.append(name)
            return compute(*arguments)

        setattr(backend, name, noting)


def most_outputs(backend: Any) -> int:
    """How many tensors of y's size are alive at once in a first call with the library's product."""
    linear: Any = importlib.import_module("ilora_kernels.backends.triton.linear")
    linear.fusing_pays = lambda *_: False
    backend.replay.forget()
    tensors = problem(256, 512, 2048)
    x, weight, lora_A, lora_B, _, gate, _ = tensors.values()
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal most
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape == (256, 2048):
                alive.append(weakref.ref(result))
                most = max(most, sum(kept() is not None for kept in alive))
            return result

    with Count():
        backend.forward(x, weight, None, None, lora_A, lora_B, gate, None, 64, 2.0, 0.0, None)
    return most


def refusal(backend: Any, check_device: Any) -> str:
    """What a pass says to tensors of a CPU after one like it was noted."""
    tensors = problem(512, 256, 256)
    x, _, lora_A, lora_B, _, gate, _ = tensors.values()
    arguments = (x, None, None, None, lora_A, lora_B, gate, None, 128, 2.0, 0.0, None)
    for check in (lambda _: None, check_device):
        backend._check_device = check
        launches.clear()
        try:
            backend.forward(*arguments)
        except RuntimeError as error:
            return str(error)
        assert launches
    return ""


def onto_itself(backend: Any) -> list[str]:
    """Which tensor the update is added to, called with x for it and then with another one."""
    tensors = problem(512, 256, 256)
    x, _, lora_A, lora_B, dy, gate, _ = tensors.values()
    found = []
    for base in (x, x, dy):
        launches.clear()
        backend.forward(x, None, None, base, lora_A, lora_B, gate, None, 128, 2.0, 0.0, None)
        _, (name, _, values) = told(tensors)
        assert name == "delta_kernel"
        found.append(values[0])
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
