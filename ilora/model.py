"""The recommender: a frozen language model, instance-wise experts, and who decides their mixture.

history ──► encoder ──► gate ──► mixture of experts in every linear layer
   │           │
   │           └──► projector ──► embeddings at the placeholders of the prompt
   └──► prompt ─────────────────► language model ──► the next item's title
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from ilora.cast_adapters import CastAdapters
from ilora.config import AdapterSettings
from ilora.data.catalog import Catalog
from ilora.data.prompts import IGNORED_LABEL, PromptBuilder
from ilora.devices import switch_off_cudnn_attention
from ilora.encoders import SequenceEncoder
from ilora.errors import InputError
from ilora.gate import TokenCollapsedGate, build_gate
from ilora.graph_decoding import (
    GraphDecoder,
    GraphDecoders,
    can_capture,
    fixed_of,
    rounded_length,
)
from ilora.peft import ILoraConfig, ILoraLinear
from ilora.positions import require_room
from ilora.tokens import knows_placeholder, placeholder_id, prepare_tokenizer
from ilora_kernels.backends import requested


class ILoRARecommender(nn.Module):
    """A language model that recommends, personalised by instance-wise LoRA.

    Trainable are the experts, the gate, the projector and the placeholder's embedding; the
    language model and the encoder are frozen, and the encoder stays in eval mode. With method
    ``none`` nothing is trainable, and the experts add nothing.

    Args:
        llm: any causal language model of transformers, or one that already carries the adapter.
        tokenizer: the model's own; the placeholder is added to it.
        encoder: a trained sequence encoder for the same catalogue.
        adapter: the experts.
        hybrid: whether items stand in prompts by their embeddings too; False leaves the placeholder
            token everywhere, and the projector is neither used nor trained.
        placeholders: whether items have one in prompts at all; False is for prompts of titles alone,
            and then ``hybrid`` must be False.

    Batches are those of :class:`ilora.data.collation.Collator`.
    """

    accepts_loss_kwargs = True  # transformers.Trainer: forward divides by num_items_in_batch itself

    def __init__(
        self,
        llm: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: SequenceEncoder,
        adapter: AdapterSettings,
        *,
        hybrid: bool = True,
        placeholders: bool = True,
    ) -> None:
        super().__init__()
        if hybrid and not placeholders:
            raise InputError("placeholders is False; hybrid prompts put item embeddings in them")
        switch_off_cudnn_attention()  # prompts are padded on the left
        self.hybrid = hybrid
        self.placeholders = placeholders
        self.tokenizer = prepare_tokenizer(tokenizer)
        self.placeholder_id = placeholder_id(tokenizer)
        self.adapter = adapter
        self._decoders = GraphDecoders()
        llm.generation_config = plain_generation(self.tokenizer)
        self.llm = llm if isinstance(llm, PeftModel) else add_experts(llm, adapter)
        device, width = llm.device, llm.get_input_embeddings().weight.shape[1]
        self.encoder = encoder.requires_grad_(False).eval().to(device)
        self.projector = nn.Sequential(
            nn.Linear(encoder.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        ).to(device)
        self.projector.requires_grad_(hybrid)
        self.gate = build_gate(
            adapter.gate,
            encoder.representation_size,
            adapter.experts,
            num_layers=self.llm.base_model.num_layers,
            num_items=encoder.num_items,
            title_width=width,
        ).to(device)
        self.placeholder = nn.Parameter(self._first_placeholder(), requires_grad=placeholders)
        if adapter.method == "none":
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> ILoRARecommender:
        """As usual, but the frozen encoder stays in eval mode: its dropout is not for us.

        Training also frees what ``generate`` keeps on the GPU.
        """
        super().train(mode)
        self.encoder.eval()
        if mode:
            self._decoders.clear()
        return self

    def gates(self, histories: Tensor) -> Tensor:
        """``[B, window]`` histories -> ``[B, K]`` mixtures of experts, float32.

        With a gate per layer ``[B, layers, K]``.
        """
        return self.gate.mixture(self.encoder, histories)

    def read_titles(self, titles: Sequence[str]) -> None:
        """Tell a gate that reads titles what the items are called; any other gate needs none."""
        if isinstance(self.gate, TokenCollapsedGate):
            tokens = [
                self.tokenizer(f" {title}", add_special_tokens=False)["input_ids"]
                for title in titles
            ]
            self.gate.read_titles(tokens, self.llm.get_input_embeddings())

    def prompt_builder(self, catalog: Catalog, domain: str, window: int) -> PromptBuilder:
        """The builder of prompts as this model reads them."""
        return PromptBuilder(
            self.tokenizer, catalog, domain, window, placeholders=self.placeholders
        )

    def embed(self, input_ids: Tensor, item_ids: Tensor, *, text_only: bool = False) -> Tensor:
        """Token embeddings ``[B, S, d]``, with every placeholder replaced.

        A placeholder becomes the projected embedding of its item; in a text-only batch, or where
        ``item_ids`` is -1, the placeholder's own learned embedding.
        """
        at_placeholder = input_ids == self.placeholder_id
        # The placeholder may have no row in the frozen model's table: that was never resized.
        embeds = self.llm.get_input_embeddings()(input_ids.masked_fill(at_placeholder, 0))
        own = self.placeholder.to(embeds.dtype)
        embeds = torch.where(at_placeholder[..., None], own, embeds)
        if text_only or not self.hybrid:
            return embeds
        at_item = item_ids >= 0
        items = self.encoder.item_embedding(item_ids[at_item])  # [P, hidden]
        projected = self.projector(items).to(embeds.dtype)  # [P, d]
        return embeds.masked_scatter(at_item[..., None], projected)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        histories: Tensor,
        item_ids: Tensor,
        labels: Tensor | None = None,
        *,
        text_only: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutput:
        """Next-token loss on the answer.

            loss = - Σ log p(answer token) / num_items_in_batch

        Args:
            labels: ``[B, S]``, -100 outside the answer; the first column predicts and is never
                predicted. Without them the logits of every position are returned and no loss.
            text_only: the projector stays untouched (LLaRA's curriculum).
            num_items_in_batch: what to divide by: the answer tokens of the whole optimiser step,
                over all micro-batches and processes; None means those of this batch.

        Returns:
            ``loss`` (float32, a scalar) and ``logits``: with labels ``[B, L, V]`` at the L
            positions that predict the last L columns, else ``[B, S, V]``.

        Raises:
            InputError: a prompt of more tokens than the language model has positions.
        """
        require_room(self.llm.config, attention_mask)
        embeds = self.embed(input_ids, item_ids, text_only=text_only)
        inputs: dict[str, Any] = {
            "inputs_embeds": embeds,
            "attention_mask": attention_mask,
            # Padding is on the left, and a position is the number of tokens before it.
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
            "gates": self.gates(histories),
            "use_cache": False,
        }
        if labels is None:
            return CausalLMOutput(logits=self.llm(**inputs).logits)
        # The head, the widest layer, runs on the columns of the answers alone.
        labels = labels[:, 1:]
        answer_columns = labels.ne(IGNORED_LABEL).any(0).nonzero()
        length = labels.shape[1] - int(answer_columns[0]) if len(answer_columns) else 1
        logits = self.llm(**inputs, logits_to_keep=length + 1).logits[:, -length - 1 : -1]
        total = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels[:, -length:].flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        count = labels.ne(IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count, logits=logits)

    @torch.inference_mode()
    def generate(self, batch: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Continue left-padded prompts; greedy unless ``options`` say otherwise.

        Greedy answers of a model in eval mode on a GPU come from a captured graph a token, for any mix
        of users (:mod:`ilora.graph_decoding`); everything else from ``transformers``' ``generate``.

        Args:
            batch: ``input_ids``, ``attention_mask``, ``histories``, ``item_ids``.
            options: those of ``transformers``' ``generate``, such as ``max_new_tokens``.

        Returns:
            The new tokens alone, int64 ``[B · num_return_sequences, ≤ max_new_tokens]``.

        Raises:
            InputError: padding on the right, or a prompt that leaves the answer no positions.
        """
        _require_left_padding(batch["attention_mask"])
        new = max(0, options.get("max_new_tokens", 1) - 1)  # the last one is not read
        require_room(self.llm.config, batch["attention_mask"], new)
        self.llm.generation_config = plain_generation(self.tokenizer)  # whatever was set since
        inputs = {
            "inputs_embeds": self.embed(batch["input_ids"], batch["item_ids"]),
            "attention_mask": batch["attention_mask"],
            "gates": self.gates(batch["histories"]),
        }
        greedy = options.keys() == {"max_new_tokens"} and options["max_new_tokens"] >= 1
        if greedy and not self.training and can_capture(self.llm):
            return self.generate_in_steps(
                **inputs, max_new_tokens=options["max_new_tokens"], captured=True
            )
        return self.llm.generate(**inputs, **{"do_sample": False, **options})

    @torch.inference_mode()
    def generate_in_steps(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        gates: Tensor,
        max_new_tokens: int,
        *,
        captured: bool,
    ) -> Tensor:
        """The greedy loop of :class:`ilora.graph_decoding.GraphDecoder`; :meth:`generate` calls it.

        Args:
            inputs_embeds: ``[B, S, d]``, padded on the left as ``attention_mask`` ``[B, S]`` says.
            gates: ``[B, K]``, or ``[B, layers, K]``.
            captured: replay a CUDA graph; False runs the same steps one kernel after another.
        """
        batch_size, prompt = attention_mask.shape
        length = rounded_length(prompt + max_new_tokens)
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

        def build() -> GraphDecoder:
            return GraphDecoder(
                CastAdapters(self.llm),
                self.llm.config,
                batch_size,
                length,
                eos_token_id=eos,
                pad_token_id=pad,
                device=inputs_embeds.device,
                captured=captured,
            )

        adapters = [
            (*layer.active_adapters, layer.disable_adapters)
            for layer in self.llm.modules()
            if isinstance(layer, ILoraLinear)
        ]
        fixed = fixed_of(self.llm, requested(), *adapters, eos, pad, captured)
        decoder = self._decoders.get(fixed, batch_size, length, build)
        return decoder(inputs_embeds, attention_mask, max_new_tokens, gates=gates)

    @torch.inference_mode()
    def answer_log_probs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each row's labelled answer: float32 sums ``[B]``, token counts ``[B]``."""
        labels = batch["labels"]
        logits = self(**batch).logits  # [B, L, V]
        wanted = labels[:, -logits.shape[1] :]
        told = F.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED_LABEL, reduction="none"
        )
        return -told.sum(1), wanted.ne(IGNORED_LABEL).sum(1)

    def trainable_parameters(self) -> int:
        """The number of parameters that training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def _first_placeholder(self) -> Tensor:
        """What training starts from: the model's own embedding if it knows one, else the mean."""
        table = self.llm.get_input_embeddings().weight.detach().float()
        known = knows_placeholder(self.tokenizer)
        return table[self.placeholder_id].clone() if known else table.mean(0)


