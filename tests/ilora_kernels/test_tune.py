"""The command that measures block sizes: what it tries, in which passes, and what it writes."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from ilora_kernels import tune
from ilora_kernels.backends import triton as backend
from ilora_kernels.backends.triton import configs
from ilora_kernels.backends.triton.configs import PassConfig
from ilora_kernels.tuning import measuring, passes
from ilora_kernels.tuning.candidates import candidates

H100_SHARED_BYTES = 228 * 1024  # of a multiprocessor
PROBLEMS = [
    pytest.param(role, *problem, id=f"{role}-{'-'.join(map(str, problem))}")
    for role in configs.ROLES
    for problem in product(*passes.grid(role))
]
Outcomes = list[float | str]


def default_table() -> configs.Table:
    return configs.load(tune.DEFAULT)


def chosen(table: configs.Table, role: str, rows: int, rank: int, columns: int = 0) -> Any:
    with configs.using(table):
        return configs.choose(role, rows, rank, 0, columns)


# ---- What is tried


@pytest.mark.parametrize(("role", "rows", "rank", "columns"), PROBLEMS)
def test_what_is_in_use_is_tried_first_and_nothing_twice(
    role: str, rows: int, rank: int, columns: int
) -> None:
    default = chosen(default_table(), role, rows, rank, columns)
    tried = candidates(role, rows, H100_SHARED_BYTES, default)
    assert tried[0] == default
    assert len(tried) > 1
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize("shared_bytes", [100 * 1024, H100_SHARED_BYTES])
@pytest.mark.parametrize("rows", passes.grid("decode").rows)
def test_blocks_of_decoding_leave_each_other_room(rows: int, shared_bytes: int) -> None:
    default = chosen(default_table(), "decode", rows, 16)
    _, *others = candidates("decode", rows, shared_bytes, default)
    assert others
    for config in others:
        step_bytes = 2 * (config.block_n + rows) * config.block_k
        assert config.blocks * (config.num_stages * step_bytes + 1024) <= shared_bytes
        assert config.num_stages >= 2


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int, int]]]:
    """Passes that launch nothing, as on an H100; list what they choose block sizes for."""
    asked: list[tuple[str, int, int, int]] = []

    def choose(role: str, rows: int, rank: int, device: int, columns: int = 0) -> Any:
        asked.append((role, rows, rank, columns))
        return configs.choose(role, rows, rank, device, columns)

    replaced: dict[str, Any] = {
        "choose": choose,
        "launch": lambda *_, **__: None,
        "current_device": lambda: 0,
        "has_copy_engine": lambda _: True,
        "holds_product": lambda _: True,
        "can_overlap": lambda _: True,
        "can_flatten": lambda _: True,
        "multiprocessors": lambda _: 132,
    }
    for name in ("linear", "shrink", "gradients", "delta", "decode", "configs"):
        module = importlib.import_module(f"{backend.__name__}.{name}")
        for attribute, value in replaced.items():
            if hasattr(module, attribute) and (name, attribute) != ("configs", "choose"):
                monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(backend, "_check_device", lambda _: None)
    configs.fusing_pays.cache_clear()
    monkeypatch.setattr(passes, "random", lambda *s: torch.empty(*s, device="meta").bfloat16())
    monkeypatch.setattr(passes, "random_gate", lambda n: torch.empty(n, 4, device="meta"))
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    monkeypatch.setattr(passes, "draw_seed", lambda _: seed)
    yield asked
    configs.fusing_pays.cache_clear()  # what it found for 132 multiprocessors is no other test's


@pytest.mark.parametrize(("role", "rows", "rank", "columns"), PROBLEMS)
def test_what_is_measured_for_a_role_chooses_its_block_sizes(
    on_paper: list[tuple[str, int, int, int]], role: str, rows: int, rank: int, columns: int
) -> None:
    for run in passes.passes(role, rows, rank, columns):
        on_paper.clear()
        run()
        assert (role, rows, rank) in {asked[:3] for asked in on_paper}


def test_narrow_weights_are_measured_apart_from_wide_ones(
    on_paper: list[tuple[str, int, int, int]],
) -> None:
    measured = []
    for columns in passes.grid("decode").columns:
        on_paper.clear()
        for run in passes.passes("decode", 16, 16, columns):
            run()
        measured.append({d_out for *_, d_out in on_paper})
    assert measured == [{4096}, {11008, 14336}]


# ---- How candidates are compared


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without a GPU: passes run once, and the nth graph takes n microseconds."""

    def medians(graphs: Sequence[Any], rounds: int) -> list[float]:
        return [float(i + 1) for i in range(len(graphs))]

    monkeypatch.setattr(measuring, "replayed", lambda run: measuring.Captured(None, run()))  # type: ignore[arg-type]
    monkeypatch.setattr(measuring, "medians_us", medians)


