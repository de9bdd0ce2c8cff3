"""What is stored of a case: the ``extra_info`` of its line in pytest-benchmark's JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases import DECODE, GENERATE, LAYER, LINEAR, MODEL, ONTO, Case
from benchmarks.contest import Result, Results
from benchmarks.models import model_flop
from benchmarks.problems import necessary_bytes, necessary_flop
from benchmarks.serving import NEW_TOKENS
from benchmarks.timing import median_of_ratios, ratio_of_medians


def record(suite: str, case: Case, result: Result, results: Results) -> dict[str, Any]:
    """All that the reports need: what was measured, of what, and against what.

    Args:
        suite: the file that the case is in: ``linear``, ``variants``, ``peers``, ``overhead``, ``model``,
            ``decode``, ``generate``.

    Keys that need explaining:
        device_us: median over the rounds; ``p20_us`` and ``p80_us`` are the spread.
        ratio: the ratio of the medians to the frozen layer's; ``ratio_of_rounds`` the median of the
            rounds' ratios.
        tflops, gb_per_s: the formula's operations and the bytes that must move over the median.
        peak_mib: above the inputs; None on a CPU.
        cpu_us: until the call returns to Python with its work enqueued.
        first_call_s: the first call of the process, with whatever was compiled for it.
        enqueued_ahead: share of the rounds whose launching the device did not wait for.
        copy_share: ``gb_per_s`` over that of a plain copy in the same rounds.
        frozen_copy_share: the same of the frozen layers, which move no adapter.
        tokens_per_s: new tokens of all rows over the median, the prompt's pass included.
    """
    timing, frozen = result.timing, results.frozen
    seconds = timing.median_us / 1e6
    found = {
        "suite": suite,
        **_what(case),
        "device_us": timing.median_us,
        "p20_us": timing.percentile_us(20),
        "p80_us": timing.percentile_us(80),
        "frozen_us": frozen.timing.median_us,
        "frozen_p20_us": frozen.timing.percentile_us(20),
        "frozen_p80_us": frozen.timing.percentile_us(80),
        "ratio": ratio_of_medians(timing, frozen.timing),
        "ratio_of_rounds": median_of_ratios(timing, frozen.timing),
        "rounds": len(timing.device_us),
        "tflops": None if case.op == GENERATE else _flop(case) / seconds / 1e12,
        "gb_per_s": None if _is_model(case) else _bytes(case) / seconds / 1e9,
        "peak_mib": result.peak_mib,
        "frozen_peak_mib": frozen.peak_mib,
        "peak_ratio": _over(result.peak_mib, frozen.peak_mib),
        "cpu_us": result.cpu_us,
        "frozen_cpu_us": frozen.cpu_us,
        "first_call_s": result.first_call_s,
        "enqueued_ahead": timing.ahead,
        "frozen_enqueued_ahead": frozen.timing.ahead,
        **_copy(case, results.copy_gb_per_s, seconds, frozen.timing.median_us / 1e6),
        **_tokens_per_s(case, seconds, frozen.timing.median_us / 1e6),
    }
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: Any) -> Any:
    """Six digits of a measurement: more than it has, in half the space."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _what(case: Case) -> dict[str, Any]:
    known = dict(vars(case))
    letters = {"tokens": "T", "rank": "R", "experts": "K", "instances": "B"}
    in_layers = _is_model(case) or case.op == DECODE
    model_only = () if in_layers else ("layers", "checkpointing")
    return {letters.get(name, name): known[name] for name in known if name not in model_only}


def _copy(
    case: Case, gb_per_s: float | None, seconds: float, frozen_seconds: float
) -> dict[str, Any]:
    if case.op not in (ONTO, DECODE) or gb_per_s is None:
        return {}
    found = {"copy_gb_per_s": gb_per_s, "copy_share": _bytes(case) / seconds / 1e9 / gb_per_s}
    if case.op == DECODE:
        frozen_bytes = _bytes(replace(case, rank=0))
        found["frozen_copy_share"] = frozen_bytes / frozen_seconds / 1e9 / gb_per_s
    return found


def _tokens_per_s(case: Case, seconds: float, frozen_seconds: float) -> dict[str, Any]:
    if case.op != GENERATE:
        return {}
    tokens = case.tokens * NEW_TOKENS
    return {"tokens_per_s": tokens / seconds, "frozen_tokens_per_s": tokens / frozen_seconds}


def _flop(case: Case) -> float:
    if case.op == DECODE:
        return case.layers * necessary_flop(replace(case, op=LINEAR))
    return model_flop(case) if _is_model(case) else necessary_flop(case)


def _bytes(case: Case) -> float:
    if case.op == DECODE:
        return case.layers * necessary_bytes(replace(case, op=LINEAR))
    return necessary_bytes(case)


def _is_model(case: Case) -> bool:
    return case.op in (LAYER, MODEL, GENERATE)


def _over(value: float | None, yardstick: float | None) -> float | None:
    return None if value is None or not yardstick else value / yardstick
