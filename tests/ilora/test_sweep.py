"""A sweep is fair, chooses on validation alone, and does nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import ilora.sweep
from ilora.comparison import average, compare, read_answers
from ilora.config import read_settings
from ilora.errors import InputError
from ilora.gate_config import MLP, TopK
from ilora.sweep import Trial, Variant, list_variants, run_sweep, select_rates
from ilora.training import train
from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")
RATES, SEEDS = (1e-3, 3e-2), (0, 1)
LORA = Variant("lora", "lora", 1, None)


def sweep(world: World, out: Path, **options: Any) -> dict[str, Any]:
    plan = {"learning_rates": RATES, "seeds": SEEDS, "device": "cpu"} | options
    settings = world.settings({"training.max_steps": 2, "training.evaluations": 1})
    return run_sweep(settings, out, **plan)


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, sweep(world, out)


Done = tuple[Path, dict[str, Any]]


def metrics(out: Path, trial: dict[str, Any], split: str) -> dict[str, Any]:
    file = out / trial["run"] / "evaluation" / f"{split}-rank" / "metrics.json"
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return told


def test_every_method_gets_every_rate_with_every_seed(done: Done) -> None:
    out, table = done
    told = [(t["method"], t["learning_rate"], t["seed"]) for t in table["trials"]]
    assert told == [(m, r, s) for m in ("lora", "ilora") for r in RATES for s in SEEDS]
    for trial in table["trials"]:
        assert trial["status"] == "finished"
        assert trial["val"]["hit_ratio_at_1"] == metrics(out, trial, "val")["hit_ratio_at_1"]
        assert trial["val"]["loss"] > 0
    assert json.loads((out / "sweep.json").read_text()) == json.loads(json.dumps(table))


def test_a_trial_differs_from_the_settings_in_method_rate_and_seed_alone(world: World) -> None:
    base = world.settings()
    tree = Trial(LORA, 0.5, 7).settings(base).model_dump()
    assert (tree["adapter"]["method"], tree["training"]["learning_rate"], tree["seed"]) == (
        "lora",
        0.5,
        7,
    )
    tree["adapter"]["method"] = base.adapter.method
    tree["training"]["learning_rate"] = base.training.learning_rate
    tree["seed"] = base.seed
    assert tree == base.model_dump()


def test_an_ilora_trial_has_its_experts_and_gate_and_keeps_the_options_of_the_gate_it_shares(
    world: World,
) -> None:
    base = world.settings({"adapter.gate": {"name": "top-k", "k": 1}})
    own, other = list_variants(base, ["ilora"], [2], ["top-k", "mlp"])
    adapter = Trial(own, 1e-3, 0).settings(base).adapter
    assert (adapter.experts, adapter.gate) == (2, TopK(k=1))
    adapter = Trial(other, 1e-3, 0).settings(base).adapter
    assert (adapter.experts, adapter.gate) == (2, MLP())


def test_variants_are_named_by_what_differs_and_one_expert_is_lora(world: World) -> None:
    base = world.settings()  # four experts, linear gate

    def names(*plan: Any) -> list[str]:
        return [variant.name for variant in list_variants(base, *plan)]

    assert names() == ["lora", "ilora"]
    assert names(("lora", "ilora"), [1, 2, 4, 8]) == [
        "lora",
        "ilora-2experts",
        "ilora",
        "ilora-8experts",
    ]
    assert names(["ilora"], (), ["linear", "mlp"]) == ["ilora", "ilora-mlp"]
    assert names(["ilora"], [1, 2], ["linear", "mlp"]) == [
        "lora",
        "ilora-2experts",
        "ilora-mlp-2experts",
    ]


def test_a_sweep_of_experts_and_gates_compares_every_variant_with_the_first(
    done: Done, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[str] = []

    def count(settings: Any, out: Path, **options: Any) -> Any:
        trained.append(out.name)
        return train(settings, out, **options)

    monkeypatch.setattr(ilora.sweep, "train", count)
    earlier, _ = done
    out = shutil.copytree(earlier, tmp_path / "out")  # with what lora and ilora have already
    plan: Any = {"experts": [1, 2, 4], "gates": ["linear", "uniform"]}
    table = sweep(world, out, learning_rates=RATES[:1], seeds=SEEDS[:1], **plan)
    variants = ["lora", "ilora-2experts", "ilora-uniform-2experts", "ilora", "ilora-uniform"]
    assert list(table["selected"]) == [row["variant"] for row in table["test"]] == variants
    assert trained == [
        f"{name}-0.001-seed0"
        for name in ("ilora-2experts", "ilora-uniform-2experts", "ilora-uniform")
    ]
    pairs = [(one["first"], one["second"]) for one in table["comparisons"]]
    assert pairs == [("lora", other) for other in variants[1:]]
    two = next(t for t in table["trials"] if t["variant"] == "ilora-uniform-2experts")
    assert (two["method"], two["experts"], two["gate"]) == ("ilora", 2, "uniform")
    saved = read_settings(out / two["run"] / "settings.yaml", {}).adapter
    assert (saved.experts, saved.gate.name) == (2, "uniform")


def test_only_the_chosen_runs_meet_the_test_users(done: Done) -> None:
    out, table = done
    for trial in table["trials"]:
        chosen = table["selected"][trial["variant"]] == trial["learning_rate"]
        assert ("test" in trial) == chosen
        assert (out / trial["run"] / "evaluation" / "test-rank").exists() == chosen


def test_the_test_figures_are_means_over_seeds_with_their_interval(done: Done) -> None:
    out, table = done
    for row in table["test"]:
        own = [
            t
            for t in table["trials"]
            if (t["variant"], t["learning_rate"]) == (row["variant"], row["learning_rate"])
        ]
        values = [metrics(out, trial, "test")["hit_ratio_at_1"] for trial in own]
        assert row["seeds"] == list(SEEDS)
        assert row["test"]["mean"] == pytest.approx(np.mean(values))
        assert row["test"]["sd"] == pytest.approx(np.std(values, ddof=1))
        half = scipy.stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / np.sqrt(2)
        assert row["test"]["ci95"] == pytest.approx(
            (np.mean(values) - half, np.mean(values) + half)
        )


def test_methods_are_compared_by_their_mean_over_seeds(done: Done) -> None:
    out, table = done
    methods = []
    for method in ("lora", "ilora"):
        own = [t for t in table["trials"] if t["method"] == method and "test" in t]
        folders = [out / t["run"] / "evaluation" / "test-rank" for t in own]
        methods.append(average([read_answers(folder, method) for folder in folders], method))
    assert table["comparisons"] == [one.to_dict() for one in compare(methods)]


def test_a_sweep_that_has_ended_is_not_done_again(
    done: Done, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = done

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was done already")

    for name in ("train", "evaluate", "load_model"):
        monkeypatch.setattr(ilora.sweep, name, refuse)
    assert json.loads(json.dumps(sweep(world, out))) == json.loads(json.dumps(table))


def test_a_stopped_sweep_goes_on_and_ends_as_an_unbroken_one(
    done: Done, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def stop_at_the_third(settings: Any, out: Path, **options: Any) -> Any:
        calls.append(out)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(settings, out, **options)

    monkeypatch.setattr(ilora.sweep, "train", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep(world, tmp_path)
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert [t["status"] for t in table["trials"]] == ["finished"] * 2 + ["pending"] * 6
    again = sweep(world, tmp_path)
    assert len(calls) == 3 + 6
    for ours, theirs in zip(again["trials"], done[1]["trials"], strict=True):
        assert ours["val"] == theirs["val"]
    assert again["test"] == done[1]["test"]


def test_a_run_that_diverged_is_told_and_its_rate_not_chosen(
    done: Done, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(settings: Any, out: Path, **options: Any) -> Any:
        result = train(settings, out, **options)
        if settings.training.learning_rate == RATES[1] and settings.seed == 1:
            record = json.loads((out / "training.json").read_text())
            record["log"].append({"step": 2, "loss": float("nan")})
            (out / "training.json").write_text(json.dumps(record))
        return result

    monkeypatch.setattr(ilora.sweep, "train", diverge)
    table = sweep(world, tmp_path, methods=["lora"])
    assert [t["status"] for t in table["trials"]] == ["finished"] * 3 + ["diverged"]
    assert table["selected"] == {"lora": RATES[0]}
    assert table["comparisons"] == []


def trial(
    rate: float, figure: float | None, variant: str = "lora", test: float = 0
) -> dict[str, Any]:
    status = "diverged" if figure is None else "finished"
    told: dict[str, Any] = {"variant": variant, "learning_rate": rate, "status": status}
    return told | {"val": {"hit_ratio_at_1": figure}, "test": {"hit_ratio_at_1": test}}


def test_the_rate_is_chosen_by_the_mean_over_seeds_on_validation() -> None:
    trials = [trial(1, 0.9), trial(1, 0.1, test=1), trial(2, 0.6), trial(2, 0.6)]
    other = [trial(1, 0.2, "ilora"), trial(2, 0.1, "ilora")]
    assert select_rates([*trials, *other]) == {"lora": 2, "ilora": 1}


def test_of_equal_rates_the_lower_is_chosen() -> None:
    assert select_rates([trial(3, 0.5), trial(1, 0.5), trial(2, 0.5)]) == {"lora": 1}


def test_a_variant_that_diverged_everywhere_is_told() -> None:
    with pytest.raises(InputError, match="lora diverged at every one"):
        select_rates([trial(1, 0.5), trial(1, None)])


def test_a_trial_of_other_settings_is_refused_before_anything_is_trained(
    done: Done, world: World
) -> None:
    out, _ = done
    with pytest.raises(InputError, match=r"^out: adapter\.rank differs"):
        run_sweep(
            world.settings({"training.max_steps": 2, "training.evaluations": 1, "adapter.rank": 4}),
            out,
            learning_rates=(5e-4, *RATES),
            seeds=SEEDS,
        )
    assert not (out / "trials" / Trial(LORA, 5e-4, 0).name).exists()


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "nothing twice"),
        ({"seeds": [-1]}, "-1 is negative"),
        ({"learning_rates": [0.0]}, "0.0 is no rate"),
        ({"learning_rates": [float("nan")]}, "nan is no rate"),
        ({"methods": ["dora"]}, "'dora' is none"),
        ({"decode": "beam"}, "decode is 'beam'"),
        ({"experts": [2, 2]}, "experts: .* nothing twice"),
        ({"experts": [3]}, "rank 8 is not a multiple of 3 experts"),
        ({"gates": ["top"]}, "adapter.gate in the options is 'top'; choose one of linear"),
        ({"gates": ["mlp"], "methods": ["lora"]}, "those of ilora; add it"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    world: World, tmp_path: Path, plan: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        sweep(world, tmp_path / "out", **plan)
    assert not (tmp_path / "out").exists()
