"""What is measured: one case is one line of the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

Shape = tuple[int, int]  # d_out, d_in

FORWARD = "forward"
TRAINING = "forward+backward"
MODES = (FORWARD, TRAINING)

# The backends of ilora_kernels go by their own names, "torch" and "triton".
REFERENCE = "reference einsum"
EAGER = "three-GEMM eager"
COMPILED = "three-GEMM compiled"
PEFT = "PEFT LoRA"
DELTA = "cuBLAS + delta"
PEERS = (DELTA, EAGER, COMPILED, PEFT, REFERENCE)

LINEAR, DELTA_ALONE, ONTO, LAYER, MODEL, DECODE, GENERATE = (
    "gated_lora_linear",
    "gated_lora",
    "onto",
    "decoder_layer",
    "model",
    "decode",
    "generate",
)
EAGERLY, IN_GRAPH = "eager", "CUDA graph"
ONE_THREAD = "eager, one thread"  # the backward pass in the caller's, not in one of its own

# Llama 2 7B: attention, gate and up, down; and a feed-forward layer of newer models.
SHAPES: tuple[Shape, ...] = ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096))
NARROW: Shape = (1024, 4096)  # keys and values where queries share them
TOKENS = (1024, 2048, 4096, 8192, 16384)
PEER_TOKENS = (2048, 4096, 16384)
DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)  # one token each, and each with a gate of its own
DECODE_LAYERS = 16  # distinct weights, one after another: more than any cache holds
GENERATE_ROWS = (1, 8, 64)
DROPOUT = 0.1
ANSWER_TOKENS = 32  # of each row; a recommender learns on the answer, and has logits for no more


@dataclass(frozen=True)
class Case:
    """One call to measure.

    Attributes:
        op: ``gated_lora_linear``, ``gated_lora``, ``onto``, ``decoder_layer``, ``model``, ``decode``
            (linear layers one after another, a token a row) or ``generate`` (whole answers).
        mode: ``forward`` without gradients, or ``forward+backward``.
        tokens, rank, experts, instances: T, R, K and B.
        gate: ``batched`` ([B, K]), ``packed`` ([B, K] with sequences of mixed length) or ``token``.
        backend: ``torch``, ``triton`` or one of ``PEERS``.
        launch: ``eager``, ``eager, one thread``, ``torch.compile`` or ``CUDA graph``.
        layers: decoder layers of a ``model`` or of what generates; linear layers of ``decode``.
        checkpointing: whether the backward pass of a ``model`` recomputes each layer.
    """

    op: str
    mode: str
    d_out: int
    d_in: int
    tokens: int
    backend: str
    rank: int = 16
    experts: int = 4
    instances: int = 8
    gate: str = "batched"
    dropout: float = 0.0
    dtype: str = "bfloat16"
    launch: str = "eager"
    layers: int = 0
    checkpointing: bool = False

    @property
    def baseline(self) -> tuple[object, ...]:
        """What two cases have in common if the same frozen call is their yardstick."""
        op = self.op if self.op in (LAYER, MODEL, DECODE, GENERATE) else "linear"
        shape = (self.d_out, self.d_in, self.tokens, self.instances)
        return (op, self.mode, self.dtype, self.layers, self.checkpointing, *shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def __str__(self) -> str:
        """Short enough for a test's name; what is ordinary is left out."""
        words = [f"{self.d_out}x{self.d_in}", f"T{self.tokens}", self.mode, self.backend]
        words += [] if self.op == LINEAR else [self.op]
        words += [] if self.rank == 16 else [f"R{self.rank}"]
        words += [] if self.experts == 4 else [f"K{self.experts}"]
        words += [] if self.gate == "batched" else [self.gate]
        words += [f"dropout{self.dropout:g}"] if self.dropout else []
        words += [] if self.launch == "eager" else [self.launch.replace(",", "")]
        return "-".join(words).replace(" ", "-")


def is_narrow(d_out: int, d_in: int) -> bool:
    """Whether reading x a second time is a large share of the work."""
    return 4 * d_out <= d_in


@dataclass(frozen=True)
class Plan:
    """One run: where, with what, and how much of it.

    Attributes:
        backend: of ilora_kernels, ``torch`` or ``triton``.
        layers: decoder layers of the whole model.
    """

    device: torch.device
    backend: str
    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    rounds: int
    layers: int

    @property
    def on_gpu(self) -> bool:
        """Whether this run is one of the published kind."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> str:
        """bf16 where there are matrix units for it."""
        return "bfloat16" if self.on_gpu else "float32"

    @property
    def peers(self) -> tuple[str, ...]:
        """On a CPU a compiled peer would take longer to build than all else takes to run."""
        return PEERS if self.on_gpu else tuple(peer for peer in PEERS if peer != COMPILED)

    def tokens_among(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the run's T that are in ``chosen``; the largest where none is."""
        return tuple(t for t in self.tokens if t in chosen) or self.tokens[-1:]


class _Defaults(NamedTuple):
    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    rounds: int
    layers: int


_DEFAULTS = {  # (device, --quick)
    ("cuda", False): _Defaults((*SHAPES, NARROW), TOKENS, 30, 32),
    ("cuda", True): _Defaults((SHAPES[0], NARROW), (2048,), 10, 2),
    ("cpu", False): _Defaults(((512, 512), (1376, 512), (128, 512)), (64, 256), 5, 2),
    ("cpu", True): _Defaults(((256, 256),), (64,), 3, 1),
}


def plan_for(
    device: torch.device,
    backend: str,
    *,
    quick: bool = False,
    shapes: tuple[Shape, ...] | None = None,
    tokens: tuple[int, ...] | None = None,
    rounds: int | None = None,
    layers: int | None = None,
) -> Plan:
    """The published shapes on a GPU, small ones on a CPU; what is given overrides."""
    usual = _DEFAULTS[device.type, quick]
    return Plan(
        device=device,
        backend=backend,
        shapes=shapes or usual.shapes,
        tokens=tokens or usual.tokens,
        rounds=rounds or usual.rounds,
        layers=layers or usual.layers,
    )
