"""A recommender saved and loaded: every bit or one sentence, never a pickle, never a half."""

from __future__ import annotations

import errno
import pickletools
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import ilora.model_folder
from ilora.errors import InputError
from ilora.gate import GATES
from ilora.model import ILoRARecommender
from ilora.model_folder import fingerprint, load_llm, load_model, load_weights, save_model
from ilora.tokens import PLACEHOLDER, load_tokenizer
from tests.ilora.tiny_world import CPU, World, build_llm

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = "recommender.safetensors"
EXPERTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[ILoRARecommender, Path]:
    """A model and its folder; to be read only."""
    path = tmp_path_factory.mktemp("saved") / "model"
    model, config = world.built()
    save_model(path, model, config, world.folder.catalog, {"loss": 0.5})
    return model, path


@pytest.fixture
def copy(saved: tuple[ILoRARecommender, Path], tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


def answers(world: World, model: ILoRARecommender) -> Tensor:
    rows = world.rows(model, "val", answer=False)
    return model.generate(world.batch(model, [rows[i] for i in range(4)]), max_new_tokens=6)


def bits(model: ILoRARecommender) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def refused(path: Path, **options: Any) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(InputError) as caught:
        load_model(path, device="cpu", **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# There and back


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter.method": "lora"},
        {"adapter.scaling": "total", "adapter.alpha": 3.0, "adapter.target_modules": ["q_proj"]},
        {"training.bf16": True},
        {"training.curriculum": "text"},
        {"adapter.method": "none"},
        *({"adapter.gate": name} for name in GATES),
        {"adapter.gate": {"name": "top-k", "k": 1}},
        {"adapter.rank": 16, "adapter.num_experts": 16, "adapter.gate": "per-layer"},
    ],
    ids=[
        *("ilora", "lora", "other experts", "bfloat16", "text prompts", "un-adapted"),
        *GATES,
        "top-1",
        "sixteen experts per layer",
    ],
)
def test_a_loaded_model_is_the_saved_one_to_the_bit(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model, config = world.built(changes)
    rows = world.rows(model, "train", answer=True)
    model.train()(**world.batch(model, [rows[i] for i in range(4)]))  # moves batch statistics
    model.eval()
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    before = torch.get_rng_state()
    loaded, read, catalog = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)  # whoever loads keeps his random numbers
    assert not any(module.training for module in loaded.modules())
    assert_same_bits(bits(model), bits(loaded))
    assert torch.equal(answers(world, model), answers(world, loaded))
    assert (read, catalog) == (config, world.folder.catalog)
    assert loaded.trainable_parameters() == model.trainable_parameters()


def test_the_tokenizer_comes_back_with_the_placeholder(
    world: World, saved: tuple[ILoRARecommender, Path]
) -> None:
    model, path = saved
    loaded = load_model(path, device="cpu")[0]
    assert loaded.placeholder_id == model.placeholder_id
    text = f"these items: Quiet Harbor{PLACEHOLDER} Amber Fox{PLACEHOLDER}\nAnswer: Iron Tide"
    assert loaded.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.get_vocab() == load_tokenizer(world.llm).get_vocab()


def test_a_run_folder_stands_for_the_model_in_it(
    saved: tuple[ILoRARecommender, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved[1], tmp_path / "run" / "model")
    assert_same_bits(bits(saved[0]), bits(load_model(tmp_path / "run", device="cpu")[0]))


def test_peft_alone_reads_the_experts(world: World, saved: tuple[ILoRARecommender, Path]) -> None:
    alone = PeftModel.from_pretrained(load_llm(str(world.llm), torch.float32, CPU), saved[1])
    own = {k.removeprefix("llm."): v for k, v in bits(saved[0]).items() if k.startswith("llm.")}
    assert_same_bits(own, alone.state_dict())


def test_the_base_model_may_have_moved(
    world: World, saved: tuple[ILoRARecommender, Path], copy: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(world.llm, tmp_path / "elsewhere")
    rewrite(copy / "config.yaml", str(world.llm), str(tmp_path / "gone"))
    assert "gone" in refused(copy)
    loaded = load_model(copy, llm=str(elsewhere), device="cpu")[0]
    assert_same_bits(bits(saved[0]), bits(loaded))


def test_no_file_of_a_model_folder_is_a_pickle(saved: tuple[ILoRARecommender, Path]) -> None:
    names = {file.name for file in saved[1].iterdir()}
    assert {"adapter_config.json", EXPERTS, WEIGHTS, "config.yaml", "items.csv"} <= names
    assert {"tokenizer.json", "metrics.json"} <= names
    for file in saved[1].iterdir():
        assert file.suffix in {".json", ".safetensors", ".yaml", ".csv", ".jinja"}
        assert not is_pickle(file.read_bytes()), file


def is_pickle(content: bytes) -> bool:
    try:
        return len(list(pickletools.genops(content))) > 1
    except ValueError:
        return content.startswith(b"PK")  # torch.save's archive


# Refused


def test_another_base_model_is_refused(world: World, copy: Path, tmp_path: Path) -> None:
    other = build_llm(world.folder, tmp_path / "other", seed=1)
    assert "is not the language model" in refused(copy, llm=str(other))


def test_a_base_model_fine_tuned_in_its_linear_layers_alone_is_another_one(world: World) -> None:
    llm = load_llm(str(world.llm), torch.float32, CPU)
    before = fingerprint(llm)
    assert fingerprint(load_llm(str(world.llm), torch.bfloat16, CPU)) == before
    with torch.no_grad():
        llm.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert fingerprint(llm) != before


@pytest.mark.parametrize(
    "name", ["config.yaml", WEIGHTS, "items.csv", "adapter_config.json", EXPERTS]
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"{name} is missing" in refused(copy)


def test_an_empty_configuration_is_told_in_a_sentence(copy: Path) -> None:
    (copy / "config.yaml").write_text("")
    assert "config.yaml: the whole: " in refused(copy)


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refused(copy)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_tokenizer_is_refused(copy: Path, share: float) -> None:
    content = (copy / "tokenizer.json").read_bytes()
    (copy / "tokenizer.json").write_bytes(content[: int(share * len(content))])
    assert "no sound tokenizer" in refused(copy)


@pytest.mark.parametrize("name", [WEIGHTS, EXPERTS])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_a_truncated_weight_file_is_refused(copy: Path, name: str, share: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(share * len(content))])
    sentence = refused(copy)
    assert name in sentence
    assert "not a sound safetensors file" in sentence


@pytest.mark.parametrize("name", [WEIGHTS, EXPERTS])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state, key: state.pop(key), "is absent where"),
        (lambda state, key: state.update({key: state[key][..., :-1].clone()}), "is wanted"),
        (lambda state, key: state.update({key: state[key].half()}), "torch.float16"),
        (lambda state, key: state.update({"extra": torch.zeros(1)}), "extra is torch.float32"),
    ],
    ids=["missing", "another shape", "another type", "one too many"],
)
def test_a_tensor_that_does_not_fit_is_named(
    copy: Path, name: str, change: Callable[[dict[str, Tensor], str], Any], reason: str
) -> None:
    state = load_file(copy / name)
    key = sorted(state)[-1]
    change(state, key)
    save_file(state, copy / name)
    sentence = refused(copy)
    assert reason in sentence
    assert key in sentence or "extra" in sentence
    assert name in sentence


