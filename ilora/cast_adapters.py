"""Adapters cast once a prompt, not once a token.

Experts are trained in float32 beside a model in 16 bits, and a layer casts its own at every call. For one
token that takes longer than computing with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ilora.peft import ILoraLinear
from ilora_kernels.layers import is_plain_linear


class CastAdapters:
    """The model, computing with copies of its experts in the dtype of the layers beside them.

    The same bits as the model itself. The copies stay where they are, and every call makes them
    anew; a replayed CUDA graph, which has captured a call's kernels alone, finds those of the last call.
    """

    def __init__(self, llm: nn.Module) -> None:
        self._llm = llm
        self._trained: list[Tensor] = []
        self._cast: dict[str, Tensor] = {}
        for path, layer in llm.named_modules():
            if not (isinstance(layer, ILoraLinear) and is_plain_linear(layer.base_layer)):
                continue
            dtype = layer.base_layer.weight.dtype
            for name, parameter in layer.named_parameters():
                if name.startswith("lora_") and parameter.dtype != dtype:
                    self._trained.append(parameter)
                    self._cast[f"{path}.{name}"] = torch.empty_like(parameter, dtype=dtype)

    def __call__(self, **inputs: Any) -> Any:
        """Call the model."""
        if not self._cast:
            return self._llm(**inputs)
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            with torch.no_grad():
                torch._foreach_copy_(list(self._cast.values()), self._trained)
        return torch.func.functional_call(self._llm, self._cast, (), inputs)
