"""Methods compared fairly: equal learning rates and seeds for each, chosen on validation alone.

Every variant (LoRA, iLoRA with some number of experts and some gate) gets a run for each pair of a
learning rate and a seed. Its rate is the one with the best mean HitRatio@1 on the validation users;
only the runs at that rate are measured on the test users. Whatever is done already is kept, so a
stopped sweep goes on where it was, and one with further rates, seeds or variants adds their runs.

sweep.json            all trials and their outcomes, written anew after each
trials/NAME/          a training run each, see :mod:`ilora.run_folder`
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from ilora.comparison import average, compare, find_evaluation, read_answers
from ilora.config import RunSettings, read_settings
from ilora.data.folder import DataFolder
from ilora.data.sequences import Split
from ilora.errors import InputError
from ilora.evaluation.evaluate import evaluate
from ilora.evaluation.protocols import DECODES, Decode
from ilora.evaluation.records import METRICS_FILE, evaluation_folder
from ilora.evaluation.statistics import spread
from ilora.files import write_json
from ilora.model import ILoRARecommender
from ilora.model_folder import load_model
from ilora.run_folder import LOG_FILE, SETTINGS_FILE, is_finished, loss_curve, require_free
from ilora.training import PACKAGES, train

SWEEP_FILE = "sweep.json"
METHODS = ("lora", "ilora")
MEASURE = "hit_ratio_at_1"

_console = Console(stderr=True)


@dataclass(frozen=True)
class Variant:
    """A method, and of iLoRA the number of experts and the gate.

    Attributes:
        name: ``lora`` or ``ilora``, and what differs from the sweep's settings: ``ilora-8experts``.
        gate: its name; None for plain LoRA.
    """

    name: str
    method: str
    experts: int
    gate: str | None


@dataclass(frozen=True)
class Trial:
    """One run of the sweep."""

    variant: Variant
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant.name}-{self.learning_rate:g}-seed{self.seed}"

    def settings(self, base: RunSettings) -> RunSettings:
        """The sweep's settings with what is the trial's own.

        Raises:
            InputError: its experts or its gate do not fit the other settings.
        """
        own: dict[str, Any] = {
            "seed": self.seed,
            "adapter.method": self.variant.method,
            "training.learning_rate": self.learning_rate,
        }
        if self.variant.method == "ilora":
            own["adapter.num_experts"] = self.variant.experts
            if self.variant.gate != base.adapter.gate.name:  # else with the options that it has
                own["adapter.gate"] = self.variant.gate
        return read_settings(None, base.model_dump(mode="json") | own)

    def entry(self) -> dict[str, Any]:
        """What the table says of it before it has run."""
        told = asdict(self.variant)
        return {
            "variant": told.pop("name"),
            **told,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "run": f"trials/{self.name}",
            "status": "pending",
        }


def list_variants(
    base: RunSettings,
    methods: Sequence[str] = METHODS,
    experts: Sequence[int] = (),
    gates: Sequence[str] = (),
) -> list[Variant]:
    """Every method, iLoRA with each number of experts and each gate; without any, those of ``base``.

    One expert is plain LoRA, whatever the gate, and is there once.
    """
    lora = Variant("lora", "lora", 1, None)
    variants = []
    for method in methods:
        if method == "lora":
            variants.append(lora)
            continue
        for count in experts or [base.adapter.num_experts]:
            for gate in gates or [base.adapter.gate.name]:
                if count == 1:
                    variants.append(lora)
                    continue
                parts = [method]
                parts += [gate] if gate != base.adapter.gate.name else []
                parts += [f"{count}experts"] if count != base.adapter.num_experts else []
                variants.append(Variant("-".join(parts), method, count, gate))
    return list(dict.fromkeys(variants))


def run_sweep(
    base: RunSettings,
    out: Path,
    *,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    methods: Sequence[str] = METHODS,
    experts: Sequence[int] = (),
    gates: Sequence[str] = (),
    decode: Decode = "rank",
    device: str | None = None,
) -> dict[str, Any]:
    """Train and measure every trial, choose a rate for each variant, and test at that rate.

    Args:
        base: settings that all trials share but for what follows.
        out: a new folder, or that of an earlier sweep with the same settings.
        learning_rates, seeds: what each variant gets.
        methods, experts, gates: the variants, see `list_variants`.
        decode: how validation and test are measured.
        device: None takes CUDA if there is one.

    Returns:
        The content of ``sweep.json``: ``trials`` with their ``status`` (``pending``, ``finished`` or
        ``diverged``) and ``val``; ``selected``: the rate of each variant; ``test``: its mean, sd
        and interval over the seeds; ``comparisons``: of the first variant with each other one, each
        row counting with its mean over the seeds (see :mod:`ilora.comparison`).

    Raises:
        InputError: an empty or repeating list, an unknown method, gate or decode, experts that do
            not share the rank, or a trial folder of other settings.
    """
    _check(learning_rates, seeds, methods, experts, gates, decode)
    variants = list_variants(base, methods, experts, gates)
    trials = [Trial(v, rate, seed) for v in variants for rate in learning_rates for seed in seeds]
    for trial in trials:  # settings that do not fit are told before the first hours
        require_free(out / "trials" / trial.name, trial.settings(base), resume=True)
    table: dict[str, Any] = {
        "decode": decode,
        "settings": base.model_dump(mode="json"),
        "trials": [trial.entry() for trial in trials],
        "versions": {name: version(name) for name in PACKAGES},
    }
    folder = DataFolder.open(base.data)
    for number, (trial, entry) in enumerate(zip(trials, table["trials"], strict=True), start=1):
        _console.print(f"[bold]▸ {number} of {len(trials)}: {trial.name}[/bold]")
        entry |= outcome(trial, base, folder, out, decode, device)
        write_json(out / SWEEP_FILE, table)
    table["selected"] = select_rates(table["trials"])
    table |= _test(table, base, folder, out, device)
    write_json(out / SWEEP_FILE, table)
    return table


def select_rates(trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each variant the rate with the best mean validation figure; of equal ones the lower.

    A rate at which a seed diverged is not chosen.

    Raises:
        InputError: a variant without any other rate.
    """
    chosen = {}
    for variant in dict.fromkeys(trial["variant"] for trial in trials):
        means: dict[float, float] = {}
        own = [trial for trial in trials if trial["variant"] == variant]
        for rate in sorted({trial["learning_rate"] for trial in own}):
            there = [trial for trial in own if trial["learning_rate"] == rate]
            if all(trial["status"] == "finished" for trial in there):
                means[rate] = sum(trial["val"][MEASURE] for trial in there) / len(there)
        if not means:
            raise InputError(f"learning_rates: {variant} diverged at every one; give lower ones")
        chosen[variant] = max(means, key=lambda rate: (means[rate], -rate))
    return chosen


