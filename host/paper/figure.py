"""The paper's Fig. 3: entropy and accuracy over alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entropi.host.entropy import DEFAULT
from entropi.host.figures import GREEN, GREY, STYLES, accuracy_over_alpha, tidy

SHOWN = (DEFAULT, "marginal", "joint")  # the paper's two beside ours


def figure_3(curves: dict[str, Any], path: str | Path) -> None:
    """Draw what results.curves returns, as PNG, SVG or PDF by the suffix; bands are one deviation over the seeds.

    A dashed line marks the highest entropy of the default estimator: the specialisation region is on its left, the
    forgetting region on its right."""
    alphas = curves["alpha"]
    figure = Figure(figsize=(8, 5.6), dpi=160, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))
    for name in SHOWN:
        marker, colour = STYLES[name]
        largest = max(curves["estimates"][name]["mean"]) or 1.0
        label = f"{name} (1 = {largest:.3g} nats)"
        _band(top, alphas, curves["estimates"][name], 1 / largest, colour, marker, label)
    top.set_ylabel("entropy / its maximum")
    top.set_ylim(-0.2, 1.06)  # room for the legend
    top.set_yticks(np.linspace(0, 1, 6))
    _band(bottom, alphas, curves["accuracy"], 1, GREEN, "D", f"{curves['target']}, linear head")
    source = bottom.twinx()
    _band(source, alphas, curves["source_accuracy"], 1, GREY, ".", "source task (right)")
    accuracy_over_alpha(source, alphas)
    accuracy_over_alpha(bottom, alphas)
    source.spines["top"].set_visible(False)
    source.set_ylabel("source accuracy")
    peak = alphas[int(np.argmax(curves["estimates"][SHOWN[0]]["mean"]))]
    for axes in (top, bottom):
        axes.axvline(peak, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        tidy(axes)
    for axes in (bottom, source):  # room for the legend
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.2 * (high - low), high)
    lines = [*bottom.get_legend_handles_labels()[0], *source.get_legend_handles_labels()[0]]
    for axes, handles in ((top, None), (bottom, lines)):
        legend = axes.legend(handles=handles, fontsize=9, ncols=3, loc="lower left", framealpha=1, edgecolor="none")
        legend.set_zorder(9)
    seeds = f"{curves['seeds']} seed{'s' if curves['seeds'] > 1 else ''}"
    top.set_title(f"{curves['arch']} on {curves['target']}, {seeds}", loc="left", fontsize=11.5, pad=20)
    for region, where, side in (("specialisation", peak * 1.12, "right"), ("forgetting", peak / 1.12, "left")):
        top.text(where, 1.02, region, ha=side, fontsize=9, color=GREY, transform=top.get_xaxis_transform())
    figure.savefig(path)


def _band(axes: Axes, alphas, curve: dict[str, list[float]], scale: float, colour: str, marker: str, label: str):
    mean, std = (scale * np.array(curve[name]) for name in ("mean", "std"))
    axes.plot(alphas, mean, color=colour, marker=marker, markersize=4.3, linewidth=1.8, label=label)
    if std.any():
        axes.fill_between(alphas, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
