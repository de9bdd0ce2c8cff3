"""The PEFT tuner on tiny language models: gates, adapters, files, generation, training."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from ilora.peft import ILoraConfig, ILoraLinear
from ilora_kernels import FusedILoRALinear

VOCABULARY, B, S, K = 50, 3, 6, 4
NO_SPECIAL_TOKENS: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **NO_SPECIAL_TOKENS,
}


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **options}))


def qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, **NO_SPECIAL_TOKENS))


def config(**options: Any) -> ILoraConfig:
    return ILoraConfig(**{"target_modules": ["q_proj", "v_proj", "down_proj"], **options})


def stir(model: nn.Module, adapter: str = "default") -> None:
    """Make the adapter do something: ``lora_B`` starts at zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(f"lora_B.{adapter}"):
            nn.init.normal_(parameter, std=0.3)


def adapted(base: nn.Module | None = None, **options: Any) -> PeftModel:
    model = get_peft_model(base or llama(), config(**options))
    stir(model)
    return model.eval()


def layers_of(model: nn.Module) -> list[ILoraLinear]:
    return [module for module in model.modules() if isinstance(module, ILoraLinear)]


def adapter_state(model: PeftModel, name: str) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.endswith(f".{name}")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(2)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (B, S))


@pytest.fixture
def gates() -> Tensor:
    return (3 * torch.randn(B, K)).softmax(-1)


@pytest.fixture
def model() -> Iterator[PeftModel]:
    return adapted()


# ---- Wrapping a language model


def test_the_documented_call_adapts_every_target_with_the_fused_layer() -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        llama(),
        ILoraConfig(r=8, num_experts=4, lora_alpha=32, lora_dropout=0.1, target_modules=targets),
    )
    assert len(layers_of(model)) == 2 * len(targets)
    assert all(isinstance(layer, FusedILoRALinear) for layer in layers_of(model))
    assert len({id(layer.gates) for layer in layers_of(model)}) == 1
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * len(targets)
    assert all("lora_" in name for name in trainable)


def test_a_new_adapter_changes_nothing(ids: Tensor, gates: Tensor) -> None:
    model = get_peft_model(llama(), config()).eval()
    torch.testing.assert_close(model(ids, gates=gates).logits, llama().eval()(ids).logits)


@pytest.mark.parametrize("family", [llama, qwen2, gpt2])
def test_every_linear_of_a_family_is_adapted_and_personal(
    family: Any, ids: Tensor, gates: Tensor
) -> None:
    model = adapted(family(), target_modules="all-linear")
    expected = 4 if family is gpt2 else 7
    assert len(layers_of(model)) == 2 * expected
    together = model(input_ids=ids, gates=gates).logits
    alone = [
        model(input_ids=i[None], gates=g[None]).logits for i, g in zip(ids, gates, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    swapped = model(input_ids=ids, gates=gates.roll(1, 0)).logits
    assert (together - swapped).abs().amax(dim=(1, 2)).min() > 1e-3
    tokens = model.generate(input_ids=ids, gates=gates, max_new_tokens=2, pad_token_id=0)
    assert tokens.shape == (B, S + 2)


def test_an_embedding_as_target_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"target_modules names model\.embed_tokens.*Embedding"):
        get_peft_model(llama(), config(target_modules=["embed_tokens"]))


def test_experts_that_cannot_share_the_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="rank is 8 and num_experts 3"):
        config(r=8, num_experts=3)


@pytest.mark.filterwarnings("ignore:You are trying to modify", "ignore:Already found a")
def test_a_layer_with_an_adapter_of_another_kind_is_refused() -> None:
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="adapter of another kind"):
        get_peft_model(model.base_model.model, config(target_modules=r".*\.q_proj"))


def test_a_bfloat16_model_trains_float32_adapters(ids: Tensor, gates: Tensor) -> None:
    model = adapted(llama().to(torch.bfloat16))
    gates.requires_grad_()
    output = model(input_ids=ids, labels=ids, gates=gates)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in trained)
    assert gates.grad.abs().sum() > 0


