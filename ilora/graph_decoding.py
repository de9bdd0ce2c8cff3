"""Greedy decoding, one captured CUDA graph a token: static cache, static gates, any mix of users.

A decoding step of a large model is hundreds of small kernels, and launching them one by one from Python
takes longer than running them. Here all state of a step lies in tensors that stay where they are: the
key-value cache, the token, its position, the attention mask, the gates. So the step is captured once for
a batch size and a maximal length, and replayed for every token and every later batch. On a CPU the
same step runs uncaptured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, StaticCache

from ilora_kernels.graphs import capture

LENGTH_STEP = 128  # maximal lengths are multiples of it, so that similar prompts share a graph
CHECK_EVERY = 8  # tokens between two looks at whether all rows have ended; a look waits for the GPU
MOST_PLACES = 2**15  # of all caches kept, in tokens: 16 GiB of a Llama 2 7B in 16 bits

Forward = Callable[..., Any]  # as a causal model of transformers: keywords in, .logits out


class GraphDecoder:
    """Greedy decoding of ``batch_size`` left-padded prompts of one model.

    The same tokens as ``transformers``' greedy ``generate``, up to ties within rounding.

    Args:
        forward: the model; called with ``inputs_embeds`` or ``input_ids``, ``attention_mask``,
            ``position_ids``, ``past_key_values``, ``use_cache``, ``logits_to_keep`` and ``carried``.
        config: of the language model, for its cache.
        length: of prompt and answer together, at most.
        eos_token_id: what ends a row; None: nothing does.
        pad_token_id: what stands after the end.
        captured: replay a CUDA graph; False calls ``forward`` for every token.

    What ``forward`` reads beside its arguments must stay where it is: a decoder is of no use once
    parameters have moved. Python hooks run when the graph is captured and not when it is replayed.
    """

    def __init__(
        self,
        forward: Forward,
        config: PreTrainedConfig,
        batch_size: int,
        length: int,
        *,
        eos_token_id: int | None,
        pad_token_id: int,
        device: torch.device,
        captured: bool,
    ) -> None:
        def filled(*shape: int, value: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self._forward = forward
        self._length = length
        self._eos = eos_token_id
        self._pad = pad_token_id
        self._captured = captured
        self._graph: torch.cuda.CUDAGraph | None = None
        self._carried: dict[str, Tensor] = {}
        self._cache = StaticCache(config, max_cache_len=length)
        self._token = filled(batch_size, 1)
        self._position = filled(batch_size, 1)
        self._mask = filled(batch_size, 1, 1, length, dtype=torch.bool)  # which keys are seen
        self._column = filled(1)  # of the cache, where the token's keys go
        self._ended = filled(batch_size, 1, dtype=torch.bool)
        self._answer = filled(batch_size, length, value=pad_token_id)
        self._written = filled(1)  # columns of the answer

    def __call__(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        **carried: Tensor,
    ) -> Tensor:
        """Return the new tokens, int64 ``[B, ≤ max_new_tokens]``; padding after a row's end.

        Args:
            inputs_embeds: ``[B, S, d]``, with ``S + max_new_tokens`` at most ``length``.
            attention_mask: ``[B, S]``, zero on the padding at the left.
            carried: handed to the model at every step, such as ``gates``; of the same shapes always.

        Raises:
            ValueError: more tokens than the cache holds.
        """
        prompt = inputs_embeds.shape[1]
        if prompt + max_new_tokens > self._length:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens} after a prompt of {prompt}, but this decoder's "
                f"length is {self._length}; build one that is longer."
            )
        with _current(self._token.device):
            self._carry(carried)
            self._cache.reset()
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            logits = self._forward(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **self._carried,
            ).logits
            if self._captured and self._graph is None:
                self._graph = self._capture()
            self._begin(attention_mask, positions, logits)
            step = self._step if self._graph is None else self._graph.replay
            for count in range(1, max_new_tokens):
                if count % CHECK_EVERY == 1 and bool(self._ended.all()):
                    break
                step()
            return self._told(max_new_tokens)

    def _carry(self, carried: Mapping[str, Tensor]) -> None:
        for name, value in carried.items():
            if name not in self._carried:
                self._carried[name] = value.clone()
            self._carried[name].copy_(value)

    def _begin(self, attention_mask: Tensor, positions: Tensor, logits: Tensor) -> None:
        """The state after the prompt: its last logits give the first token."""
        prompt = attention_mask.shape[1]
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(prompt)  # a capture has moved it on
        self._mask.zero_()
        self._mask[:, 0, 0, :prompt] = attention_mask.bool()
        self._column.fill_(prompt)
        self._position.copy_(positions[:, -1:])
        self._ended.zero_()
        self._answer.fill_(self._pad)
        self._written.zero_()
        self._take(logits)

    def _step(self) -> None:
        """One token a row; everything in place, nothing asked of the host."""
        self._mask.index_fill_(3, self._column, True)
        self._column.add_(1)
        self._take(
            self._forward(
                input_ids=self._token,
                attention_mask=self._mask,
                position_ids=self._position,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **self._carried,
            ).logits
        )

    def _take(self, logits: Tensor) -> None:
        best = logits[:, -1].float().argmax(-1, keepdim=True)  # [B, 1]
        self._token.copy_(torch.where(self._ended, self._pad, best))
        self._answer.index_copy_(1, self._written, self._token)
        self._written.add_(1)
        self._position.add_(1)
        if self._eos is not None:
            self._ended.logical_or_(self._token == self._eos)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture the step; what it changes in the state is undone by ``_begin``."""
        # The last place of the cache, which an answer fills anew.
        self._column.fill_(self._length - 1)
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._length - 1)
        graph, _ = capture(self._step)
        return graph

    def _told(self, max_new_tokens: int) -> Tensor:
        """The answers, cut where the last row has ended."""
        answer = self._answer[:, :max_new_tokens]
        if self._eos is None:
            return answer.clone()
        ends = answer == self._eos
        first = torch.where(ends.any(1), ends.int().argmax(1) + 1, max_new_tokens)
        return answer[:, : int(first.max())].clone()


