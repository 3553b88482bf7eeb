"""Accuracy, and what it takes on a Cortex-M4, of every step of every depth reducer, beside the rungs of ladders.

    python benchmarks/depth.py --source npz:cifar10.npz --out runs/depth [--arch NETWORK ...] [--method NAME ...]
        [--preset NAME] [--max-drop POINTS] [--ladder RUN ...] [--open]

Reduces every network with every method, exports every step, runs each on an emulated Cortex-M4 with as much memory as
it needs, and writes results/depth.json, depth.png and depth_removed.png; python benchmarks/depth_page.py then writes
docs/depth.md. EGP, NEPENTHE and EASIER share one trained network; LaCoOT trains its own, with its distances in the
loss. Rungs of --ladder are measured in the same way, also of ladders that were begun with a step.

Everything lies in the folder given with --out, a reduction in NETWORK-METHOD: what was begun is gone on with, what was
measured is not measured again. --open trains nothing and takes what is there, finished or not.

The schedule is the preset's, `short` by default: 15 epochs for the whole network and 2 for every round instead of the
papers' 160 and 160, so the accuracies are not the papers' to compare with; PUBLISHED stands beside them all the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from entropi.device import Bundle
from entropi.device.files import write_json
from entropi.export import export_encoder
from entropi.firmware_sim import board
from entropi.host import data
from entropi.host.depth import schedules
from entropi.host.depth.methods import METHODS
from entropi.host.depth.reduction import DEPTH, Reduction, Step
from entropi.host.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW, tidy
from entropi.host.layers import open_encoder
from entropi.host.networks.fold import fold, summary
from entropi.host.provenance import provenance
from entropi.host.selection import by_chance
from entropi.host.training.ladder import Ladder, Rung

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
ARCHS = ("resnet18", "mobilenet_v2")
BOARD = "nucleo-f446re"
MEASURED = "measured.json"
COSTS = ("instructions", "flash")  # budgets are of these
LADDER = "entropi"  # what ladders are called beside the methods
STYLES = {"egp": ("s", PURPLE), "nepenthe": ("^", GREEN), "easier": ("o", BLUE), "lacoot": ("D", ORANGE),
          LADDER: ("X", BLACK)}  # fmt: skip
MORE = (("P", SKY), ("v", YELLOW), ("*", GREY))  # ladders that were begun with a step
SPAN, LEAST_SPAN = 0.2, 0.05  # of accuracies in a picture, below the best; what lies lower is in depth.json
# CIFAR-10, top-1 in %, 160 epochs. EASIER's tables: by rectifiers removed. LaCoOT's table: by method.
PUBLISHED = {
    "easier": {"resnet18": {0: 92.47, 8: 92.10, 10: 89.94}, "mobilenet_v2": {0: 93.65, 16: 92.45}},
    "lacoot": {"resnet18": {"whole": 91.77, "egp": 90.64, "nepenthe": 89.26, "easier": 90.35, "lacoot": 90.99}},
}


def on_the_board(source: Step | Rung, dataset: data.Dataset, folder: Path) -> dict:
    """What an encoder takes on the emulated board, from its bundle in `folder`; measured unless this network was.

    ram: everything but the stack that is left over, with the smallest head."""
    file, sha256 = folder / MEASURED, source.metadata["sha256"]
    if file.exists() and (found := json.loads(file.read_bytes()))["sha256"] == sha256:
        return found
    report = export_encoder(source, dataset.train, folder, max_drop=100).report
    bundle = Bundle.open(folder)
    with open_encoder(bundle, board(BOARD)) as device:
        device.encode(bundle.golden()["input"][0])
        cost = device.footprint()
    found = {
        "sha256": sha256,
        "flash": cost["flash"]["total"],
        "ram": sum(cost["ram"][part] for part in ("data", "bss", "buffers", "arena")) + cost["stack"]["used"],
        "instructions": cost["instructions"]["encode"]["last"],
        "image_bytes": report["image_bytes"],
        "layers_on_board": len(report["layers"]),
        "int8_cosine": report["checks"]["int8_cosine"]["mean"],
        "int8_drop": report["head"]["drop"],
        **{name: cost[name] for name in ("core", "compiler", "flags")},
    }
    write_json(file, found)
    return found


def reductions(asked: argparse.Namespace, arch: str) -> Iterator[Reduction]:
    """Of every method asked for, opened or built; those that go by signs begin with step 0 of the first of them."""
    whole = None
    for method in asked.method:
        folder = asked.out / f"{arch.replace(':', '-')}-{method}"
        if not asked.open:
            yield (
                reduction := Reduction.build(
                    folder, method, arch=arch, source=asked.source, schedule=schedules.schedule(asked.preset),
                    start=None if METHODS[method].removes == "blocks" else whole, max_drop=asked.max_drop,
                )
            )  # fmt: skip
            if METHODS[method].removes != "blocks":
                whole = whole or reduction[0]
        elif (folder / DEPTH).exists():
            yield Reduction.open(folder)
        else:
            print(f"{folder} is not there")


def step_rows(reduction: Reduction) -> Iterator[tuple[Step, dict]]:
    for step in reduction:
        row = {"arch": step.arch, "method": step.method, "step": step.index, "removed": step.removed}
        yield step, {
            **row, "accuracy": step.accuracy, "validation_accuracy": step.validation_accuracy,
            "drop": reduction.drop(step), "seconds": step.metadata["seconds"], **step.cost,
        }  # fmt: skip


def rung_rows(ladder: Ladder, dataset: data.Dataset) -> Iterator[tuple[Rung, dict]]:
    """Raises ValueError for a ladder of other images."""
    if ladder.settings["source_sha256"] != dataset.fingerprint():
        raise ValueError(f"{ladder.path} was trained on {ladder.source}, other images than {dataset.name}'s")
    begun = ladder.start and ladder.start["name"].removeprefix(f"{ladder.arch}-")
    for rung in ladder:
        row = {"arch": rung.arch, "method": f"{begun}, then {LADDER}" if begun else LADDER, "step": rung.index}
        cost = summary(fold(rung.encoder(), rung.input_shape).module, rung.input_shape)
        yield rung, {**row, "accuracy": rung.source_accuracy, "seconds": rung.metadata["seconds"], **cost}


def at_equal_cost(rows: Sequence[dict], images: int) -> list[dict]:
    """Which method's best point within a budget is the most accurate, for budgets of half as much each time from the
    dearest whole network down to the cheapest point; `as_good`: those that lie no further below than by chance."""
    found = []
    for arch in dict.fromkeys(row["arch"] for row in rows):
        points = [row for row in rows if row["arch"] == arch]
        for cost in COSTS:
            budget = max(row[cost] for row in points if row["step"] == 0)
            while fitting := [row for row in points if row[cost] <= budget]:
                best: dict[str, dict] = {}
                for row in sorted(fitting, key=lambda row: (-row["accuracy"], row[cost])):
                    best.setdefault(row["method"], {name: row[name] for name in ("step", "accuracy", *COSTS)})
                accuracies = [point["accuracy"] for point in best.values()]
                least = max(accuracies) - by_chance(accuracies, images)
                found.append(
                    {
                        "arch": arch, "cost": cost, "budget": budget, "best": next(iter(best)),
                        "as_good": [name for name, point in best.items() if point["accuracy"] >= least],
                        "points": best,
                    }
                )  # fmt: skip
                budget //= 2
    return found


def _lines(
    axes: Axes, rows: Sequence[dict], styles: dict[str, tuple[str, str]], x: Callable[[dict, dict], float]
) -> None:
    """Accuracy over x(row, the method's first row), a line for each method; dotted for a ladder begun with a step."""
    for method, (marker, colour) in styles.items():
        points = [row for row in rows if row["method"] == method]
        if not points:
            continue
        xs, ys = [x(point, points[0]) for point in points], [point["accuracy"] for point in points]
        axes.plot(xs, ys, color=colour, linewidth=1.2, linestyle=":" if "then" in method else "-")
        axes.plot(xs, ys, linestyle="", marker=marker, markersize=5, color=colour)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    tidy(axes)


def _limits(axes: Axes, accuracies: Iterable[float], published: Iterable[float] = ()) -> None:
    accuracies = list(accuracies)
    best = max(accuracies)
    low, high = min(max(min(accuracies), best - SPAN), best - LEAST_SPAN), max((best, *published))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _styles(rows: Sequence[dict]) -> dict[str, tuple[str, str]]:
    others = [name for name in dict.fromkeys(row["method"] for row in rows) if name not in STYLES]
    return STYLES | dict(zip(others, MORE, strict=False))


def _legend(figure: Figure, rows: Sequence[dict], more: Sequence[Line2D] = ()) -> None:
    present = {row["method"] for row in rows}
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.2, label=name,
               linestyle=":" if "then" in name else "-")
        for name, (marker, colour) in _styles(rows).items()
        if name in present
    ]  # fmt: skip
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=6, frameon=False, fontsize=9)