def test_weights_that_do_not_fit_leave_the_model_as_it_was(copy: Path, world: World) -> None:
    model, _ = world.built({"seed": 5})
    before = bits(model)
    state = load_file(copy / EXPERTS)
    state.pop(sorted(state)[-1])
    save_file(state, copy / EXPERTS)
    with pytest.raises(InputError):
        load_weights(copy, model)
    assert_same_bits(before, bits(model))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rank: 8", "rank: 12", "does not fit"),
        ("rank: 8", "ranks: 8", "ranks"),
        ("rank: 8", "rank: [8", "not sound YAML"),
        ("num_items: 28", "num_items: 29", "has 28 items"),
    ],
)
def test_a_changed_configuration_is_refused(copy: Path, old: str, new: str, reason: str) -> None:
    rewrite(copy / "config.yaml", old, new)
    assert reason in refused(copy)


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("name", ["model.pt", "model.PTH", "model.bin", "model.ckpt"])
def test_a_pickle_offered_as_a_model_is_refused_unopened(tmp_path: Path, name: str) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / name)
    assert "is a pickle" in refused(tmp_path / name)


def test_a_pickle_offered_as_a_base_model_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "llm.bin")
    with pytest.raises(InputError, match=r"llm: .* is a pickle"):
        load_llm(str(tmp_path / "llm.bin"), torch.float32, CPU)


def test_a_truncated_base_model_is_refused(world: World, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.llm, tmp_path / "llm"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"llm: .* could be loaded from"):
        load_llm(str(folder), torch.float32, CPU)


def test_a_base_model_that_is_there_as_a_pickle_only_is_refused(
    world: World, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(world.llm, tmp_path / "llm"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors") as caught:
        load_llm(str(folder), torch.float32, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert name in refused(tmp_path / name)


# Broken off


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_disk_that_is_full_midway_leaves_the_earlier_model(
    world: World, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(copy)
    model, config = world.built({"seed": 5})

    def half(state: dict[str, Tensor], file: Path) -> None:
        file.write_bytes(b"\0" * 100)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ilora.model_folder, "save_file", half)
    with pytest.raises(InputError, match="No space left on device"):
        save_model(copy, model, config, world.folder.catalog)
    assert files(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["model"]
    load_model(copy, device="cpu")


@pytest.mark.parametrize("largest", [500, 20_000], ids=["at once", "midway"])
def test_a_file_that_the_system_does_not_let_grow_leaves_nothing_loadable(
    world: World, tmp_path: Path, largest: int
) -> None:
    model, config = world.built()
    with files_of_at_most(largest), pytest.raises(InputError, match="could not be written"):
        save_model(tmp_path / "model", model, config, world.folder.catalog)
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write beyond ``size`` bytes, as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_base_model_that_lacks_a_tensor_is_refused(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(world.llm, folder)
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(
        {k: v for k, v in state.items() if k != name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=f"lack {name} and 0 more"):
        load_llm(str(folder), torch.float32, CPU)


def test_the_batch_statistics_of_a_gate_are_in_the_file(world: World, tmp_path: Path) -> None:
    model, config = world.built({"adapter.gate": "residual"})
    save_model(tmp_path / "model", model, config, world.folder.catalog)
    stored = load_file(tmp_path / "model" / WEIGHTS)
    buffers = {f"gate.{name}" for name, _ in model.gate.named_buffers()}
    assert len(buffers) == 3 * 19  # one normalisation at the start, two in each of nine blocks
    assert buffers <= stored.keys()
    del stored["gate.network.bn1.running_var"]
    save_file(stored, tmp_path / "model" / WEIGHTS)
    assert "running_var is absent" in refused(tmp_path / "model")


def test_a_folder_that_says_nothing_of_placeholders_has_them(copy: Path) -> None:
    rewrite(copy / "config.yaml", "placeholders: true\n", "")
    assert load_model(copy, device="cpu")[0].placeholders