class GraphDecoders:
    """The decoders of one model, by batch size and length; the latest are kept, as memory permits."""

    def __init__(self) -> None:
        self._decoders: OrderedDict[tuple[int, int], GraphDecoder] = OrderedDict()
        self._model: Hashable = None

    def get(
        self, model: Hashable, batch_size: int, length: int, build: Callable[[], GraphDecoder]
    ) -> GraphDecoder:
        """The decoder for these sizes, built if there is none; the oldest go where they are too many.

        Args:
            model: what a graph has fixed of the model (see :func:`fixed_of`); when it changes, all go.
        """
        if model != self._model:
            self._decoders.clear()
            self._model = model
        key = (batch_size, length)
        if key not in self._decoders:
            while self._decoders and self._places() + batch_size * length > MOST_PLACES:
                self._decoders.popitem(last=False)
            self._decoders[key] = build()
        self._decoders.move_to_end(key)
        return self._decoders[key]

    def _places(self) -> int:
        return sum(batch_size * length for batch_size, length in self._decoders)

    def clear(self) -> None:
        """Free the caches and graphs."""
        self._decoders.clear()

    def __deepcopy__(self, memo: Any) -> GraphDecoders:
        return GraphDecoders()  # a copied model has other parameters

    def __reduce__(self) -> tuple[type[GraphDecoders], tuple[()]]:
        return GraphDecoders, ()


def fixed_of(model: torch.nn.Module, *further: Hashable) -> Hashable:
    """What a captured graph has fixed: where the parameters lie, and ``further``."""
    places = tuple((p.data_ptr(), p.dtype) for p in (*model.parameters(), *model.buffers()))
    return (places, *further)


def rounded_length(tokens: int) -> int:
    """The length of the decoder for so many tokens."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


def can_capture(llm: Any) -> bool:
    """Whether a step of this language model reads nothing but tensors that stay where they are."""
    quantized = getattr(llm.config, "quantization_config", None) is not None
    config = llm.config.get_text_config(decoder=True)
    # As transformers' caches read it: without kinds of layers, a window is that of every layer.
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    full = all(window is None for window in windows)
    kinds = getattr(config, "layer_types", None) or (["full_attention"] if full else ["windowed"])
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        llm.device.type == "cuda"
        and not torch.is_autocast_enabled("cuda")  # a replay knows nothing of it
        and not quantized  # some of their products ask the host
        and bool(getattr(llm, "_can_compile_fullgraph", False))
        and config._attn_implementation == "sdpa"
        and all(kind == "full_attention" for kind in kinds)
        and rotation not in ("dynamic", "longrope")  # these look at positions on the host
        and all(parameter.device == llm.device for parameter in llm.parameters())
    )


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: a capture sees the current stream of the current GPU alone."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
