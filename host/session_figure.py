"""Picture of a session: accuracy and loss over the samples learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from entropi.host.figures import BLUE, GREEN, GREY, ORANGE, tidy

WINDOWS = 25  # the moving mean is over this part of a session
LEAST_WINDOW = 10  # samples


def session_figure(content: dict, path: str | Path) -> None:
    """Draw what session.json holds, as PNG, SVG or PDF by the suffix."""
    samples = content["samples"]
    hits = np.equal(samples["predicted"], samples["label"]).astype(float)
    window = max(LEAST_WINDOW, len(hits) // WINDOWS)
    figure = Figure(figsize=(8, 5.6), dpi=160, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    _accuracies(top, content, hits, window)
    bottom.plot(*_moving(samples["loss"], window), color=ORANGE, linewidth=1.6, label=f"last {window} samples")
    bottom.set_ylabel("loss before learning, nats")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("samples learned")
    bottom.set_xlim(0, len(hits))
    bottom.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (top, bottom):
        for end in range(content["round"], len(hits), content["round"]):
            axes.axvline(end, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        tidy(axes)
        axes.legend(frameon=False, fontsize=9, loc="best")
    settings = content["settings"]
    title = f"{settings['target']} on {settings['device']}: {content['accuracy']:.1%} of the held-out images right"
    top.set_title(title, loc="left", fontsize=11.5)
    figure.savefig(path)


def _accuracies(axes: Axes, content: dict, hits: np.ndarray, window: int) -> None:
    first = content["round"]
    counts = np.arange(1, first + 1)
    shown = counts >= min(LEAST_WINDOW, first)
    so_far = np.cumsum(hits[:first]) / counts
    axes.plot(counts[shown], so_far[shown], color=GREY, linewidth=1.3, label="before learning, so far")
    axes.plot(*_moving(hits, window), color=BLUE, linewidth=1.6, label=f"before learning, last {window} samples")
    learned = [grading["learned"] for grading in content["held_out"]]
    held_out = [grading["accuracy"] for grading in content["held_out"]]
    axes.plot(learned, held_out, color=GREEN, marker="D", markersize=4, linewidth=1.6, label="held out", clip_on=False)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _moving(values: np.ndarray | list[float], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each `window` values on end, and how many values there were by then."""
    window = min(window, len(values))
    sums = np.cumsum(np.concatenate(([0.0], values)))
    return np.arange(window, len(values) + 1), (sums[window:] - sums[:-window]) / window