def test_a_copied_model_is_equal_and_has_its_own_gates(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()(ids, gates=gates)  # the checkpoint functions now know the holder
    model.eval()
    twin = copy.deepcopy(model)
    holder = twin.base_model.gates
    assert holder is not model.base_model.gates
    assert {id(layer.gates) for layer in layers_of(twin)} == {id(holder)}
    expected = model(ids, gates=gates).logits
    assert torch.equal(twin(ids, gates=gates).logits, expected)
    twin.train()
    twin(ids, labels=ids, gates=gates).loss.backward()
    assert all(layer.lora_A["default"].grad is not None for layer in layers_of(twin))
    assert all(layer.lora_A["default"].grad is None for layer in layers_of(model))


# ---- The same as LoRA where it must be


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        pytest.param({"num_experts": 1}, torch.ones(1), id="one expert"),
        pytest.param({"num_experts": 4}, torch.full((B, 4), 0.25), id="uniform gates"),
        pytest.param({"num_experts": 4, "scaling": "total"}, torch.ones(4), id="total, ones"),
    ],
)
def test_lora_of_peft_is_the_special_case(
    options: dict[str, Any], gate: Tensor, ids: Tensor
) -> None:
    model = adapted(r=8, lora_alpha=12, **options)
    lora_config = LoraConfig(r=8, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"])
    lora = get_peft_model(llama(), lora_config).eval()
    ours = adapter_state(model, "default")
    theirs = {f"{name}.weight": value for name, value in ours.items()}
    assert set(theirs) == {name for name in lora.state_dict() if "lora_" in name}
    lora.load_state_dict(theirs, strict=False)
    with lora.disable_adapter():
        plain = lora(ids).logits
    losses = [model(ids, labels=ids, gates=gate).loss, lora(ids, labels=ids).loss]
    torch.testing.assert_close(model(ids, gates=gate).logits, lora(ids).logits)
    assert not torch.allclose(lora(ids).logits, plain, atol=1e-3)
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter.grad, lora.get_parameter(f"{name}.weight").grad)


# ---- Gates


