"""The pictures of explanations, in the style of the report's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ilora.gate_map import FloatArray
from ilora.plots import COLOURS, MUTED, STYLE, save_picture


def draw_usage(mean: FloatArray, spread: FloatArray, strongest: FloatArray, file: Path) -> None:
    """Expert usage, ``[layers, K]`` each: bars for one shared gate, a heat map for a gate per layer."""
    if len(mean) > 1:
        _draw_usage_per_layer(mean, file)
        return
    experts = np.arange(1, mean.shape[1] + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        left.bar(experts, mean[0], color=COLOURS[0], alpha=0.85)
        left.errorbar(experts, mean[0], yerr=spread[0], fmt="none", color="black", capsize=4)
        left.axhline(1 / len(experts), color=MUTED, linestyle="--", linewidth=1.2)
        left.set_title("Mean weight (whiskers: ± 1 sd over users)")
        right.bar(experts, strongest[0], color=COLOURS[1], alpha=0.85)
        right.set_title("Share of users whose strongest it is")
        for axis in (left, right):
            axis.set_xlabel("expert")
            axis.set_xticks(experts.tolist())
            axis.set_ylim(bottom=0)
            axis.grid(axis="x", visible=False)
        save_picture(figure, file)


def _draw_usage_per_layer(mean: FloatArray, file: Path) -> None:
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 1.9 + 0.5 * mean.shape[1]), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(mean.T, aspect="auto", interpolation="none", cmap="cividis", vmin=0)
        experts = range(mean.shape[1])
        axis.set_yticks(experts, [str(expert + 1) for expert in experts])
        axis.set_xlabel("adapted layer, in the order of the model")
        axis.set_ylabel("expert")
        axis.set_title("Mean weight of each expert in each layer")
        figure.colorbar(image, ax=axis, label="mean gate weight")
        save_picture(figure, file)


def draw_similarity(
    cosine: FloatArray, halves: FloatArray, names: Sequence[str], file: Path
) -> None:
    """Cosines ``[n, n]`` as heat maps from -1 to 1: of whole clusters, and of their halves."""
    size = 2.4 + 0.66 * len(names)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2 * size + 0.8, size), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        image = _draw_cosines(left, cosine, names)
        _draw_cosines(right, halves, names)
        left.set_title("Cosine of gradients")
        left.set_yticks(range(len(names)), names, fontsize=8)
        right.set_title("Between halves\n(bold: of one and the same)")
        figure.colorbar(image, ax=[left, right], shrink=0.8)
        save_picture(figure, file)


def _draw_cosines(axis: Any, cosine: FloatArray, names: Sequence[str]) -> Any:
    image = axis.imshow(cosine, cmap="PuOr", vmin=-1, vmax=1, interpolation="none")
    for (row, column), value in np.ndenumerate(cosine):
        axis.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if row == column else "normal",
            color="white" if abs(value) > 0.6 else "black",
        )
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=90)
    axis.tick_params(length=0)
    return image