def cost_figure(rows: Sequence[dict], path: Path) -> None:
    """Accuracy over instructions and over flash, a row of axes for each network."""
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    figure = Figure(figsize=(9, 3.3 * len(archs) + 0.5), dpi=160, layout="constrained")
    styles = _styles(rows)
    for arch, line in zip(archs, figure.subplots(len(archs), 2, sharey="row", squeeze=False), strict=True):
        points = [row for row in rows if row["arch"] == arch]
        for axes, cost in zip(line, COSTS, strict=True):
            _lines(axes, points, styles, lambda row, _, cost=cost: row[cost])
            axes.set_xscale("log")
            values = [row[cost] for row in points]
            least, most = min(*values, max(values) / 4), max(values)
            axes.set_xlim(least / 1.15, most * 1.15)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel({"instructions": "instructions an image, Cortex-M4", "flash": "bytes of flash"}[cost])
        _limits(line[0], (row["accuracy"] for row in points))
        line[0].set_title(arch, loc="left", fontsize=11)
        line[0].set_ylabel("test accuracy")
    _legend(figure, rows)
    figure.savefig(path)


def _short(value: float, _) -> str:
    """A number on an axis, as 200 k or 5 M."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def removed_figure(rows: Sequence[dict], path: Path) -> None:
    """Accuracy over what is gone: rectifiers, EASIER's own table beside them, and layers; a column for each network."""
    rows = [row for row in rows if "removed" in row]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    figure = Figure(figsize=(4.5 * len(archs), 6.4), dpi=160, layout="constrained")
    styles, published_style = _styles(rows), {"color": BLACK, "marker": "o", "markerfacecolor": "white"}
    for arch, column in zip(archs, figure.subplots(2, len(archs), squeeze=False).T, strict=True):
        points = [row for row in rows if row["arch"] == arch]
        published = PUBLISHED["easier"].get(arch, {})
        _lines(column[0], points, styles, lambda row, _: row["removed"])
        column[0].plot(
            list(published), [value / 100 for value in published.values()], linestyle="--", linewidth=1.2,
            **published_style,
        )  # fmt: skip
        _lines(column[1], points, styles, lambda row, first: first["layers"] - row["layers"])
        for axes, label in zip(column, ("rectifiers that switch no more", "layers fewer, folded"), strict=True):
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlim(-0.5, max(axes.dataLim.x1, 1) + 0.5)
        accuracies = [row["accuracy"] for row in points]
        _limits(column[0], accuracies, (value / 100 for value in published.values()))
        _limits(column[1], accuracies)
        column[0].set_title(arch, loc="left", fontsize=11)
        if arch == archs[0]:
            for axes in column:
                axes.set_ylabel("test accuracy")
    label = "easier, published (160 epochs)"
    _legend(figure, rows, [Line2D([], [], linestyle="--", linewidth=1.2, label=label, **published_style)])
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--preset", default="short")
    parser.add_argument("--max-drop", type=float, default=10.0)
    parser.add_argument("--ladder", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--open", action="store_true", help="Train nothing.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Folder of depth.json and the pictures.")
    asked = parser.parse_args()
    dataset = data.load(asked.source)
    rows, trained, where = [], [], {}

    def add(networks: Iterable[tuple[Step | Rung, dict]], folder: Path) -> None:
        for network, row in networks:
            measured = on_the_board(network, dataset, folder / f"build-{network.index:02d}")
            where.update((name, measured[name]) for name in ("core", "compiler", "flags"))
            rows.append({**row, **{name: value for name, value in measured.items() if name not in where}})
            print(
                f"{network.name}: {row['accuracy']:.1%}, {measured['instructions']:,} instructions, "
                f"{measured['flash']:,} bytes of flash",
                flush=True,
            )

    for arch in asked.arch:
        for reduction in reductions(asked, arch):
            names = ("arch", "method", "parameters", "start", "max_drop", "schedule", "seed", "validation_images")
            trained.append(
                {**{name: reduction.settings[name] for name in names}, "complete": reduction.complete,
                 "best": reduction.best.index if len(reduction) else None}
            )  # fmt: skip
            add(step_rows(reduction), reduction.path)
    for path in asked.ladder:
        ladder = Ladder.open(path)
        names = ("arch", "start", "schedule", "seed")
        trained.append({"method": LADDER, **{name: ladder.settings.get(name) for name in names}})
        add(rung_rows(ladder, dataset), asked.out / f"ladder-{path.name}")
    if not rows:
        raise SystemExit(f"{asked.out} holds no trained network yet; leave --open out to train")
    content = {
        "source": asked.source.partition(":")[0] + ":" + Path(asked.source.partition(":")[2]).name,
        "test_images": len(dataset.test),
        "board": BOARD,
        **where,
        **provenance("torch", "POT", "tensorflow", "unicorn", "ziglang"),
        "published": PUBLISHED,
        "trained": trained,
        "at_equal_cost": at_equal_cost(rows, len(dataset.test)),
        "rows": rows,
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    write_json(asked.results / "depth.json", content)
    cost_figure(rows, asked.results / "depth.png")
    removed_figure(rows, asked.results / "depth_removed.png")


if __name__ == "__main__":
    main()