def test_gates_reach_their_instance_as_one_mixture_or_one_a_token(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    instance = model(ids, gates=gates).logits
    token = model(ids, gates=gates[:, None].expand(B, S, K)).logits
    torch.testing.assert_close(token, instance)
    shared = model(ids, gates=gates[0]).logits
    torch.testing.assert_close(shared, model(ids, gates=gates[:1].expand(B, K)).logits)
    assert not torch.allclose(shared, instance, atol=1e-3)


def test_one_token_s_gate_changes_no_earlier_token(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    token = gates[:, None].repeat(1, S, 1)
    before = model(ids, gates=token).logits
    token[:, 3] = token[:, 3].flip(-1)
    change = (model(ids, gates=token).logits - before).abs().amax(dim=(0, 2))
    torch.testing.assert_close(change[:3], torch.zeros(3))
    assert change[3:].min() > 1e-4


def test_forgotten_gates_are_refused(model: PeftModel, ids: Tensor, gates: Tensor) -> None:
    model(ids, gates=gates)  # those of an earlier batch must not linger
    with pytest.raises(RuntimeError, match="No gates are set"):
        model(ids)
    with pytest.raises(RuntimeError, match="No gates are set"):
        model.generate(input_ids=ids, max_new_tokens=1, pad_token_id=0)


@pytest.mark.parametrize("argument", ["input_ids", "inputs_embeds"])
def test_another_number_of_gates_than_instances_is_refused(
    model: PeftModel, ids: Tensor, argument: str
) -> None:
    embeddings = model.get_input_embeddings()(ids)
    batch = {argument: ids if argument == "input_ids" else embeddings}
    for wrong in (torch.ones(1, K), torch.ones(2, K), torch.ones(2 * B, K)):
        with pytest.raises(ValueError, match="but the batch has 3 instances"):
            model(**batch, gates=wrong)
        with pytest.raises(ValueError, match="but the batch has 3 instances"):
            model.generate(**batch, gates=wrong, max_new_tokens=1, pad_token_id=0)


def test_gates_of_another_number_of_experts_are_refused(model: PeftModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"gate has shape \[3, 2\], but this layer has 4 experts"):
        model(ids, gates=torch.ones(B, 2))


def test_adapter_names_are_refused_in_favour_of_gates(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    with pytest.raises(ValueError, match="adapter_names is not supported"):
        model(ids, gates=gates, adapter_names=["default"] * B)


# ---- Generation


@pytest.mark.parametrize(
    "search",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beams"),
        pytest.param({"num_beams": 3, "num_return_sequences": 3}, id="all beams"),
    ],
)
def test_generating_together_equals_generating_alone(
    model: PeftModel, ids: Tensor, gates: Tensor, search: dict[str, int]
) -> None:
    options = {"max_new_tokens": 4, "pad_token_id": 0, "do_sample": False, **search}
    ids = ids[:1].expand(B, S)  # the same history: only the gates make the difference
    mask = torch.ones_like(ids)
    together = model.generate(input_ids=ids, attention_mask=mask, gates=gates, **options)
    alone = [
        model.generate(input_ids=i[None], attention_mask=m[None], gates=g[None], **options)
        for i, m, g in zip(ids, mask, gates, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


def test_per_token_gates_are_refused_in_generation(model: PeftModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"generate takes \[K\] or \[B, K\]"):
        model.generate(input_ids=ids, gates=torch.ones(B, S, K), max_new_tokens=1)


# ---- Files


def test_a_saved_adapter_loads_bit_for_bit(
    model: PeftModel, ids: Tensor, gates: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    expected = adapter_state(model, "default")
    actual = adapter_state(loaded, "default")
    assert set(actual) == set(expected)
    assert len(expected) == 2 * len(layers_of(model))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert torch.equal(loaded(ids, gates=gates).logits, model(ids, gates=gates).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_loaded_adapter_can_be_trained_further(
    model: PeftModel, ids: Tensor, gates: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
    loaded(ids, labels=ids, gates=gates).loss.backward()
    assert all(layer.lora_A["default"].grad is not None for layer in layers_of(loaded))


def test_the_configuration_makes_the_round_trip_through_json(tmp_path: Path) -> None:
    options = {
        "r": 6,
        "num_experts": 3,
        "lora_alpha": 7.5,
        "lora_dropout": 0.25,
        "scaling": "total",
        "layers_to_transform": [1],
    }
    get_peft_model(llama(), config(**options)).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "ILORA"
    assert sorted(stored["target_modules"]) == ["down_proj", "q_proj", "v_proj"]
    assert {name: stored[name] for name in options} == options
    loaded = PeftConfig.from_pretrained(tmp_path)
    expected = config(**options, inference_mode=True)
    expected.base_model_name_or_path = loaded.base_model_name_or_path
    expected.peft_version = loaded.peft_version
    assert loaded == expected


def test_the_configuration_restricts_the_layers() -> None:
    names = [
        n for n, m in adapted(layers_to_transform=[1]).named_modules() if isinstance(m, ILoraLinear)
    ]
    assert len(names) == 3
    assert all("layers.1." in name for name in names)


def test_modules_to_save_are_trained_and_stored_whole(
    ids: Tensor, gates: Tensor, tmp_path: Path
) -> None:
    model = adapted(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"]
    head.weight.data.mul_(2.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(loaded(ids, gates=gates).logits, model(ids, gates=gates).logits)


# ---- Adapters on, off, and several of them


def test_a_disabled_adapter_leaves_the_base_bit_for_bit(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    base = llama().eval()(ids).logits
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids, gates=gates).logits, base)
    assert not torch.allclose(model(ids, gates=gates).logits, base, atol=1e-3)


def test_unload_gives_the_base_back(model: PeftModel, ids: Tensor) -> None:
    base = model.unload()
    assert isinstance(base, LlamaForCausalLM)
    assert not layers_of(base)
    assert torch.equal(base(ids).logits, llama().eval()(ids).logits)


def test_several_adapters_take_turns(ids: Tensor, gates: Tensor) -> None:
    model = adapted(target_modules=["q_proj"])
    first = model(ids, gates=gates).logits
    model.add_adapter("second", config(r=6, num_experts=2, target_modules=["q_proj", "v_proj"]))
    stir(model, "second")
    model.eval()
    assert torch.equal(model(ids, gates=gates).logits, first)
    model.set_adapter("second")
    second = model(ids, gates=gates[:, :2]).logits
    assert not torch.allclose(second, first, atol=1e-3)
    with pytest.raises(ValueError, match="this layer has 2 experts"):
        model(ids, gates=gates)
    model.set_adapter("default")
    assert torch.equal(model(ids, gates=gates).logits, first)
    model.delete_adapter("second")
    assert not adapter_state(model, "second")
    assert all(set(layer.adapter_configs) <= {"default"} for layer in layers_of(model))
    assert torch.equal(model(ids, gates=gates).logits, first)


def test_only_the_active_adapter_is_trainable() -> None:
    model = adapted()
    model.add_adapter("second", config())

    def trainable() -> set[str]:
        return {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad}

    assert trainable() == {"default"}
    model.set_adapter("second")
    assert trainable() == {"second"}


def test_a_second_adapter_is_loaded_beside_the_first(
    model: PeftModel, ids: Tensor, gates: Tensor, tmp_path: Path
) -> None:
    expected = model(ids, gates=gates).logits
    model.save_pretrained(tmp_path)
    other = get_peft_model(llama(), config(r=4, num_experts=2)).eval()
    other.load_adapter(tmp_path, "stored")
    other.set_adapter("stored")
    assert torch.equal(other(ids, gates=gates).logits, expected)


def test_two_active_adapters_are_refused(model: PeftModel, ids: Tensor, gates: Tensor) -> None:
    model.add_adapter("second", config())
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="applies one at a time"):
        model(ids, gates=gates)


# ---- Merging


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merging_is_refused_and_points_to_the_merged_layer(model: PeftModel, method: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be merged .* layer\.merged\(gate\)"):
        getattr(model, method)()


def test_replacing_each_layer_by_its_merged_one_personalises_the_model(
    model: PeftModel, ids: Tensor, gates: Tensor
) -> None:
    expected = model(ids, gates=gates[1]).logits
    language_model = model.base_model.model
    names = [n for n, m in language_model.named_modules() if isinstance(m, ILoraLinear)]
    for name in names:
        parent, _, child = name.rpartition(".")
        merged = language_model.get_submodule(name).merged(gates[1])
        setattr(language_model.get_submodule(parent), child, merged)
    torch.testing.assert_close(language_model(ids).logits, expected, rtol=1e-4, atol=1e-5)


# ---- Training


def two_steps(model: PeftModel, ids: Tensor, gates: Tensor) -> list[Tensor]:
    """Two forward passes with different gates, then one backward pass; every gradient."""
    torch.manual_seed(3)
    gates = gates.detach().clone().requires_grad_()
    first = model(input_ids=ids, labels=ids, gates=gates).loss
    second = model(input_ids=ids.flip(0), labels=ids, gates=gates.square()).loss
    (first + second).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    return [first.detach(), second.detach(), gates.grad, *grads]


@pytest.mark.parametrize("moment", ["before wrapping", "after wrapping", "before the first step"])
def test_gradient_checkpointing_changes_no_gradient(
    ids: Tensor, gates: Tensor, moment: str
) -> None:
    expected = two_steps(adapted(lora_dropout=0.3).train(), ids, gates)
    options = {"use_reentrant": False}
    base = llama()
    if moment == "before wrapping":
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model = adapted(base, lora_dropout=0.3).train()
    if moment == "after wrapping":
        model(ids, gates=gates)
    if moment != "before wrapping":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    runs = count_runs(model)
    actual = two_steps(model, ids, gates)
    assert runs.count == 2 * 2  # each forward pass was recomputed
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


class count_runs:  # noqa: N801
    """Counts how often the first adapted layer runs."""

    def __init__(self, model: PeftModel) -> None:
        self.count = 0
        layers_of(model)[0].register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def test_reentrant_checkpointing_is_refused(model: PeftModel, ids: Tensor, gates: Tensor) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    with pytest.raises(
        ValueError, match="use_reentrant=True, which loses the gradient of the gates"
    ):
        model(input_ids=ids, labels=ids, gates=gates)


def test_a_compiled_model_has_no_break_and_new_gates_compile_nothing(
    ids: Tensor, gates: Tensor
) -> None:
    torch._dynamo.reset()
    model = adapted(llama(num_hidden_layers=1))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model.base_model.model, backend=counter, fullgraph=True)
    for mixture in (gates, gates.roll(1, 0)):
        expected = model(ids, gates=mixture, use_cache=False).logits
        with model.base_model.gates.set(mixture):
            torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, expected)
    assert counter.frame_count == 1


def test_the_trainer_of_transformers_trains_the_adapter_alone(
    model: PeftModel, ids: Tensor, gates: Tensor, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": i, "labels": i, "gates": g} for i, g in zip(ids, gates, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=B,
        learning_rate=0.01,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {name for name in before if "lora_" in name}


# ---- A mixture for every layer


def test_gates_per_layer_reach_their_layers_in_the_order_of_the_model(ids: Tensor) -> None:
    model = adapted(gates_per_layer=True)
    layers = layers_of(model)
    assert [layer.gate_index for layer in layers] == list(range(len(layers)))
    assert model.base_model.num_layers == len(layers)
    gates = (3 * torch.randn(B, len(layers), K)).softmax(-1)
    taken: dict[int, Tensor] = {}
    for index, layer in enumerate(layers):
        adapt = layer.adapt

        def spy(
            x: Tensor, adapter: Any, gate: Tensor | None, at: int = index, to: Any = adapt
        ) -> Tensor:
            _, own, _ = layers[at].gates.for_input(x, layers[at].gate_index)
            taken[at] = own
            return to(x, adapter, gate)

        layer.adapt = spy  # type: ignore[method-assign]
    model(ids, gates=gates)
    assert all(torch.equal(taken[index], gates[:, index]) for index in range(len(layers)))


def test_gates_that_are_the_same_in_every_layer_are_one_gate(ids: Tensor, gates: Tensor) -> None:
    shared, own = adapted(), adapted(gates_per_layer=True)
    own.load_state_dict(shared.state_dict())
    count = own.base_model.num_layers
    expected = shared(ids, gates=gates).logits
    everywhere = gates[:, None].expand(B, count, K)
    assert torch.equal(own(ids, gates=everywhere).logits, expected)
    alone = own(ids, gates=gates[:1].expand(count, K)).logits
    assert torch.equal(alone, shared(ids, gates=gates[0]).logits)
    options = {"max_new_tokens": 3, "pad_token_id": 0, "do_sample": False, "num_beams": 2}
    answers = shared.generate(input_ids=ids, gates=gates, **options)
    assert torch.equal(own.generate(input_ids=ids, gates=everywhere, **options), answers)


def test_gates_per_layer_survive_gradient_checkpointing(ids: Tensor) -> None:
    model = adapted(gates_per_layer=True, lora_dropout=0.0).train()
    gates = (3 * torch.randn(B, model.base_model.num_layers, K)).softmax(-1).requires_grad_()
    (plain,) = torch.autograd.grad(model(ids, labels=ids, gates=gates).loss, gates)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    (again,) = torch.autograd.grad(model(ids, labels=ids, gates=gates).loss, gates)
    torch.testing.assert_close(again, plain)
    assert bool(plain.any(-1).all())


def test_gates_per_layer_of_another_batch_are_refused(ids: Tensor) -> None:
    model = adapted(gates_per_layer=True)
    with pytest.raises(ValueError, match=f"the batch has {B} instances"):
        model(ids, gates=torch.ones(B + 1, model.base_model.num_layers, K))


def test_a_loaded_adapter_knows_that_its_gates_are_per_layer(tmp_path: Path, ids: Tensor) -> None:
    model = adapted(gates_per_layer=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    gates = (3 * torch.randn(B, loaded.base_model.num_layers, K)).softmax(-1)
    assert torch.equal(loaded(ids, gates=gates).logits, model(ids, gates=gates).logits)


def test_a_compiled_model_takes_gates_per_layer_without_a_break(ids: Tensor) -> None:
    torch._dynamo.reset()
    model = adapted(llama(num_hidden_layers=1), gates_per_layer=True)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.base_model.model, backend=counter, fullgraph=True)
    gates = (3 * torch.randn(B, model.base_model.num_layers, K)).softmax(-1)
    for mixture in (gates, gates.flip(1)):
        expected = model(ids, gates=mixture, use_cache=False).logits
        with model.base_model.gates.set(mixture, per_layer=True):
            torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, expected)
    assert counter.frame_count == 1