def _check(
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    methods: Sequence[str],
    experts: Sequence[int],
    gates: Sequence[str],
    decode: Decode,
) -> None:
    needed = {"learning_rates": learning_rates, "seeds": seeds, "methods": methods}
    for name, values in (needed | {"experts": experts, "gates": gates}).items():
        if (name in needed and not values) or len(set(values)) < len(values):
            raise InputError(f"{name}: {list(values)} must hold something, and nothing twice")
    if unknown := set(methods) - set(METHODS):
        raise InputError(f"methods: {unknown.pop()!r} is none; give some of {', '.join(METHODS)}")
    if (experts or gates) and "ilora" not in methods:
        raise InputError("methods: experts and gates are those of ilora; add it")
    if decode not in DECODES:
        raise InputError(f"decode is {decode!r}; it must be one of {', '.join(DECODES)}")
    if bad := [rate for rate in learning_rates if not (math.isfinite(rate) and rate > 0)]:
        raise InputError(f"learning_rates: {bad[0]} is no rate; give numbers above 0")
    if bad_seeds := [seed for seed in seeds if seed < 0]:
        raise InputError(f"seeds: {bad_seeds[0]} is negative; give 0 or more")


def outcome(
    trial: Trial,
    base: RunSettings,
    folder: DataFolder,
    out: Path,
    decode: Decode,
    device: str | None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Train the trial, unless it has ended, and measure it on validation, unless that is done."""
    run = out / "trials" / trial.name
    model: ILoRARecommender | None = None
    if not ((run / SETTINGS_FILE).is_file() and is_finished(run)):
        model = train(trial.settings(base), run, resume=run.exists(), device=device).model
    record = json.loads((run / LOG_FILE).read_text(encoding="utf-8"))
    told = {"seconds": record["seconds"], "trainable_parameters": record["trainable_parameters"]}
    losses = [loss for key in ("loss", "eval_loss") for _, loss in loss_curve(record, key)]
    if not all(math.isfinite(loss) for loss in losses):
        return told | {"status": "diverged"}
    metrics = measured(run, "val", base, folder, decode, device, model, batch_size)
    validation = loss_curve(record, "eval_loss")
    loss = validation[-1][1] if validation else None
    return told | {"status": "finished", "val": short_metrics(metrics) | {"loss": loss}}


def measured(
    run: Path,
    split: Split,
    base: RunSettings,
    folder: DataFolder,
    decode: Decode,
    device: str | None,
    model: ILoRARecommender | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """The metrics of a run on a split, measured now if they are not there for this very data."""
    place = evaluation_folder(run, f"{split}-{decode}")
    wanted = (folder.sha256, base.training.min_history)
    if (place / METRICS_FILE).is_file():
        metrics = json.loads((place / METRICS_FILE).read_text(encoding="utf-8"))
        if (metrics["data"]["sha256"], metrics["min_history"]) == wanted:
            return metrics
    if model is None:
        model, _, _ = load_model(run, llm=base.llm, device=device)
    return evaluate(
        model,
        folder,
        split,
        decode=decode,
        out=place,
        batch_size=batch_size,
        min_history=base.training.min_history,
        seed=base.seed,
    )


def _test(
    table: dict[str, Any],
    base: RunSettings,
    folder: DataFolder,
    out: Path,
    device: str | None,
) -> dict[str, Any]:
    """Measure the chosen trials on the test users, and compare the variants there with the first."""
    rows, variants = [], []
    for variant, rate in table["selected"].items():
        own = [
            trial
            for trial in table["trials"]
            if (trial["variant"], trial["learning_rate"]) == (variant, rate)
        ]
        for trial in own:
            metrics = measured(out / trial["run"], "test", base, folder, table["decode"], device)
            trial["test"] = short_metrics(metrics)
        seeds = {"variant": variant, "learning_rate": rate, "seeds": [t["seed"] for t in own]}
        rows.append(
            seeds
            | {split: asdict(spread([t[split][MEASURE] for t in own])) for split in ("val", "test")}
        )
        label = f"test-{table['decode']}"
        answers = [read_answers(find_evaluation(out / t["run"], label), variant) for t in own]
        variants.append(average(answers, variant))
    several = len(variants) > 1
    compared = compare(variants, seed=base.seed, first_only=True) if several else []
    return {"test": rows, "comparisons": [one.to_dict() for one in compared]}


def short_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    names = (MEASURE, "hit_ratio_at_1_valid", "valid_ratio", "mrr", "ndcg@10", "n")
    return {name: metrics[name] for name in names if name in metrics}