def tables(*heights: int) -> list[configs.Table]:
    """A table for each block height of ``delta``."""
    return [{"delta": [{"config": asdict(PassConfig(t, 64, 4, 1))}]} for t in heights]


def result_of(wrong: dict[int, Any]) -> Callable[[], Sequence[Tensor]]:
    """A pass that fails or is off by a factor at some block heights."""

    def run() -> Sequence[Tensor]:
        factor = wrong.get(configs.choose("delta", 1, 1, 0).block_t, 1.0)
        if isinstance(factor, Exception):
            raise factor
        return [torch.full((4,), 2.0), torch.full((2,), 3.0) * factor]

    return run


def test_the_time_of_a_candidate_is_the_geometric_mean_over_passes(uncaptured: None) -> None:
    found = measuring.measure([result_of({}), result_of({})], tables(16, 32), 1)
    assert found == [statistics.geometric_mean([1, 2]), statistics.geometric_mean([3, 4])]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (1.1, "its relative error is 0.1"),
        (float("nan"), "its relative error is inf"),
        (OutOfResources(3, 2, "shared memory"), "it does not run here: out of resource"),
        (RuntimeError("PassManager::run failed"), "it does not run here: PassManager"),
    ],
)
def test_a_candidate_that_fails_or_differs_is_left_out_with_the_reason(
    uncaptured: None, failure: Any, reason: str
) -> None:
    passes_of_role = [result_of({}), result_of({32: failure})]
    first, second, third = measuring.measure(passes_of_role, tables(16, 32, 64), 1)
    assert isinstance(second, str)
    assert second.startswith(reason)
    assert [first, third] == [statistics.geometric_mean(pair) for pair in ([1, 2], [3, 4])]


def test_rounding_is_no_difference(uncaptured: None) -> None:
    rounded = 1 + torch.finfo(torch.bfloat16).eps
    assert measuring.measure([result_of({32: rounded})], tables(16, 32), 1) == [1.0, 2.0]


def test_nothing_is_compared_where_what_is_in_use_does_not_run(uncaptured: None) -> None:
    failure = OutOfResources(3, 2, "shared memory")
    found = measuring.measure([result_of({16: failure})], tables(16, 32), 1)
    assert "out of resource" in str(found[0])
    assert found[1] == "there is nothing to compare it with"


def test_memory_that_runs_out_is_no_candidates_fault(uncaptured: None) -> None:
    failure = torch.OutOfMemoryError("no memory left")
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        measuring.measure([result_of({32: failure})], tables(16, 32), 1)


# ---- What is chosen and written


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Outcomes]:
    """Tune without a GPU; the outcomes of candidates are what the list holds last."""
    properties = SimpleNamespace(shared_memory_per_multiprocessor=H100_SHARED_BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(tune, "passes", lambda *_: [])
    outcomes: list[Outcomes] = []

    def measure(_: Any, tables: Sequence[Any], rounds: int) -> Outcomes:
        return (outcomes[-1] + [9.0] * len(tables))[: len(tables)]

    monkeypatch.setattr(tune, "measure", measure)
    return outcomes


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        pytest.param([1.0, 0.98], 1, id="two percent are a gain"),
        pytest.param([1.0, 0.995], 0, id="half a percent is none"),
        pytest.param([1.0, "it is wrong", 0.5], 2, id="one is left out"),
        pytest.param(["it does not run here"] * 9, 0, id="nothing runs"),
    ],
)
def test_what_is_in_use_stays_unless_another_is_faster_by_a_percent(
    measured: list[Outcomes], outcomes: Outcomes, best: int
) -> None:
    measured.append(outcomes)
    default = default_table()
    found = tune.tune(["delta"], report=str)
    for rows, rank in ((2048, 16), (2049, 17), (2**20, 512)):
        in_use = chosen(default, "delta", rows, rank)
        tried = candidates("delta", rows, H100_SHARED_BYTES, in_use)
        assert chosen(found, "delta", rows, rank) == tried[best]


def test_what_is_left_out_is_reported_with_the_reason(measured: list[Outcomes]) -> None:
    measured.append([1.0, "its relative error is 0.1"])
    lines: list[str] = []
    tune.tune(["delta"], report=lines.append)
    assert lines[0].startswith("Left out for delta, rows 2048, rank 16: PassConfig(block_t=")
    assert lines[0].endswith("; its relative error is 0.1.")
    assert lines[1].startswith("  1/9 ")


def test_where_nothing_is_faster_the_table_chooses_what_the_default_does(
    measured: list[Outcomes],
) -> None:
    measured.append([1.0])
    default, found = default_table(), tune.tune(report=str)
    for role in configs.ROLES:
        for problem in product(*passes.grid(role)):
            assert chosen(default, role, *problem) == chosen(found, role, *problem)


