"""The pictures of a report: losses, hit ratios with intervals, gates. One style, PNG files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart ("Color Universal Design",
2008); heat maps use cividis, which is made for the same purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from ilora.files import atomic_file
from ilora.gate_map import FloatArray, GateMap

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")  # for those who print in grey, and for curves that coincide
MUTED = "#666666"
OPAQUE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
NO_CURVE = "#9A9A9A"
DPI = 120
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}

Curve = Sequence[tuple[int, float]]  # (optimiser step, loss)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a value in [0, 1], its interval, and the run whose loss curve is shown (None: none is)."""

    name: str
    value: float
    interval: tuple[float, float]
    run: str | None = None


def run_colours(runs: Iterable[str]) -> dict[str, str]:
    """A colour for each run, the same in every picture of a report."""
    return {run: COLOURS[number % len(COLOURS)] for number, run in enumerate(runs)}


def draw_losses(curves: Mapping[str, Mapping[str, Curve]], file: Path) -> None:
    """Loss against optimiser step: training on the left, validation on the right, one scale.

    Args:
        curves: run -> curve -> points. A curve whose name has ``val`` in it (``validation``,
            ``eval_loss``) is of the validation, any other of the training.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        colours = run_colours(curves)
        for number, (run, parts) in enumerate(curves.items()):
            style = {
                "label": run,
                "color": colours[run],
                "linestyle": LINES[number % len(LINES)],
            }
            for name, points in parts.items():
                if not points:
                    continue
                steps, losses = zip(*points, strict=True)
                if "val" in name:
                    right.plot(steps, losses, marker="o", markersize=4, **style)
                else:
                    left.plot(steps, losses, linewidth=1.4, **style)
        left.set_title("Training loss")
        left.set_ylabel("nats per answer token (log scale)")
        right.set_title("Validation loss")
        for axis in (left, right):
            axis.set_xlabel("optimiser step")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%.4g"))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if axis.lines:
                axis.legend()
        save_picture(figure, file)


def draw_bars(
    bars: Sequence[Bar], runs: Sequence[str], file: Path, *, chance: float | None = None
) -> None:
    """Hit ratios as horizontal bars with 95 % intervals, in the given order.

    Args:
        runs: those of the loss curves, whose colours their bars take; the others are grey.
        chance: what guessing among the candidates reaches: a dashed line.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.4 + 0.45 * len(bars)), layout="constrained")
        axis = figure.subplots()
        places = np.arange(len(bars))
        values = [bar.value for bar in bars]
        low = [bar.value - bar.interval[0] for bar in bars]
        high = [bar.interval[1] - bar.value for bar in bars]
        colours = run_colours(runs)
        fills = [NO_CURVE if bar.run is None else colours[bar.run] for bar in bars]
        axis.barh(places, values, height=0.62, color=fills, alpha=0.85)
        axis.errorbar(
            values, places, xerr=np.abs([low, high]), fmt="none", color="black", capsize=4
        )
        for place, bar in enumerate(bars):
            end = max(bar.value, bar.interval[1])
            axis.text(end + 0.015, place, f"{bar.value:.3f}", va="center", bbox=OPAQUE)
        if chance is not None:
            axis.axvline(chance, color=MUTED, linestyle="--", linewidth=1.2)
            axis.text(chance, -0.75, f" chance {chance:.2f}", color=MUTED, fontsize=9, va="center")
        axis.set_yticks(places, [bar.name for bar in bars])
        axis.set_ylim(len(bars) - 0.4, -0.95)
        furthest = max(max(bar.value, bar.interval[1]) for bar in bars)
        axis.set_xlim(0, max(0.1, 1.12 * furthest + 0.03))
        axis.set_xlabel("HitRatio@1: right answers / all rows (whiskers: 95 % interval)")
        axis.set_title("Right on the first guess")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        save_picture(figure, file)


def draw_gates(gates: GateMap, file: Path, *, title: str = "Who gets which experts") -> None:
    """The gate's weights: a column for each user, a row for each expert; below, means by group."""
    blocks = gates.blocks()
    weights = np.concatenate([block for _, block in blocks]).T  # [K, users]
    edges = np.cumsum([0, *(len(block) for _, block in blocks)])
    scale: dict[str, Any] = {"cmap": "cividis", "vmin": 0.0, "vmax": float(weights.max())}
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 1.9 + 0.66 * gates.num_experts), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        extent = (0, int(edges[-1]), gates.num_experts - 0.5, -0.5)
        image = top.imshow(weights, aspect="auto", interpolation="none", extent=extent, **scale)
        top.set_title(f"{title}: one column a user")
        _draw_means(bottom, blocks, edges, scale)
        bottom.set_title("Mean" if gates.groups is None else f"Mean of each {gates.kind}")
        for axis in (top, bottom):
            axis.set_yticks(range(gates.num_experts), range(1, gates.num_experts + 1))
            axis.set_ylabel("expert")
            axis.tick_params(length=0)
            for edge in edges[1:-1]:
                axis.axvline(edge, color="white", linewidth=2.5)
        middles = (edges[1:] + edges[:-1]) / 2
        names = [f"{name}\n({len(block)} users)" for name, block in blocks]
        bottom.set_xticks(middles, names)
        bar = figure.colorbar(image, ax=[top, bottom], label="gate weight", aspect=30)
        even, most = 1 / gates.num_experts, scale["vmax"]
        ticks = [(0.0, "0"), (even, f"{even:.2f} even")]
        if most > 1.15 * even:  # else the two labels would lie on one another
            ticks.append((most, f"{most:.2f} most"))
        bar.set_ticks([tick for tick, _ in ticks], labels=[label for _, label in ticks])
        save_picture(figure, file)


def _draw_means(
    axis: Any, blocks: Sequence[tuple[str, FloatArray]], edges: Any, scale: dict[str, Any]
) -> None:
    """Each group's mean weights as one wide column of cells with their numbers."""
    means = np.stack([block.mean(axis=0) for _, block in blocks], axis=1)  # [K, groups]
    rows = np.arange(len(means) + 1) - 0.5
    axis.pcolormesh(edges, rows, means, **scale)
    axis.set_ylim(len(means) - 0.5, -0.5)
    for (expert, group), mean in np.ndenumerate(means):
        dark = mean < 0.55 * scale["vmax"]
        axis.text(
            (edges[group] + edges[group + 1]) / 2,
            expert,
            f"{mean:.2f}",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )


def save_picture(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_file(file) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
