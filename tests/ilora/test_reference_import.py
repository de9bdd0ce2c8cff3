"""Weights of the published code become folders that compute the same, with a report of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ilora.cli import app
from ilora.comparison import find_evaluation, read_answers
from ilora.encoders import load_encoder, pad_histories, read_encoder_config
from ilora.errors import InputError
from ilora.model_folder import load_model, save_model
from ilora.reference_import import import_reference
from ilora.training import build_recommender
from tests.ilora.published_code import GRU, Caser, Router, SASRec, lightning
from tests.ilora.tiny_world import World

WIDTH = 32  # of the tiny language model
EXPERTS, RANK = 4, 8
MODULES = ("self_attn.q_proj", "mlp.down_proj")


def sizes(world: World) -> tuple[int, int, int]:
    return len(world.folder.catalog), 64, world.folder.window


def recommender(world: World, model: Any = SASRec) -> nn.Module:
    torch.manual_seed(3)
    return model(*sizes(world)).eval()


def adapter(world: World) -> dict[str, Tensor]:
    """What a Lightning checkpoint of iLoRA holds: trained tensors, no buffers."""
    torch.manual_seed(4)
    state: dict[str, Tensor] = {}
    shapes = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (64, 32)}
    for layer in range(2):
        for module in MODULES:
            inputs, outputs = shapes[module]
            name = f"llama_model.base_model.model.model.layers.{layer}.{module}"
            state[f"{name}.lora_A.default.weight"] = torch.randn(RANK, inputs)
            state[f"{name}.lora_B.default.weight"] = torch.randn(outputs, RANK)
            state[f"{name}.gating.default.gate.weight"] = torch.randn(EXPERTS, inputs)
    projector = {"0.weight": (WIDTH, 64), "0.bias": (WIDTH,)}
    projector |= {"2.weight": (WIDTH, WIDTH), "2.bias": (WIDTH,)}
    state |= {f"projector.mlp_proj.{n}": torch.randn(shape) for n, shape in projector.items()}
    return state


def router_state(router: Router) -> dict[str, Tensor]:
    return {f"router.{n}": p.detach() for n, p in router.named_parameters()}


@pytest.fixture
def imported_encoder(world: World, tmp_path: Path) -> Path:
    torch.save(recommender(world), tmp_path / "rec.pt")
    import_reference(tmp_path / "rec.pt", tmp_path / "encoder", data=world.folder.path)
    return tmp_path / "encoder"


@pytest.mark.parametrize("tensors_alone", [False, True])
@pytest.mark.parametrize("model", [SASRec, GRU, Caser])
def test_a_recommender_becomes_an_encoder_that_scores_as_it_did(
    model: Any, tensors_alone: bool, world: World, tmp_path: Path
) -> None:
    theirs = recommender(world, model)
    torch.save(theirs.state_dict() if tensors_alone else theirs, tmp_path / "rec.pt")
    imported = import_reference(tmp_path / "rec.pt", tmp_path / "out", data=world.folder.path)
    encoder = load_encoder(tmp_path / "out", num_items=len(world.folder.catalog))
    num_items, _, window = sizes(world)
    rows = [row.history for row in world.folder.rows("test")]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.tensor([[*row, *[num_items] * (window - len(row))] for row in rows])
    z = theirs.represent(padded, lengths)
    ours = encoder.scores(pad_histories(rows, window, num_items))
    torch.testing.assert_close(ours, theirs.s_fc(z))
    assert {fate.how for fate in imported.fates} <= {"mapped", "renamed", "reshaped"}
    assert len(imported.fates) == len(theirs.state_dict())


def test_what_a_whole_module_tells_is_kept(world: World, tmp_path: Path) -> None:
    torch.save(SASRec(*sizes(world), 2), tmp_path / "rec.pt")
    import_reference(tmp_path / "rec.pt", tmp_path / "out", data=world.folder.path)
    assert read_encoder_config(tmp_path / "out").options == {"num_heads": 2, "dropout": 0.25}


def test_heads_can_be_told_where_tensors_alone_do_not(world: World, tmp_path: Path) -> None:
    torch.save(SASRec(*sizes(world), 2).state_dict(), tmp_path / "rec.pt")
    imported = import_reference(
        tmp_path / "rec.pt", tmp_path / "out", data=world.folder.path, num_heads=2
    )
    assert read_encoder_config(tmp_path / "out").options["num_heads"] == 2
    assert any("number of heads; 2 taken" in note for note in imported.notes)


def test_the_report_names_every_tensor_and_the_encoder_is_measured(
    imported_encoder: Path, world: World
) -> None:
    report = json.loads((imported_encoder / "import.json").read_text())
    theirs = recommender(world).state_dict()
    assert {one["source"]: tuple(one["shape"]) for one in report["tensors"]} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }
    by_source = {one["source"]: one for one in report["tensors"]}
    assert by_source["ln_1.weight"]["target"] == "query_norm.weight"
    assert by_source["feed_forward.w_1.weight"]["how"] == "reshaped"
    assert by_source["item_embeddings.weight"]["how"] == "mapped"
    assert len(report["checkpoint"]["sha256"]) == 64
    metrics = json.loads((imported_encoder / "metrics.json").read_text())
    assert metrics["test"] == report["test"]
    answers = read_answers(find_evaluation(imported_encoder, "test-rank"), "imported")
    assert answers.values.mean() == metrics["test"]["hr@1"]


def test_adapter_gate_and_projector_become_a_model_that_computes_the_same(
    imported_encoder: Path, world: World, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    router = Router(EXPERTS).eval()
    state = {**adapter(world), **router_state(router)}
    torch.save(lightning(state, lora_alpha=16, lora_dropout=0.2, lora_r=RANK), tmp_path / "x.ckpt")
    imported = import_reference(
        tmp_path / "x.ckpt",
        tmp_path / "model",
        data=world.folder.path,
        llm=str(world.llm),
        encoder=imported_encoder,
    )
    model, config, _ = load_model(tmp_path / "model", device="cpu")
    assert (config.adapter.method, config.adapter.rank, config.adapter.num_experts) == (
        "ilora",
        8,
        4,
    )
    assert (config.adapter.alpha, config.adapter.dropout) == (16, 0.2)
    assert config.adapter.gate.name == "residual"
    rows = [row.history for row in world.folder.rows("test")]
    histories = pad_histories(rows, world.folder.window, len(world.folder.catalog))
    z = model.encoder.history_representation(histories)
    torch.testing.assert_close(model.gates(histories), router(z))
    items = model.encoder.item_embedding(torch.tensor([0, 1, 2]))
    names = [
        f"projector.mlp_proj.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    ]
    first, first_bias, second, second_bias = (state[name] for name in names)
    expected = nn.functional.gelu(items @ first.T + first_bias) @ second.T + second_bias
    torch.testing.assert_close(model.projector(items), expected)
    _require_same_layer(model, state)
    how = {fate.source or fate.target: fate for fate in imported.fates}
    assert how["placeholder"].how == "absent"
    assert how["gate.network.bn1.running_mean"].how == "absent"
    skipped = [fate for fate in imported.fates if fate.how == "skipped"]
    assert len(skipped) == 4
    assert all("never calls" in fate.note for fate in skipped)


def _require_same_layer(model: Any, state: dict[str, Tensor]) -> None:
    """y = W x + alpha / (R / K) · Σ_k g_k B_k A_k x, expert k rows and columns k·R/K …"""
    name = "llama_model.base_model.model.model.layers.1.self_attn.q_proj"
    lora_A, lora_B = (state[f"{name}.{part}.default.weight"] for part in ("lora_A", "lora_B"))
    layer = model.llm.base_model.model.model.layers[1].self_attn.q_proj
    torch.manual_seed(6)
    x, gate = torch.randn(2, 3, 32), torch.rand(2, EXPERTS).softmax(-1)
    expected = layer.base_layer(x)
    for expert in range(EXPERTS):
        part = slice(expert * 2, expert * 2 + 2)
        update = x @ lora_A[part].T @ lora_B[:, part].T
        expected = expected + gate[:, expert, None, None] * update * 16 / (RANK / EXPERTS)
    torch.testing.assert_close(layer(x, gate=gate), expected, rtol=1e-4, atol=1e-3)


def test_an_adapter_without_a_router_is_plain_lora(
    imported_encoder: Path, world: World, tmp_path: Path
) -> None:
    torch.save({"state_dict": adapter(world)}, tmp_path / "x.ckpt")
    imported = import_reference(
        tmp_path / "x.ckpt",
        tmp_path / "model",
        data=world.folder.path,
        llm=str(world.llm),
        encoder=imported_encoder,
    )
    _, config, _ = load_model(tmp_path / "model", device="cpu")
    assert (imported.kind, config.adapter.method, config.adapter.alpha) == ("lora", "lora", 32)
    assert any("does not tell lora_alpha; 32 taken" in note for note in imported.notes)


def test_everything_of_a_checkpoint_that_was_saved_whole_is_accounted_for(
    imported_encoder: Path, world: World, tmp_path: Path
) -> None:
    router = Router(EXPERTS)
    with torch.no_grad():
        router.bn1.running_mean += 2
    state = {**adapter(world), **{f"router.{n}": v for n, v in router.state_dict().items()}}
    state |= {f"rec_model.{n}": v for n, v in recommender(world).state_dict().items()}
    state["llama_model.base_model.model.lm_head.weight"] = torch.zeros(3, 2)
    state["surprise"] = torch.zeros(1)
    torch.save(lightning(state), tmp_path / "x.ckpt")
    imported = import_reference(
        tmp_path / "x.ckpt",
        tmp_path / "model",
        data=world.folder.path,
        llm=str(world.llm),
        encoder=imported_encoder,
    )
    assert {fate.source for fate in imported.fates} - {None} == set(state)
    model, _, _ = load_model(tmp_path / "model", device="cpu")
    assert model.gate.network.bn1.running_mean.tolist() == [2.0] * 16
    notes = {fate.source: fate.note for fate in imported.fates}
    assert "import it from its own file" in notes["rec_model.ln_1.weight"]
    assert "frozen language model" in notes["llama_model.base_model.model.lm_head.weight"]
    assert "no part that we have" in notes["surprise"]
    text = " ".join(line for _, line in imported.table())
    assert "layers.N.self_attn.q_proj.lora_A" in text
    assert ": 2 tensors" in text


def test_a_caser_whose_vectors_are_wider_than_its_items_serves_gate_and_projector(
    world: World, tmp_path: Path
) -> None:
    torch.save(recommender(world, Caser), tmp_path / "rec.pt")
    import_reference(tmp_path / "rec.pt", tmp_path / "caser", data=world.folder.path)
    settings = world.settings({"encoder": str(tmp_path / "caser")})
    model, config = build_recommender(settings, world.folder, torch.device("cpu"))
    histories = pad_histories([[1, 2, 3]], world.folder.window, len(world.folder.catalog))
    assert model.gates(histories).shape == (1, 4)
    assert model.projector[0].in_features == 64
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    loaded, _, _ = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.gates(histories), model.eval().gates(histories))


def changed(state: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {n: v for n, v in {**state, name: value}.items() if v is not None}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ln_2.weight", None, "nothing in it is feed_forward_norm.weight"),
        ("ln_2.weight", torch.zeros(65), r"ln_2\.weight is \[65\], but"),
        ("ln_2.weight", torch.full((64,), float("nan")), "holds NaN"),
        ("mh_attn.linear_q.weight", None, "not those of the reference's SASRec"),
        ("item_embeddings.weight", None, "not those of the reference's SASRec"),
        ("item_embeddings.weight", torch.zeros(9, 64), "it is for 8 items"),
        ("positional_embeddings.weight", None, "positional_embeddings.weight is missing"),
    ],
)
def test_a_recommender_that_does_not_fit_is_refused(
    name: str, value: Tensor | None, told: str, world: World, tmp_path: Path
) -> None:
    torch.save(changed(recommender(world).state_dict(), name, value), tmp_path / "rec.pt")
    with pytest.raises(InputError, match=told):
        import_reference(tmp_path / "rec.pt", tmp_path / "out", data=world.folder.path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("projector.mlp_proj.0.bias", None, "nothing in it is projector.0.bias"),
        ("projector.mlp_proj.0.weight", torch.zeros(16, 64), r"is \[16, 64\], but projector"),
        (
            "llama_model.base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight",
            torch.zeros(4, 64),
            "no rank of its own",
        ),
        (
            "llama_model.base_model.model.model.layers.0.mlp.down_proj.lora_B.default.weight",
            None,
            "nothing in it is llm.",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    name: str, value: Tensor | None, told: str, imported_encoder: Path, world: World, tmp_path: Path
) -> None:
    torch.save({"state_dict": changed(adapter(world), name, value)}, tmp_path / "x.ckpt")
    places = {"data": world.folder.path, "llm": str(world.llm), "encoder": imported_encoder}
    with pytest.raises(InputError, match=told):
        import_reference(tmp_path / "x.ckpt", tmp_path / "model", **places)
    assert not (tmp_path / "model").exists()


def test_an_adapter_wants_its_parts_and_a_recommender_none(
    imported_encoder: Path, world: World, tmp_path: Path
) -> None:
    torch.save({"state_dict": adapter(world)}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="give --llm and --encoder"):
        import_reference(tmp_path / "x.ckpt", tmp_path / "out", data=world.folder.path)
    places = {"data": world.folder.path, "llm": str(world.llm), "encoder": imported_encoder}
    with pytest.raises(InputError, match="leave --llm and --encoder out"):
        import_reference(tmp_path / "rec.pt", tmp_path / "out", **places)
    with pytest.raises(InputError, match="exists"):
        import_reference(tmp_path / "rec.pt", imported_encoder, data=world.folder.path)


def test_the_command_prints_what_became_of_the_tensors(world: World, tmp_path: Path) -> None:
    torch.save(recommender(world), tmp_path / "rec.pt")
    words = ["import", "reference", "--checkpoint", str(tmp_path / "rec.pt")]
    words += ["--data", str(world.folder.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "llara-sasrec" in result.stdout
    assert "ln_1.weight → query_norm.weight" in result.stdout
    assert "test hr@1" in result.stdout
    words = ["encoder", "train", "--data", str(world.folder.path), "--out", str(tmp_path / "out")]
    assert (
        CliRunner().invoke(app, [*words, "--max-epochs", "1"]).exit_code == 0
    )  # it is a folder of ours
