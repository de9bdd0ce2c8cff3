"""The pictures: ratios over T for each shape, and the peers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.results import Line
from benchmarks.tables import PEER_WAYS, WAYS, peer_means, peer_runs
from ilora.files import atomic_file
from ilora.plots import COLOURS, DPI, LINES, MUTED, STYLE


def draw_ratios(lines: Sequence[Line], file: Path) -> bool:
    """Time over the frozen layer's against T, a line a shape; False if there is nothing to draw."""
    chosen = [line for line in lines if line["suite"] == "linear"]
    if not chosen:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(1, len(WAYS), sharex=True, sharey=True)
        shapes = list(dict.fromkeys(_shape(line) for line in chosen))
        many = len({backend for backend, *_ in shapes}) > 1
        for axis, way in zip(axes, WAYS, strict=True):
            for number, shape in enumerate(shapes):
                mine = [line for line in chosen if way.has(line) and _shape(line) == shape]
                points = sorted((line["T"], line["ratio"]) for line in mine)
                style = {
                    "color": COLOURS[number % len(COLOURS)],
                    "linestyle": LINES[number % len(LINES)],
                    "label": f"{shape[1]}×{shape[2]}" + (f", {shape[0]}" if many else ""),
                }
                tokens, ratios = [t for t, _ in points], [ratio for _, ratio in points]
                axis.plot(tokens, ratios, marker="o", markersize=4, **style)
            _ratio_axis(axis, sorted({line["T"] for line in chosen}))
            axis.set_title(way.title)
        axes[0].set_ylabel("time / frozen layer's time")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, title="d_out×d_in", loc="outside right upper", fontsize=9)
        _save(figure, file)
    return True


def _shape(line: Line) -> tuple[str, int, int]:
    return line["backend"], line["d_out"], line["d_in"]


def draw_peers(lines: Sequence[Line], file: Path) -> bool:
    """Geometric means as bars, of the run with most contenders; False without any."""
    means = max(map(peer_means, peer_runs(lines)), key=len, default=None)
    if means is None:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.6 + 0.6 * len(means)), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        longest = max(value for values in means.values() for value in values[:4] if value)
        for axis, ways in ((axes[0], (0, 1)), (axes[1], (2, 3))):
            for number, way in enumerate(ways):
                values = [mine[way] for mine in means.values()]
                _draw_bars(axis, number, values, 0.02 * longest)
            axis.axvline(1.0, color=MUTED, linestyle="--", linewidth=1.2)
            axis.set_xlim(0, 1.15 * longest)
            axis.set_xlabel("time / frozen layer's time, geometric mean")
            axis.set_title("with dropout" if PEER_WAYS[ways[0]].dropped else "no dropout")
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(means)), list(means))
        axes[0].set_ylim(len(means) - 0.4, -0.6)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        _save(figure, file)
    return True


def _draw_bars(axis: Any, number: int, values: Sequence[float | None], gap: float) -> None:
    """The bars of one mode, the first or the second of each pair, with their numbers."""
    places = np.arange(len(values)) + (number - 0.5) * 0.38
    lengths = [value or 0.0 for value in values]
    label = ("forward", "forward + backward")[number]
    axis.barh(places, lengths, 0.36, color=COLOURS[number], label=label)
    for place, value in zip(places, values, strict=True):
        if value is not None:
            axis.text(value + gap, place, f"{value:.2f}", va="center", fontsize=9)


def _ratio_axis(axis: Any, tokens: Sequence[int]) -> None:
    axis.axhline(1.0, color=MUTED, linewidth=1.2)
    axis.set_xscale("log", base=2)
    axis.set_xticks(tokens, [str(t) for t in tokens])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("T (tokens)")


def _save(figure: Figure, file: Path) -> None:
    with atomic_file(file) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
