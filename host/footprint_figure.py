"""Picture of a report: bytes and instructions of every layer."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from entropi.host.figures import BLACK, BLUE, GREEN, GREY, ORANGE, tidy

FORMS = {"dense": ORANGE, "pairs": GREEN, "rice": BLUE, "": GREY}
INCHES_A_LAYER, MARGIN = 0.19, 1.5
ROOM = 1.22  # of an axis, for the number behind the longest bar
LONGEST_NAME = 30


def footprint_figure(content: dict, path: str | Path) -> None:
    """Draw the report and write it as PNG, SVG or PDF by the suffix. `content` is what report.report returns."""
    draw(content).savefig(path)


def draw(content: dict) -> Figure:
    """One bar a layer for its bytes in the image and one for its instructions.

    The colour says how weights are stored; marks show Shannon's bound of the weights and the predicted instructions.
    """
    layers = content["layers"]
    figure = Figure(figsize=(9.5, MARGIN + INCHES_A_LAYER * max(len(layers), 4)), dpi=160, layout="constrained")
    stored, work = figure.subplots(1, 2, sharey=True)
    colours = [FORMS[layer["encoding"]] for layer in layers]
    _bars(stored, [layer["bytes"] for layer in layers], [layer["bound"] or None for layer in layers], colours)
    guesses = [layer["predicted_instructions"] for layer in layers]
    _bars(work, [layer["instructions"] for layer in layers], guesses, colours)
    stored.set_yticks(range(len(layers)), [_label(layer) for layer in layers], fontsize=7.5)
    stored.set_ylim(len(layers) - 0.4, -0.6)
    bundle = content["bundle"]
    title = f"{bundle['image_bytes']:,} bytes of image"
    if "tflite_bytes" in bundle:
        title += f", dense TFLite {bundle['tflite_bytes']:,}, gzip {bundle['tflite_gzip_bytes']:,}"
    stored.set_title(title, loc="left", fontsize=9)
    total = sum(layer["instructions"] for layer in layers)
    work.set_title(f"{total:,} instructions an image on {content['footprint']['core']}", loc="left", fontsize=9)
    figure.suptitle(f"{bundle['name']}, layer by layer", x=0.01, ha="left", fontsize=11.5)
    figure.legend(handles=_legend(layers), loc="outside lower left", ncols=6, frameon=False, fontsize=8)
    return figure


def _label(layer: dict) -> str:
    name = layer["name"]
    name = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
    return name if layer["density"] is None else f"{name}  {100 * layer['density']:.3g}%"


def _bars(axes: Axes, values: list[int], marks: list[float | None], colours: list[str]) -> None:
    """Horizontal bars with their numbers behind them, and a mark on each."""
    places = range(len(values))
    axes.barh(places, values, height=0.72, color=colours, linewidth=0)
    most = max(max(values, default=0), *(mark or 0 for mark in marks), 1)
    for place, value, mark in zip(places, values, marks, strict=True):
        if mark is not None:
            axes.plot((mark, mark), (place - 0.36, place + 0.36), color=BLACK, linewidth=1.1)
        axes.text(max(value, mark or 0) + 0.01 * most, place, _short(value), va="center", fontsize=6.5, color=BLACK)
    axes.set_xlim(0, ROOM * most)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)


def _short(value: int) -> str:
    """Three digits: 87, 1.23k, 45.6k, 7.89M."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return str(value)


def _legend(layers: list[dict]) -> list[Patch | Line2D]:
    present = {layer["encoding"] for layer in layers}
    names = {"": "no weights"}
    handles = [Patch(color=colour, label=names.get(form, form)) for form, colour in FORMS.items() if form in present]
    mark = {"color": BLACK, "linestyle": "none", "marker": "|", "markersize": 9}
    text = "Shannon's bound of the weights (left), predicted (right);  %: weights kept"
    return [*handles, Line2D([], [], **mark, label=text)]
