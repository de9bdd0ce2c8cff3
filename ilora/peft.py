"""Instance-wise LoRA as a PEFT tuner, for any causal language model made of linear layers.

    model = get_peft_model(model, ILoraConfig(r=8, num_experts=4, target_modules=["q_proj", "v_proj"]))
    model(input_ids, gates=g).loss          # g: [B, 4], one mixture of experts an instance
    model.generate(input_ids, gates=g)
    model.save_pretrained(path); PeftModel.from_pretrained(base, path)

Importing this module makes PEFT know the type ``ILORA``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn as nn
from peft import PeftConfig, TaskType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor

from ilora_kernels import FusedILoRALinear, InstanceGates
from ilora_kernels.layers import (
    Adapter,
    layer_features,
    merged_linear,
    new_adapter,
    scaling_factor,
)

PEFT_TYPE = "ILORA"


@dataclass
class ILoraConfig(PeftConfig):
    """What instance-wise LoRA adapts, and how. The defaults are those of the paper's code.

    Args:
        r: the total rank R over all experts; each has r / num_experts.
        num_experts: K. With 1 and a gate of ones this is LoRA.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability on the input of the low-rank path.
        scaling: ``"expert"``: alpha / (R / K), as in the released code; ``"total"``: alpha / R.
        target_modules: names, a regular expression, or ``"all-linear"``.
        exclude_modules: names or a regular expression to leave out.
        layers_to_transform, layers_pattern: restrict to some layers, as in PEFT's LoRA.
        modules_to_save: further modules to train and save whole.
        gates_per_layer: every adapted layer has a mixture of its own: ``gates`` are then
            ``[layers, K]`` or ``[B, layers, K]``, the layers in the order of ``named_modules``.
    """

    r: int = 8
    num_experts: int = 4
    lora_alpha: float = 32.0
    lora_dropout: float = 0.1
    scaling: str = "expert"
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    gates_per_layer: bool = False
    task_type: str | TaskType | None = field(default=TaskType.CAUSAL_LM)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        scaling_factor(self.num_experts, self.r, self.lora_alpha, self.scaling)


class ILoraLinear(FusedILoRALinear, BaseTunerLayer):
    """A :class:`FusedILoRALinear` that holds several adapters by name, one of them active."""

    adapter_layer_names = ("lora_A", "lora_B")
    other_param_names = ("adapter_configs",)
    lora_A: nn.ParameterDict  # type: ignore[assignment]
    lora_B: nn.ParameterDict  # type: ignore[assignment]
    active_adapters: list[str]

    def __init__(
        self, base_layer: nn.Module, gates: InstanceGates, gate_index: int | None = None
    ) -> None:
        nn.Module.__init__(self)  # the parameters are kept by adapter, so the parent builds none
        self.base_layer = base_layer.requires_grad_(False)
        self.gates = gates
        self.gate_index = gate_index
        self.in_features, self.out_features = layer_features(base_layer)
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.adapter_configs: dict[str, ILoraConfig] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def add_adapter(self, name: str, config: ILoraConfig, *, trainable: bool) -> None:
        """Add a freshly initialised adapter; it becomes the active one if none is."""
        self.adapter_configs[name] = config
        self.lora_A[name], self.lora_B[name] = new_adapter(self.base_layer, config.r)
        BaseTunerLayer.set_adapter(self, self.active_adapters or [name], not trainable)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """The base layer with the active adapter; alone when adapters are disabled."""
        name = self._active_name()
        if self.disable_adapters or name is None:
            return self.base_layer(x)
        return self.adapt(x, self._adapter(name), gate)

    def _adapter(self, name: str) -> Adapter:
        config = self.adapter_configs[name]
        dropout_p = config.lora_dropout if self.training else 0.0
        lora_A, lora_B = self.lora_A[name], self.lora_B[name]
        return Adapter(lora_A, lora_B, config.num_experts, _scaling(config), dropout_p)

    def _active_name(self) -> str | None:
        present = [name for name in self.active_adapters if name in self.adapter_configs]
        if len(present) > 1:
            raise ValueError(
                f"The adapters {present} are active together; instance-wise LoRA applies one at a "
                "time, so call set_adapter with one name."
            )
        return present[0] if present else None

    @property
    def merged(self) -> _MergedByGate:
        """``layer.merged(gate)`` is the plain ``nn.Linear`` of one user under the active adapter."""
        return _MergedByGate(self)

    def _merged_linear(self, gate: Tensor | None) -> nn.Linear:
        name = self._active_name()
        if name is None:
            raise ValueError(
                "No adapter is active, so there is nothing to merge; call set_adapter."
            )
        return merged_linear(self.base_layer, self._adapter(name), gate)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see :func:`_refuse_merging`."""
        _refuse_merging()

    def unmerge(self) -> None:
        """Refuse: see :func:`_refuse_merging`."""
        _refuse_merging()

    def extra_repr(self) -> str:
        return f"adapters={list(self.adapter_configs)}, active={self.active_adapters}"


