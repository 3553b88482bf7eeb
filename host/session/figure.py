"""Picture of a session: accuracy and loss over the samples learned."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from entropi.host.figures import BLACK, BLUE, GREEN, GREY, ORANGE, tidy

WINDOWS = 25  # the moving mean is over this part of a session
LEAST_WINDOW = 10  # samples, or half of a session that is shorter than two windows
TITLE_COLUMNS = 110
HELD_OUT = {  # marker, line and label
    "accuracy": ("D", "-", "held out"),
    "accuracy_old_classes": ("^", "--", "held out, old classes"),
    "accuracy_new_classes": ("v", ":", "held out, new classes"),
}


def session_figure(content: dict, path: str | Path) -> None:
    """Draw what session.json holds, as PNG, SVG or PDF by the suffix."""
    samples = content["samples"]
    hits = np.equal(samples["predicted"], samples["label"]).astype(float)
    window = min(max(LEAST_WINDOW, len(hits) // WINDOWS), max(1, len(hits) // 2))
    figure = Figure(figsize=(8, 5.6), dpi=160, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    _accuracies(top, content, hits, window)
    bottom.plot(*_moving(samples["loss"], window), color=ORANGE, linewidth=1.6)
    bottom.set_ylabel(f"loss before learning,\n{_last(window)}, nats")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("samples learned")
    bottom.set_xlim(0, len(hits))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    settings = content["settings"]
    ends = content["rounds"][1:-1]
    for axes in (top, bottom):
        for end in ends:
            axes.axvline(end, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if settings["head"]["new_classes"]:
            first_new = ends[settings["epochs"] - 1]
            axes.axvline(first_new, color=BLACK, linewidth=1.2, linestyle="-.", zorder=0, label="new classes come")
        tidy(axes)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    title = f"{settings['device']}: {content['accuracy']:.1%} of the held-out images right"
    task = wrap(settings["target"], TITLE_COLUMNS, break_on_hyphens=False)
    top.set_title(title + "\n" * len(task), loc="left", fontsize=11.5)
    top.annotate("\n".join(task), (0, 1), (0, 6), "axes fraction", "offset points", fontsize=9, color=GREY)
    figure.savefig(path)


def _accuracies(axes: Axes, content: dict, hits: np.ndarray, window: int) -> None:
    first = content["rounds"][1]
    counts = np.arange(1, first + 1)
    shown = counts >= min(LEAST_WINDOW, max(1, first // 2))
    so_far = np.cumsum(hits[:first]) / counts
    axes.plot(counts[shown], so_far[shown], color=GREY, linewidth=1.3, label="before learning, so far")
    axes.plot(*_moving(hits, window), color=BLUE, linewidth=1.6, label=f"before learning, {_last(window)}")
    held_out = content["held_out"]
    learned = [grading["learned"] for grading in held_out]
    for share, (marker, line, label) in HELD_OUT.items():
        if share in held_out[0]:
            values = [grading[share] for grading in held_out]
            style = {"color": GREEN, "marker": marker, "markersize": 4, "linestyle": line, "linewidth": 1.6}
            axes.plot(learned, values, label=label, clip_on=False, **style)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _last(window: int) -> str:
    return f"last {window} samples" if window > 1 else "each sample"


def _moving(values: np.ndarray | list[float], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each `window` values on end, and how many values there were by then."""
    window = min(window, len(values))
    sums = np.cumsum(np.concatenate(([0.0], values)))
    return np.arange(window, len(values) + 1), (sums[window:] - sums[:-window]) / window