def test_narrow_weights_and_wide_ones_have_buckets_of_their_own(
    measured: list[Outcomes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_narrow_gain(role: str, rows: int, rank: int, columns: int) -> list[Any]:
        measured.append([1.0, 0.5] if columns == passes.NARROW else [1.0])
        return []

    monkeypatch.setattr(tune, "passes", only_narrow_gain)
    default, lines = default_table(), list[str]()
    found = tune.tune(["decode"], report=lines.append)
    assert lines[0].startswith("  1/8 ")
    assert "  decode, rows 16, rank 16, columns 8192: 0.5 us instead of 1.0, " in lines[0]
    for rows in (1, 64, 65, 128):
        for columns in (8193, 2**20):
            in_use = chosen(default, "decode", rows, 16, columns)
            assert chosen(found, "decode", rows, 16, columns) == in_use
        for columns in (1, 8192):
            in_use = chosen(default, "decode", rows, 16, columns)
            assert chosen(found, "decode", rows, 16, columns) != in_use


def test_roles_that_are_not_named_keep_the_default(measured: list[Outcomes]) -> None:
    measured.append([1.0, 0.5])
    default, found = default_table(), tune.tune(["decode", "delta"], report=str)
    assert {role for role in configs.ROLES if found[role] != default[role]} == {"decode", "delta"}


def test_buckets_that_repeat_the_next_of_their_rank_are_merged() -> None:
    problems, (a, b) = passes.Grid((1, 2, 3), (16, 32)), ({"block_t": 16}, {"block_t": 32})
    found = [(1, 16, a), (2, 16, a), (3, 16, b), (1, 32, b), (2, 32, b), (3, 32, b)]
    assert tune.merged([tune.bucket(problems, n, r, 0, config) for n, r, config in found]) == [
        {"max_rows": 2, "max_rank": 16, "config": a},
        {"max_rank": 16, "config": b},
        {"config": b},
    ]


def test_buckets_of_narrow_weights_are_not_merged_into_those_of_wide_ones() -> None:
    problems, (a, b) = passes.Grid((1, 2), (16,), (8, 9)), ({"block_n": 16}, {"block_n": 32})
    found = [(1, 16, 8, a), (2, 16, 8, b), (1, 16, 9, b), (2, 16, 9, b)]
    assert tune.merged([tune.bucket(problems, *one) for one in found]) == [
        {"max_rows": 1, "max_columns": 8, "config": a},
        {"max_columns": 8, "config": b},
        {"config": b},
    ]


def test_roles_are_read_in_their_own_order() -> None:
    assert tune.named_roles("decode, shrink alone,linear") == ["linear", "shrink alone", "decode"]


@pytest.fixture
def gpu_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA X")


def test_the_file_that_is_written_is_read_again(
    measured: list[Outcomes], gpu_named: None, tmp_path: Path
) -> None:
    measured.append([1.0, 0.5])
    out = tmp_path / "mine.json"
    tune.main(["--roles", "shrink alone,decode", "--out", str(out)])
    assert configs.load(out) == tune.tune(["shrink alone", "decode"], report=str)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["gpu"] == "NVIDIA X"
    command = 'python -m ilora_kernels.tune --roles "shrink alone,decode"'
    assert told["note"] == f"{command}, torch {torch.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--roles", "delta,shrunk"], "'shrunk' is no role; name some of: linear, "),
        (["--roles", ""], "'' is no role; name some of: linear, "),
        (["--rounds", "0"], "'0' is no number of rounds; give 1 or more."),
        (["--out", "missing/mine.json"], "missing is no folder to write into; name a file"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_measured(
    gpu_named: None, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(arguments)
    assert message in capsys.readouterr().err


def test_without_a_gpu_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="1"):
        tune.main([])
    assert "There is no GPU here" in capsys.readouterr().err


# ---- On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("role", ["delta", "decode"])
def test_a_role_is_tuned_on_this_gpu(
    role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        tune, "grid", lambda _: passes.Grid((16 if role == "decode" else 2048,), (16,))
    )
    monkeypatch.setattr(passes, "DECODE_SHAPES", ((1024, 512), (512, 1024)))
    monkeypatch.setattr(passes, "LAYERS", 2)
    out = tmp_path / "mine.json"
    tune.main(["--roles", role, "--rounds", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "Left out" not in printed
    assert "  1/1 " in printed
    assert chosen(configs.load(out), role, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_replay_that_computes_longer_takes_longer() -> None:
    short, long = torch.randn(256, 256, device="cuda"), torch.randn(4096, 4096, device="cuda")
    graphs = [measuring.replayed(lambda x=x: [x @ x]).graph for x in (short, long)]  # type: ignore[misc]
    little, much = measuring.medians_us(graphs, 3)
    assert 0 < 10 * little < much
