"""Block sizes by shape bucket: which counts, what is refused, and when the fused product pays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from ilora_kernels.backends.triton import configs


@pytest.fixture
def fresh_tables() -> Iterator[None]:
    for step in range(2):
        configs._path.cache_clear()
        configs.choose.cache_clear()
        if step == 0:
            yield


def write_table(path: Path, **roles: Any) -> None:
    shipped = json.loads((configs.TUNED_FOLDER / "default.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps({"roles": shipped["roles"] | roles}), encoding="utf-8")


def pass_config(block_t: int) -> dict[str, int]:
    return {"block_t": block_t, "block_d": 64, "num_warps": 4, "num_stages": 2}


def test_the_first_bucket_that_fits_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    buckets = [
        {"max_rows": 100, "max_rank": 16, "config": pass_config(16)},
        {"max_rank": 16, "config": pass_config(32)},
        {"max_rows": 100, "config": pass_config(64)},
        {"config": pass_config(128)},
    ]
    write_table(tmp_path / "mine.json", shrink=buckets)
    monkeypatch.setenv("ILORA_TUNED", str(tmp_path / "mine.json"))
    expected = {(100, 16): 16, (101, 16): 32, (100, 17): 64, (101, 17): 128}
    for (rows, rank), block_t in expected.items():
        assert configs.choose("shrink", rows, rank, 0) == configs.PassConfig(block_t, 64, 4, 2)
    assert isinstance(configs.choose("linear", 100, 16, 0), configs.LinearConfig)


def test_buckets_of_decoding_end_at_a_number_of_columns_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    def taken(block_n: int) -> configs.DecodeConfig:
        return configs.DecodeConfig(block_n, 128, 1, 8, True, 4, 4)

    buckets = [
        {"max_rows": 64, "config": asdict(taken(16))},
        {"max_columns": 8192, "config": asdict(taken(32))},
        {"max_columns": 16384, "config": asdict(taken(64))},
    ]
    write_table(tmp_path / "mine.json", decode=buckets)
    monkeypatch.setenv("ILORA_TUNED", str(tmp_path / "mine.json"))
    expected = {(64, 8192): 16, (64, 99999): 16, (65, 8192): 32, (65, 8193): 64, (128, 16384): 64}
    for (rows, columns), block_n in expected.items():
        assert configs.choose("decode", rows, 16, 0, columns) == taken(block_n)
    with pytest.raises(LookupError, match="'decode' takes 65 rows and rank 16 for 16385 columns"):
        configs.choose("decode", 65, 16, 0, 16385)


def test_a_shape_that_no_bucket_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    write_table(tmp_path / "mine.json", delta=[{"max_rows": 100, "config": pass_config(16)}])
    monkeypatch.setenv("ILORA_TUNED", str(tmp_path / "mine.json"))
    with pytest.raises(LookupError, match="'delta' takes 101 rows and rank 4"):
        configs.choose("delta", 101, 4, 0)


@pytest.mark.parametrize("content", [None, "", "{}", "[", "[]", '{"gpu": null}'])
def test_a_file_that_holds_no_block_sizes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None, content: str | None
) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("ILORA_TUNED", str(path))
    with pytest.raises(ValueError, match=r"mine\.json is not a file of block sizes"):
        configs.choose("delta", 1, 1, 0)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_a_tile_in_parts_that_its_halves_do_not_have_is_refused(parts: int) -> None:
    with pytest.raises(ValueError, match=f"parts is {parts}; a tile leaves in 2 or 4 parts"):
        configs.LinearConfig(128, 256, 64, parts, 16, False, 8, 3)


def test_a_file_without_a_role_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    path = tmp_path / "mine.json"
    write_table(path)
    table = json.loads(path.read_text(encoding="utf-8"))
    del table["roles"]["shrink dropout"]
    path.write_text(json.dumps(table), encoding="utf-8")
    monkeypatch.setenv("ILORA_TUNED", str(path))
    with pytest.raises(ValueError, match=r"mine\.json lacks the roles shrink dropout;"):
        configs.choose("delta", 1, 1, 0)


@pytest.mark.parametrize("path", sorted(configs.TUNED_FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_a_shipped_file_takes_every_shape_in_every_role(
    path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tables: None
) -> None:
    monkeypatch.setenv("ILORA_TUNED", str(path))
    for role in configs.ROLES:
        for rows in (1, 1024, 2048, 2049, 8192, 8193, 2**24):
            for rank in (1, 16, 32, 33, 64, 512):
                for columns in (1, 2**24) if role == "decode" else (0,):
                    assert configs.choose(role, rows, rank, 0, columns)


@pytest.mark.parametrize(
    ("gpu", "name"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb")],
)
def test_a_gpu_has_a_file_of_its_own_name(gpu: str, name: str) -> None:
    assert configs.tuned_path(gpu) == configs.TUNED_FOLDER / f"{name}.json"


TILE = (128, 256)


@pytest.mark.parametrize(
    ("rows", "columns", "depth", "pays"),
    [
        pytest.param(128, 256, 4096, False, id="one tile"),
        pytest.param(512, 1024, 4096, False, id="few tiles"),
        pytest.param(128 * 132, 256, 4096, True, id="a full round"),
        pytest.param(128 * 132, 256 * 8, 11008, True, id="eight full rounds"),
        pytest.param(16384, 11008, 4096, True, id="a large layer"),
    ],
)
def test_fusing_pays_where_few_multiprocessors_are_idle(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, depth: int, pays: bool
) -> None:
    monkeypatch.setattr(configs, "multiprocessors", lambda _: 132)
    configs.fusing_pays.cache_clear()
    assert configs.fusing_pays(rows, columns, depth, TILE, 0) is pays
    configs.fusing_pays.cache_clear()
