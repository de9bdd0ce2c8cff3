"""What torch.save wrote, read for its tensors: sound files to the bit, crafted ones not at all."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ilora.errors import InputError
from ilora.torch_checkpoints import read_checkpoint
from tests.ilora.pickle_writer import Made, Named, Outside, written
from tests.ilora.published_code import GRU, Caser, SASRec, lightning

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def read(path: Path) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def require_equal(found: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("model", [SASRec, GRU, Caser])
def test_a_whole_module_gives_the_tensors_of_its_state_dict(
    model: Any, zipped: bool, tmp_path: Path
) -> None:
    module = model(30, 8, 5)
    torch.save(module, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    require_equal(read(tmp_path / "x.pt"), module.state_dict())
    shell = read_checkpoint(tmp_path / "x.pt").module
    assert shell is not None
    assert (shell.kind, shell.part("state_size")) == (model.__name__, 5)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_type_and_layout_come_out_equal(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(24).reshape(2, 3, 4)
    state = {str(dtype): whole.to(dtype) for dtype in DTYPES}
    state |= {"view": whole[1, :, ::2], "turned": whole.permute(2, 0, 1), "scalar": torch.tensor(7)}
    state |= {"none": torch.empty(0, 3), "parameter": nn.Parameter(torch.ones(2))}
    torch.save(OrderedDict(state), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    require_equal(read(tmp_path / "x.pt"), state)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_state_dict_with_its_metadata_is_read(protocol: int, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    torch.save(state, tmp_path / "x.pt", pickle_protocol=protocol)
    require_equal(read(tmp_path / "x.pt"), state)


def test_a_lightning_checkpoint_gives_its_state_dict_and_settings(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2)}
    torch.save(lightning(state, lora_alpha=32, lr=1e-4, name="x"), tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert list(found.tensors) == ["a.weight"]
    assert found.settings == {"lora_alpha": 32, "lr": 1e-4, "name": "x"}


@pytest.mark.parametrize("zipped", [True, False])
def test_sizes_that_are_numpys_numbers_are_read_as_numbers(zipped: bool, tmp_path: Path) -> None:
    module = GRU(30, 8, 5)
    module.state_size = np.int64(7)  # type: ignore[assignment]
    torch.save(module, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    shell = read_checkpoint(tmp_path / "x.pt").module
    assert shell is not None
    assert (shell.part("state_size"), type(shell.part("state_size"))) == (7, int)


def archive(value: Any, path: Path, storages: dict[str, bytes] | None = None, **entry: Any) -> Path:
    """A zip archive as torch writes it around any pickle."""
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x/data.pkl", written(value, 2) if type(value) is not bytes else value)
        packed.writestr("x/byteorder", "little")
        for key, content in (storages or {}).items():
            packed.writestr(f"x/data/{key}", content, **entry)
    return path


def tensor(key: Any = "0", count: Any = 4, **changes: Any) -> Made:
    """A tensor of four floats in one storage."""
    storage = Outside(
        ("storage", changes.get("kind", Named("torch", "FloatStorage")), key, "cpu", count)
    )
    arguments = {"offset": 0, "shape": (4,), "stride": (1,), **changes}
    arguments.pop("kind", None)
    parts = (storage, *arguments.values(), False, Made(Named("collections", "OrderedDict")))
    return Made(Named("torch._utils", "_rebuild_tensor_v2"), parts)


def test_settings_of_lightnings_own_kind_are_read(tmp_path: Path) -> None:
    for module in ("pytorch_lightning.utilities.parsing", "lightning_fabric.utilities.data"):
        settings = Made(Named(module, "AttributeDict"))
        value = {"state_dict": {"a": tensor()}, "hyper_parameters": settings}
        archive(value, tmp_path / "x.ckpt", {"0": bytes(16)})
        assert read(tmp_path / "x.ckpt")["a"].tolist() == [0.0] * 4


WRONG = {
    "a storage that is missing": tensor(key="7"),
    "a key that is a path": tensor(key="../../data.pkl"),
    "a key that is a number": tensor(key=0),
    "a storage larger than the file": tensor(count=1 << 40),
    "a storage of negative size": tensor(count=-4),
    "fewer numbers than the tensor says": tensor(count=5, shape=(5,)),
    "a view beyond the storage": tensor(shape=(3,), offset=2),
    "a stride beyond the storage": tensor(stride=(2,)),
    "a view larger than the storage": tensor(shape=(1000, 1000), stride=(0, 0)),
    "a negative stride": tensor(stride=(-1,)),
    "a shape of texts": tensor(shape=("4",)),
    "a shape and a stride of other lengths": tensor(shape=(2, 2)),
    "a huge shape of nothing": tensor(shape=(1 << 60, 0), stride=(1, 1)),
    "a storage of an unknown type": tensor(kind=Named("torch", "QInt8Storage")),
    "a type instead of a storage": tensor(kind=Named("torch", "float32")),
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_tensor_that_does_not_add_up_is_refused(value: Made, tmp_path: Path) -> None:
    path = archive({"a": value}, tmp_path / "x.pt", {"0": bytes(16)})
    with pytest.raises(InputError) as refused:
        read(path)
    assert "\n" not in str(refused.value)


ATTACKS = [
    Made(Named("os", "system"), ("touch ran",)),
    Made(Named("posix", "system"), ("touch ran",)),
    Made(Named("builtins", "eval"), ("1",)),
    Made(Named("torch", "load"), ("x",)),
    Made(Named("torch.hub", "load"), ("x", "y")),
    Made(Named("torch.nn.modules.module", "Module.register_forward_hook"), ()),
    Made(Named("torch.nn.modules.container", "x.y"), ()),
    Made(Named("torch.nn.modules.a.b", "Linear"), ()),
    Made(Named("torch.nn.functional", "relu"), ()),
    Made(Named("os system", "SASRec"), ()),
    Made(Named("somewhere", "SASRecTrainer"), ()),
    Made(Named("torch", "FloatStorage"), (1 << 40,)),
    Made(Named("torch", "float32"), ()),
    Made(Named("argparse", "Namespace"), (), [1]),
    Outside(("storage",)),
    Outside("storage"),
    Outside(("module", "x", "y", "z")),
    Outside(7),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: str(getattr(a, "target", a))[:50])
def test_what_is_no_part_of_a_checkpoint_is_refused_wherever_it_stands(
    attack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Made(
        Named("recommender.x", "SASRec"), (), {"_parameters": {"a": tensor()}, "x": attack}
    )
    for value in (
        attack,
        {"a": tensor(), "b": attack},
        shell,
        lightning({"a": tensor()}, x=[attack]),
    ):
        if isinstance(value, dict) and "callbacks" in value:
            del value["callbacks"]
        path = archive(value, tmp_path / "x.pt", {"0": bytes(16)})
        with pytest.raises(InputError) as refused:
            read(path)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_module_of_another_class_is_refused_and_its_class_not_looked_up(tmp_path: Path) -> None:
    class Other(nn.Module):
        pass

    Other.__qualname__ = Other.__name__ = "Another"
    globals()["Another"] = Other
    try:
        torch.save(Other(), tmp_path / "x.pt")
    finally:
        del globals()["Another"]
    with pytest.raises(InputError, match="Another, which is not allowed"):
        read(tmp_path / "x.pt")


def test_modules_within_modules_without_end_are_refused(tmp_path: Path) -> None:
    shell = Made(Named("x", "SASRec"), (), {})
    shell.state["_modules"] = {"again": shell}
    path = archive(shell, tmp_path / "x.pt")
    with pytest.raises(InputError, match="nested too deeply"):
        read(path)


def test_modules_that_hold_the_same_modules_a_thousand_times_over_are_refused(
    tmp_path: Path,
) -> None:
    shell = Made(Named("x", "SASRec"), (), {"_parameters": {"a": tensor()}})
    for _ in range(10):  # 100 ** 10 paths through a small file
        shell = Made(Named("x", "SASRec"), (), {"_modules": {str(n): shell for n in range(100)}})
    path = archive(shell, tmp_path / "x.pt", {"0": bytes(16)})
    with pytest.raises(InputError, match="more than 10,000 modules"):
        read(path)


def test_modules_that_share_a_dict_of_many_parameters_are_refused(tmp_path: Path) -> None:
    many = {str(n): None for n in range(20_000)}
    inner = {str(n): Made(Named("x", "SASRec"), (), {"_parameters": many}) for n in range(60)}
    path = archive(Made(Named("x", "SASRec"), (), {"_modules": inner}), tmp_path / "x.pt")
    with pytest.raises(InputError, match="more than 1,000,000 parts"):
        read(path)


def test_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    zeros = {"0": bytes(1 << 20)}
    path = archive({"a": tensor()}, tmp_path / "x.pt", zeros, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is compressed"):
        read(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "cut off or not a pickle"),
        (b"PK\x03\x04 and nothing else", "refused"),
        (b"\x80\x02K\x01.", "not a file that torch.save wrote"),
        (b"<html>", "refused"),
    ],
)
def test_another_file_is_told(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(InputError, match=told):
        read(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "x.pt")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_any_byte_changed_is_read_or_refused(
    zipped: bool, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save(GRU(5, 4, 3), buffer, _use_new_zipfile_serialization=zipped)
    sound = buffer.getvalue()
    rng = random.Random(0)
    for _ in range(600):
        changed = bytearray(sound)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / "x.pt").write_bytes(
            changed[: rng.choice([len(changed), rng.randrange(len(changed))])]
        )
        with contextlib.suppress(InputError):  # anything else is a defect
            read(tmp_path / "x.pt")