def add_experts(llm: PreTrainedModel, adapter: AdapterSettings) -> PeftModel:
    """Put experts beside the layers that the settings name.

    Raises:
        InputError: a model of the MPT design, one that has no such layer, or one that is not linear.
    """
    if getattr(llm.config, "model_type", None) == "mpt":
        raise InputError(
            "llm: PEFT hands no embeddings to models of the MPT design, and items reach the model as "
            "embeddings; choose another, such as Llama, Qwen or GPT-2"
        )
    try:
        return get_peft_model(llm, peft_config(adapter))
    except (ValueError, re.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"adapter.target_modules is {adapter.target_modules!r}, which does not fit the language "
            f"model ({reason}); give names of its linear layers, or all-linear"
        ) from None


def peft_config(adapter: AdapterSettings) -> ILoraConfig:
    """The tuner's configuration for these settings."""
    return ILoraConfig(
        r=adapter.rank,
        num_experts=adapter.experts,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        scaling=adapter.scaling,
        gates_per_layer=adapter.gates_per_layer,
        target_modules=adapter.target_modules,
    )


def plain_generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Settings without any of a model's own: its sampling, penalties and forced tokens stay out."""
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _require_left_padding(attention_mask: Tensor) -> None:
    if attention_mask.shape[1] and not bool(attention_mask[:, -1].all()):
        raise InputError(
            "batch: attention_mask ends in padding; generation goes on from the last column, so "
            'collate prompts with side="left"'
        )
