"""Accuracy, and what it takes on a Cortex-M4, of every step of every depth reducer, beside the rungs of ladders.

    python benchmarks/depth.py --source npz:cifar10.npz --out runs/depth [--arch NETWORK ...] [--method NAME ...]
        [--preset NAME] [--max-drop POINTS] [--ladder RUN ...]

Reduces every network with every method, exports every step, runs each on an emulated Cortex-M4 with as much memory as
it needs, and writes results/depth.json and results/depth.png. Everything lies in the folder given with --out: what was
begun is gone on with, what was measured is not measured again. Rungs of --ladder are measured in the same way.

The schedule is the preset's, `short` by default: 15 epochs for the whole network and 2 for every round instead of the
papers' 160 and 160, so the accuracies are not the papers' to compare with; PUBLISHED stands beside them all the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from entropi.device import Bundle
from entropi.device.files import write_json
from entropi.export import export_encoder
from entropi.firmware_sim import board
from entropi.host import data
from entropi.host.depth import schedules
from entropi.host.depth.methods import METHODS
from entropi.host.depth.reduction import MAX_DROP, Reduction, Step
from entropi.host.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, tidy
from entropi.host.layers import open_encoder
from entropi.host.networks.inference import accuracy
from entropi.host.provenance import provenance
from entropi.host.training.ladder import Ladder, Rung

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("resnet18-cifar-pool", "mobilenet_v2")
BOARD = "nucleo-f446re"
MEASURED = "measured.json"
LADDER = "entropi"
COLOURS = {"egp": PURPLE, "nepenthe": GREEN, "easier": BLUE, "lacoot": ORANGE, LADDER: GREY}
# CIFAR-10, top-1 in %, by rectifiers removed: EASIER's tables; and by method, LaCoOT's on ResNet18.
PUBLISHED = {
    "easier": {"resnet18": {0: 92.47, 8: 92.10, 10: 89.94}, "mobilenet_v2": {0: 93.65, 16: 92.45}},
    "resnet18 in LaCoOT": {"dense": 91.77, "egp": 90.64, "nepenthe": 89.26, "easier": 90.35, "lacoot": 90.99},
}


def on_the_board(source: Step | Rung, dataset: data.Dataset, folder: Path) -> dict:
    """What an encoder takes on the emulated board, from its bundle in `folder`, which is made where it is missing."""
    file = folder / MEASURED
    if file.exists():
        return json.loads(file.read_bytes())
    bundle = export_encoder(source, dataset.train, folder, max_drop=100)
    with open_encoder(Bundle.open(folder), board(BOARD)) as device:
        for values in bundle.golden()["input"]:
            device.encode(values)
        cost = device.footprint()
    found = {
        "image_bytes": bundle.report["image_bytes"],
        "flash": cost["flash"]["total"],
        "arena": cost["arena"]["total"],
        "instructions": cost["instructions"]["encode"]["mean"],
        "layers_on_board": len(bundle.report["layers"]),
        "core": cost["core"],
        "compiler": cost["compiler"],
        "flags": list(cost["flags"]),
        "cosine": bundle.report["checks"]["int8_cosine"]["mean"],
    }
    write_json(file, found)
    return found


def steps(reduction: Reduction) -> Iterator[tuple[Step, dict]]:
    for step in reduction:
        row = {"arch": step.arch, "method": step.method, "step": step.index, "removed": step.removed}
        yield step, {**row, "accuracy": step.accuracy, "allowed": step.index <= reduction.best.index, **step.cost}


def rungs(ladder: Ladder, dataset: data.Dataset) -> Iterator[tuple[Rung, dict]]:
    for rung in ladder:
        row = {"arch": rung.arch, "method": LADDER, "step": rung.index, "removed": 0}
        found = accuracy(rung.model(), dataset.test)
        yield rung, {**row, "accuracy": found, "allowed": True, "nonzeros": rung.nonzeros}


def picture(rows: list[dict], path: Path) -> None:
    """Accuracy over instructions and over flash, a row of axes for each network."""
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    figure = Figure(figsize=(9, 3.4 * len(archs)), dpi=160, layout="constrained")
    for arch, line in zip(archs, figure.subplots(len(archs), 2, sharey="row", squeeze=False), strict=True):
        for axes, key in zip(line, ("instructions", "flash"), strict=True):
            for method, colour in COLOURS.items():
                points = [row for row in rows if (row["arch"], row["method"]) == (arch, method)]
                if points:
                    values = [[point[name] for point in points] for name in (key, "accuracy")]
                    axes.plot(*values, marker="o", markersize=4, linewidth=1.3, color=colour, label=method)
            axes.set_xscale("log")
            axes.set_xlabel({"instructions": "instructions an image, Cortex-M4", "flash": "flash, bytes"}[key])
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            tidy(axes)
        line[0].set_title(arch, loc="left", fontsize=11)
        line[0].set_ylabel("test accuracy")
        line[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--preset", default="short")
    parser.add_argument("--max-drop", type=float, default=MAX_DROP)
    parser.add_argument("--ladder", nargs="+", type=Path, default=[])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="Folder of depth.json and depth.png.")
    asked = parser.parse_args()
    schedule, dataset = schedules.schedule(asked.preset), data.load(asked.source)
    runs = []
    for arch in asked.arch:
        for method in asked.method:
            folder = asked.out / f"{arch.replace(':', '-')}-{method}"
            reduction = Reduction.build(
                folder, method, arch=arch, source=asked.source, schedule=schedule, max_drop=asked.max_drop
            )
            runs += [(step, row, folder) for step, row in steps(reduction)]
    for path in asked.ladder:
        runs += [(rung, row, asked.out / f"ladder-{path.name}") for rung, row in rungs(Ladder.open(path), dataset)]
    rows = []
    for source, row, folder in runs:
        rows.append({**row, **on_the_board(source, dataset, folder / f"build-{source.index:02d}")})
        print(f"{row['arch']} {row['method']} {row['step']}: {row['accuracy']:.1%}, {rows[-1]['instructions']:,.0f}")
    content = {
        "source": asked.source.partition(":")[0],
        "schedule": schedules.settings(schedule),
        "max_drop": asked.max_drop,
        **provenance("torch", "POT", "unicorn", "ziglang"),
        "published": PUBLISHED,
        "rows": rows,
    }
    asked.results.mkdir(parents=True, exist_ok=True)
    write_json(asked.results / "depth.json", content)
    picture(rows, asked.results / "depth.png")


if __name__ == "__main__":
    main()
