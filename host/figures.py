"""Figures: the analogue of ENTROPI's Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

if TYPE_CHECKING:  # they load torch, which the pictures of a session can do without
    from entropi.host.accuracy import HeadAccuracy
    from entropi.host.selection import Selection

# Okabe and Ito's colours, told apart with every kind of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B6B6B"
SKY, YELLOW, BLACK = "#56B4E9", "#E69F00", "#000000"

STYLES = {
    "spectral": ("o", BLUE),
    "spectral-correlation": ("D", SKY),
    "rankme": ("v", YELLOW),
    "marginal": ("s", PURPLE),
    "marginal-robust": ("P", ORANGE),
    "joint": ("^", GREEN),
    "probe": ("X", BLACK),
}


def entropy_figure(
    selection: Selection,
    accuracies: Sequence[HeadAccuracy],
    path: str | Path,
    baseline: HeadAccuracy | None = None,
) -> None:
    """Entropy and head accuracy of every rung over alpha, the choice marked, as PNG, SVG or PDF by the suffix.

    `accuracies` holds one value a rung, in the order of `selection.rungs`; ValueError is raised where it does not.
    `baseline` is the accuracy of a head on raw pixels, drawn as a level line. Bars are one standard deviation over
    the random draws of the few samples."""
    if len(accuracies) != len(selection.rungs):
        raise ValueError(f"{len(accuracies)} accuracies for {len(selection.rungs)} rungs; give one a rung")
    figure = Figure(figsize=(8, 5.6), dpi=160, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))
    _entropies(top, selection)
    _accuracies(bottom, selection, accuracies, baseline)
    chosen = next(rung for rung in selection.rungs if rung.rung == selection.rung)
    for axes in (top, bottom):
        axes.axvline(chosen.alpha, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        tidy(axes)
    top.set_title(
        f"Chosen by {selection.estimator}: rung {chosen.rung}, {chosen.alpha:.2%} of the weights",
        loc="left",
        fontsize=11.5,
    )
    figure.savefig(path)


def _entropies(axes: Axes, selection: Selection) -> None:
    alphas = [rung.alpha for rung in selection.rungs]
    for name in selection.rungs[0].estimates:
        marker, colour = STYLES[name]
        chooses = name == selection.estimator
        values = [rung.estimates[name] for rung in selection.rungs]
        top = max(values) or 1.0
        axes.plot(
            alphas,
            [value / top for value in values],
            color=colour,
            marker=marker,
            markersize=5.2 if chooses else 4.3,
            linewidth=2.2 if chooses else 1.3,
            label=f"{name} (1 = {top:.3g}{'' if name == 'probe' else ' nats'})",
        )
        if chooses and selection.bootstrap:
            low, high = ([rung.interval[end] / top for rung in selection.rungs] for end in (0, 1))
            axes.fill_between(alphas, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_ylabel("entropy / its maximum")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower left")


def _accuracies(
    axes: Axes, selection: Selection, accuracies: Sequence[HeadAccuracy], baseline: HeadAccuracy | None
) -> None:
    alphas = [rung.alpha for rung in selection.rungs]
    few, spread = [a.few_mean for a in accuracies], [a.few_std for a in accuracies]
    count = accuracies[0].samples_a_class
    source = [rung.source_accuracy for rung in selection.rungs]
    axes.plot(alphas, [a.all for a in accuracies], color=GREEN, marker="D", markersize=4, label="head, all samples")
    axes.errorbar(
        alphas, few, spread, color=ORANGE, marker="o", markersize=4.5, capsize=2.5, label=f"head, {count} a class"
    )
    if baseline:
        label = f"raw pixels, {baseline.samples_a_class} a class"
        axes.axhline(baseline.few_mean, color=BLUE, linewidth=1.2, linestyle=(0, (6, 3)), label=label)
    axes.plot(alphas, source, color=GREY, linewidth=1.3, linestyle=":", label="source task")
    accuracy_over_alpha(axes, alphas)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.2 * (high - low), min(high, 1.02))
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", columnspacing=1.4)


def accuracy_over_alpha(axes: Axes, alphas: Sequence[float]) -> None:
    """Label the axes: accuracy in per cent over alpha, dense on the left, on a logarithmic scale."""
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("fraction of encoder weights kept, α")
    axes.set_xscale("log")
    axes.set_xlim(max(alphas) * 1.15, min(alphas) / 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda alpha, _: f"{alpha:.3g}"))


def tidy(axes: Axes) -> None:
    """Level grid lines behind the data, no frame on top and right."""
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
