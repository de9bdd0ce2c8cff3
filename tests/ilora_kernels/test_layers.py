"""The drop-in layer: what it computes, and what may stand below it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ilora_kernels import FusedILoRALinear, InstanceGates
from ilora_kernels.graphs import capture

from .problems import GATE_FORMS, gradients, random_problem
from .small_layers import D_IN, D_OUT, K, R, mixtures, oracle, random_layer

# ---- The formula


@pytest.mark.parametrize("through_holder", [True, False], ids=["holder", "argument"])
@pytest.mark.parametrize(
    ("tokens", "gates"),
    [
        pytest.param((4,), (), id="2-D shared"),
        pytest.param((4,), (4,), id="2-D token"),
        pytest.param((2, 3), (), id="3-D shared"),
        pytest.param((2, 3), (2,), id="3-D instance"),
        pytest.param((2, 3), (2, 3), id="3-D token"),
        pytest.param((2, 3, 2), (), id="4-D shared"),
        pytest.param((2, 3, 2), (2,), id="4-D instance"),
        pytest.param((2, 3, 2), (2, 3, 2), id="4-D token"),
    ],
)
def test_the_layer_equals_the_loop_over_experts(
    device: torch.device, tokens: tuple[int, ...], gates: tuple[int, ...], through_holder: bool
) -> None:
    layer = random_layer().to(device)
    x, gate = torch.randn(*tokens, D_IN, device=device), mixtures(*gates).to(device)
    if through_holder:
        with layer.gates.set(gate):
            y = layer(x)
    else:
        y = layer(x, gate=gate)
    torch.testing.assert_close(y.double(), oracle(layer, x, gate), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate_form", GATE_FORMS)
def test_outputs_and_gradients_are_those_of_the_function(
    device: torch.device, gate_form: str
) -> None:
    problem = random_problem(gate_form, device=device).to(torch.float32).leaves()
    base = nn.Linear(19, 13, device=device)
    base.weight.data, base.bias.data = problem.weight, problem.bias
    layer = FusedILoRALinear(base, num_experts=3, rank=6, gates=InstanceGates())
    layer.lora_A.data, layer.lora_B.data = problem.lora_A.data, problem.lora_B.data
    layer.scaling = problem.scaling
    with layer.gates.set(problem.gate, cu_seqlens=problem.cu_seqlens):
        y = layer(problem.x)
    expected = problem.run()
    assert torch.equal(y, expected)
    grad_x, grad_A, grad_B, grad_gate = gradients(problem, expected)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
    actual = torch.autograd.grad(
        y, (problem.x, layer.lora_A, layer.lora_B, problem.gate), direction
    )
    for a, e in zip(actual, (grad_x, grad_A, grad_B, grad_gate), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("shape", [(6, D_IN), (1, 6, D_IN)], ids=["rows", "batch of one"])
def test_packed_gates_reach_their_own_sequence(
    device: torch.device, shape: tuple[int, ...]
) -> None:
    layer = random_layer().to(device)
    x, gate = torch.randn(shape, device=device), mixtures(2).to(device)
    with layer.gates.set(gate, cu_seqlens=torch.tensor([0, 2, 6], device=device)):
        y = layer(x)
    assert y.shape == (*shape[:-1], D_OUT)
    rows = x.reshape(6, D_IN)
    expected = [layer(rows[:2], gate=gate[0]), layer(rows[2:], gate=gate[1])]
    torch.testing.assert_close(y.reshape(6, D_OUT), torch.cat(expected))


def test_a_new_layer_changes_nothing() -> None:
    base = nn.Linear(D_IN, D_OUT)
    x = torch.randn(2, 3, D_IN)
    layer = FusedILoRALinear(base, num_experts=K, rank=R)
    torch.testing.assert_close(layer(x, gate=mixtures(2)), base(x))


def test_with_uniform_gates_the_expert_convention_is_plain_lora() -> None:
    layer = random_layer(alpha=5.0)
    assert layer.scaling == 5.0 / (R // K)
    x = torch.randn(2, 3, D_IN)
    plain = layer.base_layer(x) + (5.0 / R) * (x @ layer.lora_A.T @ layer.lora_B.T)
    torch.testing.assert_close(layer(x, gate=torch.full((K,), 1 / K)), plain)


def test_the_total_convention_divides_alpha_by_the_whole_rank() -> None:
    assert random_layer(alpha=5.0, scaling="total").scaling == 5.0 / R


def test_the_number_of_experts_costs_no_memory_of_tokens_times_outputs() -> None:
    layer = random_layer(nn.Linear(8, 4096), num_experts=16, rank=16)
    x, gate = torch.randn(1, 64, 8), torch.ones(1, 16, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        layer(x, gate=gate)
    assert max(saved) <= 8 * 4096 * 2  # the weights; [T, K, d_out] would be 64 times as large


# ---- Refusals


@pytest.mark.parametrize(("num_experts", "rank"), [(3, 8), (0, 8), (8, 4), (1, 0)])
def test_experts_that_cannot_share_the_rank_are_refused(num_experts: int, rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank} and num_experts {num_experts}"):
        FusedILoRALinear(nn.Linear(4, 4), num_experts=num_experts, rank=rank)


def test_an_unknown_scaling_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="scaling is 'sum'; it must be 'expert' or 'total'"):
        random_layer(scaling="sum")


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match=f"dropout is {dropout}"):
        random_layer(dropout=dropout)


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 3, 6), ()])
def test_a_gate_of_another_number_of_experts_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="this layer has 3 experts"):
        random_layer()(torch.randn(2, 3, D_IN), gate=torch.ones(shape))


def test_a_gate_that_is_no_tensor_is_refused() -> None:
    layer = FusedILoRALinear(nn.Linear(4, 4), gates=InstanceGates())
    with pytest.raises(TypeError, match="gate is a list"):
        layer(torch.zeros(2, 4), gate=[0.25, 0.25, 0.25, 0.25])
    with pytest.raises(TypeError, match="gate is a list"), layer.gates.set([0.25] * 4):
        layer(torch.zeros(2, 4))


def test_a_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(TypeError, match="base_layer is a Embedding"):
        random_layer(nn.Embedding(4, 4))


def test_a_gate_handed_in_is_never_repeated() -> None:
    with pytest.raises(ValueError, match="gate has 2 rows, but x of shape"):
        random_layer()(torch.randn(4, 3, D_IN), gate=mixtures(2))


# ---- Copies and state


def test_a_copied_layer_is_equal_and_starts_without_gates() -> None:
    layer = random_layer()
    x, gate = torch.randn(2, 3, D_IN), mixtures(2)
    with layer.gates.set(gate):
        twin = copy.deepcopy(layer)
    assert torch.equal(twin(x, gate=gate), layer(x, gate=gate))
    assert twin.lora_A is not layer.lora_A
    with pytest.raises(RuntimeError, match="No gates are set"):
        twin(x)


def test_the_layers_of_a_copied_model_share_one_holder_of_their_own() -> None:
    gates = InstanceGates()
    square = partial(nn.Linear, D_IN, D_IN)
    model = nn.Sequential(*(random_layer(square(), gates=gates) for _ in range(2)))
    twin = copy.deepcopy(model)
    assert twin[0].gates is twin[1].gates
    assert twin[0].gates is not gates
    x = torch.randn(2, 3, D_IN)
    with gates.set(mixtures(2)), twin[0].gates.set(other := mixtures(2)):
        expected = model[1](model[0](x, gate=other), gate=other)
        assert torch.equal(twin(x), expected)
        assert not torch.equal(model(x), expected)


def test_a_state_dict_round_trip_restores_the_layer() -> None:
    layer, other = random_layer(), random_layer()
    assert set(layer.state_dict()) == {
        "lora_A",
        "lora_B",
        "base_layer.weight",
        "base_layer.bias",
    }
    other.load_state_dict(layer.state_dict())
    x, gate = torch.randn(2, 3, D_IN), mixtures(2)
    assert torch.equal(other(x, gate=gate), layer(x, gate=gate))


def test_only_the_adapter_is_trainable() -> None:
    trainable = {name for name, p in random_layer().named_parameters() if p.requires_grad}
    assert trainable == {"lora_A", "lora_B"}


def test_dropout_acts_in_training_alone() -> None:
    layer = random_layer(dropout=0.5)
    x, gate = torch.randn(2, 3, D_IN), mixtures(2)
    assert not torch.equal(layer(x, gate=gate), layer(x, gate=gate))
    layer.eval()
    assert torch.equal(layer(x, gate=gate), layer(x, gate=gate))
    torch.testing.assert_close(
        layer(x, gate=gate).double(), oracle(layer, x, gate), rtol=1e-4, atol=1e-4
    )


# ---- Merging


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
    ids=str,
)
def test_the_merged_layer_equals_the_layer_to_rounding(
    dtype: torch.dtype, tolerance: float, bias: bool
) -> None:
    layer = random_layer(nn.Linear(D_IN, D_OUT, bias=bias).to(dtype), alpha=2.0)
    x, gate = torch.randn(2, 3, D_IN, dtype=dtype), mixtures()
    merged = layer.merged(gate)
    assert type(merged) is nn.Linear
    assert merged.weight.dtype == dtype
    assert (merged.bias is not None) == bias
    assert not any(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(merged(x), layer(x, gate=gate), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(merged(x), layer.base_layer(x), rtol=tolerance, atol=tolerance)


def test_merging_leaves_the_layer_as_it_was() -> None:
    layer = random_layer()
    before = copy.deepcopy(layer.state_dict())
    layer.merged(mixtures(requires_grad=True)).weight.fill_(0.0)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_one_row_is_the_mixture_of_one_user_too() -> None:
    layer = random_layer()
    gate = mixtures(1)
    assert torch.equal(layer.merged(gate).weight, layer.merged(gate[0]).weight)


def test_a_single_expert_can_be_merged() -> None:
    layer = random_layer(num_experts=1)
    x = torch.randn(2, D_IN)
    torch.testing.assert_close(layer.merged(torch.ones(1))(x), layer(x, gate=torch.ones(1)))


@pytest.mark.parametrize("shape", [None, (2, K), (K - 1,), (2 * K,), (1, 1, K), ()])
def test_merging_without_the_mixture_of_one_user_is_refused(
    shape: tuple[int, ...] | None,
) -> None:
    gate = None if shape is None else torch.ones(shape)
    with pytest.raises(ValueError, match=r"merging needs the one mixture \[3\] of one user"):
        random_layer().merged(gate)


# ---- Base layers that are not a plain nn.Linear


class Int8Linear(nn.Module):
    """A quantised linear: int8 weight, one scale an output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class DoublingLinear(nn.Linear):
    """A subclass whose forward is not the product with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TransposedLinear(nn.Module):
    """A weight [d_in, d_out] and GPT-2's names of the features."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Router(nn.Linear):
    """A linear that returns more than its product, as the routers of some mixtures of experts do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(x)
        return scores, scores.argmax(-1)


OTHER_LAYERS = {
    "int8": lambda: Int8Linear(nn.Linear(D_IN, D_OUT)),
    "subclass": lambda: DoublingLinear(D_IN, D_OUT),
    "transposed": lambda: TransposedLinear(D_OUT, D_IN),
}


@pytest.mark.parametrize("name", OTHER_LAYERS)
@pytest.mark.parametrize("shape", [(2, 3, D_IN), (4, 3, D_IN), (4, D_IN), (2, 2, 3, D_IN)])
def test_the_update_is_added_to_any_linear_layer(
    device: torch.device, name: str, shape: tuple[int, ...]
) -> None:
    base = OTHER_LAYERS[name]().to(device)
    layer = random_layer(base).to(device)
    x, gate = torch.randn(shape, device=device, requires_grad=True), mixtures(2).to(device)
    with layer.gates.set(gate):
        y = layer(x)
    repeated = gate.repeat_interleave(shape[0] // 2, dim=0)
    expected = oracle(layer, x, repeated)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-3)


def test_a_layer_that_returns_more_than_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a Router, returned a tuple; .* leave it out"):
        random_layer(Router(D_IN, D_OUT))(torch.randn(3, D_IN), mixtures(3))


def test_the_adapter_of_an_integer_weight_is_float32() -> None:
    layer = random_layer(Int8Linear(nn.Linear(D_IN, D_OUT)))
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32


@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_only_a_plain_linear_can_be_merged(name: str) -> None:
    layer = random_layer(OTHER_LAYERS[name]())
    with pytest.raises(TypeError, match=r"only a plain nn\.Linear can be merged"):
        layer.merged(mixtures())


def test_a_forward_hook_on_the_base_layer_still_runs() -> None:
    layer = random_layer()
    x, gate = torch.randn(2, 2, 3, D_IN), mixtures(2)
    expected = layer(x, gate=gate) + 1
    seen = []

    def add_one(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(inputs[0].shape)
        return output + 1

    layer.base_layer.register_forward_hook(add_one)
    torch.testing.assert_close(layer(x, gate=gate), expected)
    assert seen == [x.shape]  # as it came, not as the kernel wants it


def test_a_backward_hook_on_the_base_layer_still_runs() -> None:
    layer = random_layer()
    seen = []
    layer.base_layer.register_full_backward_hook(lambda *_: seen.append(True))
    x = torch.randn(2, 3, D_IN, requires_grad=True)
    layer(x, gate=mixtures(2)).sum().backward()
    assert seen == [True]


# ---- Dtypes


def test_a_bfloat16_base_takes_float32_adapters() -> None:
    layer = random_layer(nn.Linear(D_IN, D_OUT).to(torch.bfloat16))
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.float(), layer.lora_B.data.float()
    x, gate = torch.randn(2, 3, D_IN).to(torch.bfloat16), mixtures(2, requires_grad=True)
    y = layer(x, gate=gate)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == gate.grad.dtype == torch.float32
    torch.testing.assert_close(y.double(), oracle(layer, x, gate), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("name", [None, *OTHER_LAYERS])
def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(name: str | None) -> None:
    layer = random_layer(OTHER_LAYERS[name]() if name else None, alpha=2.0)
    x, gate = torch.randn(2, 3, D_IN), mixtures(2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, gate=gate)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.lora_A.grad.dtype == gate.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x, gate=gate), rtol=4e-2, atol=8e-2)


# ---- Compilation and CUDA graphs


@pytest.mark.parametrize("name", [None, "int8"])
def test_compilation_has_no_break_and_new_gates_compile_nothing(
    device: torch.device, name: str | None
) -> None:
    torch._dynamo.reset()
    layer = random_layer(OTHER_LAYERS[name]() if name else None).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(4, 3, D_IN, device=device, requires_grad=True)
    for _ in range(3):
        gate = mixtures(2).to(device).requires_grad_()
        with layer.gates.set(gate):
            y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected)
        (grad,) = torch.autograd.grad(y.square().sum(), gate)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), gate)[0])
    assert counter.frame_count == 1


def test_a_compiled_layer_uses_no_stale_gates() -> None:
    torch._dynamo.reset()
    layer = random_layer()
    compiled = torch.compile(layer, backend="aot_eager")
    x = torch.randn(2, 3, D_IN)
    with layer.gates.set(mixtures(2)):
        compiled(x)
    with pytest.raises(RuntimeError, match="No gates are set"):
        compiled(x)


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_what_its_gate_buffer_holds(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a CUDA GPU")
    layer = random_layer().to(device)
    x, gate = torch.randn(4, 3, D_IN, device=device), mixtures(2).to(device)  # two beams each
    with torch.no_grad(), layer.gates.set(gate):
        graph, y = capture(lambda: layer(x))
    for _ in range(2):
        x.normal_()
        gate.copy_(mixtures(2))
        graph.replay()
        with torch.no_grad():
            expected = layer(x, gate=gate.repeat_interleave(2, dim=0))
        torch.testing.assert_close(y, expected)
