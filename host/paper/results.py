"""The paper's Table 1 and Fig. 3 from surveys, ours beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from entropi.device.files import write_json
from entropi.host.paper.figure import SHOWN, figure_3
from entropi.host.tables import table

FIG_3 = ("resnet18", "CIFAR-100")
HEADS = {
    "ridge": "ridge regression on features standardised over the target training set, penalty by leave-one-out error",
    "paper": "the paper's, Adam 1e-5, x0.99 an epoch, batch 128, 90 epochs, on the features as they are",
}

# Top-1 accuracy in per cent, mean and deviation over three seeds, and alpha of the pruned encoder (Table 1).
PAPER_TABLE_1 = {
    ("resnet18", "CIFAR-100"): {"dense": (14.46, 0.27), "pruned": (21.83, 0.09), "alpha": 0.0077},
    ("resnet18", "VLCS"): {"dense": (48.73, 1.25), "pruned": (49.51, 1.01), "alpha": 0.0186},
    ("resnet18", "PACS"): {"dense": (18.57, 8.94), "pruned": (19.49, 8.14), "alpha": 0.0085},
    ("mobilenet_v3_large", "CIFAR-100"): {"dense": (13.91, 0.02), "pruned": (17.36, 0.09), "alpha": 0.0038},
    ("mobilenet_v3_large", "VLCS"): {"dense": (45.22, 0.94), "pruned": (53.84, 0.79), "alpha": 0.0158},
    ("mobilenet_v3_large", "PACS"): {"dense": (30.16, 1.61), "pruned": (32.59, 2.62), "alpha": 0.0106},
}


def table_1(surveys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an encoder, target and head: dense against selected, top-1 per cent, one value a seed, and the paper's.

    deviations: the gain of the selected rung in standard deviations of the gain over the seeds, None for one seed."""
    rows = []
    for arch in dict.fromkeys(s["ladder"]["arch"] for s in surveys):
        of_arch = [s for s in surveys if s["ladder"]["arch"] == arch]
        for target in dict.fromkeys(name for s in of_arch for name in s["targets"]):
            found = [(s, s["targets"][target]) for s in of_arch if target in s["targets"]]
            for head, column in (("ridge", "accuracy"), ("paper", "paper_accuracy")):
                dense = [100 * _accuracy(entry[column], 0) for _, entry in found]
                selected = [100 * _accuracy(entry[column], entry["chosen"]) for _, entry in found]
                rows.append(
                    {
                        "arch": arch,
                        "target": target,
                        "spec": found[0][1]["spec"],
                        "head": head,
                        "dense": dense,
                        "selected": selected,
                        "deviations": _deviations(np.subtract(selected, dense)),
                        "alpha": [s["rungs"][entry["chosen"]]["alpha"] for s, entry in found],
                        "paper": PAPER_TABLE_1.get((arch, target)),
                    }
                )
    return rows


def render_table_1(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Table 1 as text, one line an encoder, target and head."""

    def spread(values: Sequence[float]) -> str:
        return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")

    def published(row: dict[str, Any], cell: str) -> str:
        return "{:.2f} ± {:.2f}".format(*row["paper"][cell]) if row["paper"] else ""

    columns = ("target", ">dense", ">selected", ">gain", ">alpha", "paper: dense", "pruned")
    tables = []
    for arch, head in dict.fromkeys((row["arch"], row["head"]) for row in rows):
        chosen = [row for row in rows if (row["arch"], row["head"]) == (arch, head)]
        lines = (
            (
                row["target"],
                spread(row["dense"]),
                spread(row["selected"]),
                f"{statistics.fmean(row['selected']) - statistics.fmean(row['dense']):+.2f}",
                f"{statistics.fmean(row['alpha']):.4f}",
                published(row, "dense"),
                published(row, "pruned"),
            )
            for row in chosen
        )
        title = f"Table 1: {arch}, top-1 accuracy in per cent; seeds: {len(chosen[0]['dense'])}"
        tables += [table(title, columns, lines), Text(f"Head: {HEADS[head]}.\n", style="dim")]
    return Group(*tables)


def _accuracy(accuracies: list[float] | dict[str, float], rung: int) -> float:
    return accuracies[str(rung)] if isinstance(accuracies, dict) else accuracies[rung]


def _deviations(gains: np.ndarray) -> float | None:
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    return float(gains.mean() / spread) if spread else None


def curves(surveys: Sequence[dict[str, Any]], arch: str, target: str) -> dict[str, Any]:
    """Fig. 3: over alpha, the mean over seeds of estimates, source accuracy and the target's ridge head.

    Ladders that stop by themselves differ in length; the figure goes as far as the shortest. Raises ValueError when
    no survey has that network and target."""
    found = [s for s in surveys if s["ladder"]["arch"] == arch and target in s["targets"]]
    if not found:
        raise ValueError(f"no survey is about {arch} on {target}; run entropi reproduce with both")
    length = min(len(s["rungs"]) for s in found)

    def over_seeds(pick: Callable[[dict[str, Any]], list[float]]) -> dict[str, list[float]]:
        values = np.array([pick(s)[:length] for s in found])
        return {"mean": values.mean(0).tolist(), "std": values.std(0, ddof=1 if len(found) > 1 else 0).tolist()}

    return {
        "arch": arch,
        "target": target,
        "seeds": len(found),
        "alpha": [rung["alpha"] for rung in found[0]["rungs"][:length]],
        "estimates": {
            name: over_seeds(lambda s, n=name: s["targets"][target]["estimates"][n])
            for name in found[0]["targets"][target]["estimates"]
        },
        "source_accuracy": over_seeds(lambda s: [rung["source_accuracy"] for rung in s["rungs"]]),
        "accuracy": over_seeds(lambda s: s["targets"][target]["accuracy"]),
    }


def render_figure_3(content: dict[str, Any]) -> RenderableType:
    """The figure's values as a table."""
    columns = (">alpha", ">source", f">{content['target']}", *(f">{name}" for name in SHOWN))
    lines = (
        (
            f"{alpha:.4f}",
            f"{content['source_accuracy']['mean'][i]:.1%}",
            f"{content['accuracy']['mean'][i]:.1%}",
            *(f"{content['estimates'][name]['mean'][i]:.3f}" for name in SHOWN),
        )
        for i, alpha in enumerate(content["alpha"])
    )
    best = int(np.argmax(content["accuracy"]["mean"]))
    title = f"Fig. 3: {content['arch']} on {content['target']}, estimates in nats; seeds: {content['seeds']}"
    return table(title, columns, lines, marked=best)


def write(what: str, surveys: Sequence[dict[str, Any]], folder: str | Path) -> Any:
    """Make `what`, table1 or fig3, from surveys and leave it in `folder` as JSON, the figure as PNG as well."""
    folder = Path(folder)
    if what == "fig3":
        content = curves(surveys, *FIG_3)
        figure_3(content, folder / "fig3.png")
    else:
        content = table_1(surveys)
    write_json(folder / f"{what}.json", content)
    return content


RENDER: dict[str, Callable[[Any], RenderableType]] = {"table1": render_table_1, "fig3": render_figure_3}