class _MergedByGate:
    """Callable with a gate, and false: PEFT reads ``layer.merged`` as "is it merged?"; it never is."""

    def __init__(self, layer: ILoraLinear) -> None:
        self._layer = layer

    def __call__(self, gate: Tensor | None = None) -> nn.Linear:
        return self._layer._merged_linear(gate)

    def __bool__(self) -> bool:
        return False


class ILoraModel(BaseTuner):
    """The tuner: every target module becomes an :class:`ILoraLinear`, and all share one holder.

    ``forward`` and ``generate`` take ``gates`` (``[K]``, ``[B, K]`` or, in ``forward``,
    ``[B, S, K]``; with ``gates_per_layer`` instead ``[layers, K]`` or ``[B, layers, K]``) and hand
    it to the layers for the time of the call.
    """

    prefix = "lora_"
    tuner_layer_cls = ILoraLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    gates: InstanceGates

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.gates = InstanceGates()

    def _create_and_replace(
        self,
        peft_config: ILoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, ILoraLinear):
            target.add_adapter(adapter_name, peft_config, trainable=trainable)
            return
        if isinstance(target, BaseTunerLayer):
            raise ValueError(
                f"{current_key} already carries an adapter of another kind; unload it first."
            )
        try:
            layer = ILoraLinear(target, self.gates, self.num_layers)
        except TypeError as error:
            raise ValueError(f"target_modules names {current_key}: {error}") from error
        layer.add_adapter(adapter_name, peft_config, trainable=trainable)
        self._replace_module(parent, target_name, layer, target)

    @property
    def num_layers(self) -> int:
        """The number of adapted layers."""
        return sum(isinstance(module, ILoraLinear) for module in self.model.modules())

    def forward(self, *args: Any, gates: Tensor | None = None, **kwargs: Any) -> Any:
        """Call the language model with one mixture of experts an instance."""
        self._carry_gates_into_checkpoints()
        with self._gates_of_batch(gates, args, kwargs):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, gates: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate with one mixture an instance; beams and returned sequences repeat it."""
        if gates is not None and gates.ndim > 2 and not self._per_layer:
            raise ValueError(
                f"gates has shape {list(gates.shape)}; generate takes [K] or [B, K], because new "
                "tokens have no gate of their own."
            )
        with self._gates_of_batch(gates, args, kwargs):
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def _gates_of_batch(
        self, gates: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[None]:
        per_layer = self._per_layer
        if gates is not None and gates.ndim > 1 + per_layer:
            names = ("input_ids", "inputs", "inputs_embeds")
            inputs = [*args[:1], *(kwargs.get(name) for name in names)]
            batch_sizes = [len(i) for i in inputs if isinstance(i, Tensor)]
            if batch_sizes and gates.shape[0] != batch_sizes[0]:
                raise ValueError(
                    f"gates has shape {list(gates.shape)}, but the batch has {batch_sizes[0]} "
                    "instances; give one row an instance."
                )
        with nullcontext() if gates is None else self.gates.set(gates, per_layer=per_layer):
            yield

    @property
    def _per_layer(self) -> bool:
        """Whether the active adapter has a mixture for every layer."""
        configs = (self.peft_config.get(name) for name in self.active_adapters)
        return any(config is not None and config.gates_per_layer for config in configs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names is not supported: instance-wise LoRA personalises a batch by gates."
            )
        yield

    def _carry_gates_into_checkpoints(self) -> None:
        """Make transformers' gradient checkpointing recompute with the gates of its own pass."""
        for module in self._checkpointed_modules:
            if not (self.training and module.gradient_checkpointing):
                continue
            function = getattr(module, "_gradient_checkpointing_func", None)
            keywords = getattr(function, "keywords", {})
            if function is None or keywords.get("context_fn") == self.gates.checkpoint_contexts:
                continue
            if keywords.get("use_reentrant") is not False:
                raise ValueError(
                    f"Gradient checkpointing has use_reentrant={keywords.get('use_reentrant')}, which "
                    "loses the gradient of the gates; enable it with "
                    'gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            module._gradient_checkpointing_func = functools.partial(
                function, context_fn=self.gates.checkpoint_contexts
            )

    @functools.cached_property
    def _checkpointed_modules(self) -> list[Any]:
        return [m for m in self.model.modules() if hasattr(m, "gradient_checkpointing")]

    def _check_merge_allowed(self) -> None:
        _refuse_merging()


def _scaling(config: ILoraConfig) -> float:
    return scaling_factor(config.num_experts, config.r, config.lora_alpha, config.scaling)


def _refuse_merging() -> None:
    raise ValueError(
        "Instance-wise LoRA cannot be merged into the model: every user has a weight of his own. "
        "For one fixed user, replace each adapted layer by layer.merged(gate)."
    )


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = ILoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = ILoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = ILoraModel.prefix
