"""Which tensor of the reference code is which of ours, and what becomes of the rest.

    encoders    LLaRA's and iLoRA's rec_model/*.pt: SASRec, GRU, Caser        -> `ilora.encoders.llara`
    models      their Lightning checkpoints: llama_model (LoRA), projector, router -> a model folder

A map of names is a function from a name of theirs to ours, or None where we have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ilora.errors import InputError
from ilora.torch_checkpoints import Checkpoint, StoredTensor

How = Literal["mapped", "renamed", "reshaped", "skipped", "absent"]
NameMap = Callable[[str], "str | None"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one tensor; ``source`` is None for ours that they lack, and the reverse."""

    how: How
    source: str | None
    target: str | None
    shape: tuple[int, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


_SASREC = {
    "positional_embeddings": "position_embeddings",
    "ln_1": "query_norm",
    "ln_2": "feed_forward_norm",
    "ln_3": "final_norm",
    "mh_attn.linear_q": "query",
    "mh_attn.linear_k": "key",
    "mh_attn.linear_v": "value",
    "feed_forward.w_1": "feed_forward_in",
    "feed_forward.w_2": "feed_forward_out",
    "feed_forward.layer_norm": "feed_forward_out_norm",
    "s_fc": "output",
}
_GRU = {"s_fc": "output"}
_CASER = {"vertical_cnn": "vertical", "s_fc": "output"}
# A tensor that only this one of their recommenders has, and its names.
_KINDS = {
    "mh_attn.linear_q.weight": ("llara-sasrec", _SASREC),
    "gru.weight_ih_l0": ("llara-gru", _GRU),
    "vertical_cnn.weight": ("llara-caser", _CASER),
}
_ADAPTED = re.compile(r"(?:.*\.)?(layers\.\d+\..+)\.(lora_[AB])(?:\.\w+)?\.weight")


def encoder_names(kind: str) -> NameMap:
    """Their names of a recommender's tensors -> ours."""
    table = next(table for name, table in _KINDS.values() if name == kind)

    def name(theirs: str) -> str | None:
        module, _, leaf = theirs.rpartition(".")
        if module in table:
            return f"{table[module]}.{leaf}"
        if kind == "llara-caser" and module.startswith("horizontal_cnn."):
            return theirs.replace("horizontal_cnn.", "horizontal.", 1)
        same = module == "item_embeddings" or (kind == "llara-gru" and module == "gru")
        return theirs if same else None

    return name


def model_names(theirs: str) -> str | None:
    """Their names of what iLoRA trains -> ours, in the model's state dict."""
    if theirs.startswith("projector.mlp_proj."):
        return theirs.replace("mlp_proj.", "", 1)
    if theirs.startswith("router.gate.fc."):
        return theirs.replace("router.gate.fc.", "gate.projection.", 1)
    if theirs.startswith("router."):
        return theirs.replace("router.", "gate.network.", 1)
    found = _ADAPTED.fullmatch(theirs) if theirs.startswith("llama_model.") else None
    return found and f"llm.base_model.model.model.{found[1]}.{found[2]}.default"


def why_skipped(theirs: str) -> str:
    """A word on a tensor that has no place with us."""
    if ".gating." in theirs:
        return "a gate of one layer, which the reference never calls"
    if theirs.startswith("rec_model."):
        return "of the recommender; import it from its own file"
    if theirs.startswith("llama_model."):
        return "of the frozen language model, which --llm brings"
    return "of no part that we have"


def encoder_plan(checkpoint: Checkpoint) -> tuple[str, int, int, int | None, dict[str, Any]]:
    """Which encoder the tensors are of: name, items, width, window (None: not told), options.

    Raises:
        InputError: of none that we know, or of sizes that do not fit one another.
    """
    tensors, module = checkpoint.tensors, checkpoint.module
    kind = next((name for key, (name, _) in _KINDS.items() if key in tensors), None)
    if kind is None or "item_embeddings.weight" not in tensors:
        raise InputError(
            "checkpoint: the tensors are not those of the reference's SASRec, GRU or Caser; give a "
            "file such as rec_model/SASRec_movielens.pt"
        )
    rows, width = _matrix(tensors, "item_embeddings.weight")
    window: int | None = None
    options: dict[str, Any] = {}
    if kind == "llara-sasrec":
        window = _matrix(tensors, "positional_embeddings.weight")[0]
        attention = module.part("mh_attn") if module else None
        heads = getattr(attention, "state", {}).get("num_heads")
        options = {"num_heads": heads if type(heads) is int else 1}
        dropout = getattr(module.part("dropout"), "state", {}).get("p") if module else None
    elif kind == "llara-caser":
        window = tensors["vertical_cnn.weight"].shape[2]
        shapes = [
            t.shape for n, t in tensors.items() if re.fullmatch(r"horizontal_cnn\.\d+\.weight", n)
        ]
        if not shapes or len({shape[0] for shape in shapes}) != 1:
            raise InputError("checkpoint: the filters of its Caser are not of equal number")
        options = {"heights": ",".join(str(s[2]) for s in shapes), "num_filters": shapes[0][0]}
        dropout = module.part("dropout_rate") if module else None
    else:
        if "gru.weight_ih_l1" in tensors:
            raise InputError("checkpoint: its GRU has several layers; the reference's has one")
        state_size = module.part("state_size") if module else None
        window = state_size if type(state_size) is int else None
        dropout = None
    if isinstance(dropout, int | float):
        options["dropout"] = float(dropout)
    return kind, rows - 1, width, window, options


def fill(
    own: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    names: NameMap,
    absent: Callable[[str], str | None],
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Their tensors under our names, in our shapes and types, and the fate of every one.

    Args:
        own: our tensors, whose shapes and types decide.
        absent: why one of ours may lack in the file and keep its value; None if it may not.

    Raises:
        InputError: one of ours is missing without leave, there twice, or of another size, or a tensor
            that the file does not hold.
    """
    filled: dict[str, Tensor] = {}
    fates: list[Fate] = []
    for source, stored in checkpoint.tensors.items():
        target = names(source)
        if target is None or target not in own:
            fates.append(Fate("skipped", source, None, stored.shape, why_skipped(source)))
            continue
        wanted = own[target]
        # A convolution of width 1 has a last dimension that a linear layer lacks.
        if target in filled or _without_ones(stored.shape) != _without_ones(tuple(wanted.shape)):
            raise InputError(
                f"checkpoint: {source} is {list(stored.shape)}, but {target} is {list(wanted.shape)} "
                "here; give the file of the same sizes (--llm, --encoder, --rank)"
            )
        filled[target] = checkpoint.tensor(source).reshape(wanted.shape).to(wanted.dtype)
        if not bool(torch.isfinite(filled[target]).all()):
            raise InputError(f"checkpoint: {source} holds NaN or infinite numbers")
        how: How = "mapped" if source == target else "renamed"
        if stored.shape != tuple(wanted.shape):
            how = "reshaped"
        fates.append(Fate(how, source, target, stored.shape))
    for target in sorted(own.keys() - filled.keys()):
        reason = absent(target)
        if reason is None:
            raise InputError(
                f"checkpoint: nothing in it is {target}; give a file of the whole part, as the "
                "reference saves it"
            )
        fates.append(Fate("absent", None, target, tuple(own[target].shape), reason))
    return filled, fates


def _matrix(tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, int]:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise InputError(f"checkpoint: {name} is missing or no matrix; give the file as published")
    rows, columns = tensors[name].shape
    return rows, columns


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
