"""The `entropi depth` command."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from entropi.host.cli.common import Json, app, bar, pick, show
from entropi.host.tables import table

PAPER = "Instead of the paper's"  # the panels in --help of options that replace a value
PRESET = "Instead of the preset's"


@app.command()
def depth(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the steps; an unfinished one is gone on with.")],
    method: Annotated[str | None, typer.Option(help="egp, nepenthe, easier or lacoot.", show_default="easier")] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="A network of `entropi archs`, or your own: package.module:factory.", show_default="resnet18"
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="The task.", show_default="builtin:characters")] = None,
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin with a rung of this ladder, or a step of this reduced network: with what was trained there, "
            "and its source.",
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(min=0, help="Which rung or step of --from.", show_default="a ladder's last, a reduction's 0"),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Stop at a step that loses more points.", show_default="1.0")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The schedule: paper, short, smoke or demo.", show_default="short")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same steps on one machine.", show_default="0")
    ] = None,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact", help="Also merge layers where borders of maps change.", show_default="exact"
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="At most so many; EGP has 9.", rich_help_panel=PAPER)] = None,
    zeta: Annotated[
        float | None, typer.Option(help="EGP, NEPENTHE: share of weights pruned a round.", rich_help_panel=PAPER)
    ] = None,
    zero: Annotated[
        str | None, typer.Option(help="z = 0 counts as off or on, or is left out: drop.", rich_help_panel=PAPER)
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="A layer's entropy is that of all units, or of switching.", rich_help_panel=PAPER)
    ] = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="LaCoOT: weight of the distances.", rich_help_panel=PAPER)
    ] = None,
    projections: Annotated[
        int | None, typer.Option(help="LaCoOT: directions of a distance.", rich_help_panel=PAPER)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the whole network.", rich_help_panel=PRESET)] = None,
    epochs_step: Annotated[int | None, typer.Option(help="Epochs of every other step.", rich_help_panel=PRESET)] = None,
    samples_step: Annotated[
        int | None, typer.Option(help="Random images that such an epoch sees.", rich_help_panel=PRESET)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images an optimiser step.", rich_help_panel=PRESET)] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate, step 0.", rich_help_panel=PRESET)] = None,
    lr_step: Annotated[
        float | None, typer.Option(help="Highest learning rate of every other step.", rich_help_panel=PRESET)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of all weights.", rich_help_panel=PRESET)] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Share of the steps over which the rate rises.", rich_help_panel=PRESET)
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Shift and mirror images.", rich_help_panel=PRESET)
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=PRESET)] = None,
    as_json: Json = False,
) -> None:
    """Train a network, then make it shallower step by step, until accuracy drops too far.

    Accuracy that decides is that of validation images, a tenth of the training images. A ladder's rung was trained on
    these, too, so that after --from a ladder the first drop looks larger than it is; a step of a reduced network was
    not.

    --out alone goes on with a folder that was begun, with its settings; options that are given must agree with them.

    Example: entropi depth --method easier --arch resnet8 --source builtin:digits --preset demo --out runs/easier
    """
    from entropi.host.depth.methods import method as find_method
    from entropi.host.depth.reduction import DEPTH, MAX_DROP, Reduction
    from entropi.host.depth.schedules import schedule as find_schedule
    from entropi.host.training.ladder import Ladder

    begun = Reduction.open(folder) if (folder / DEPTH).exists() else None
    start = None
    if origin is not None:
        reduced = (origin / DEPTH).exists()
        opened = Reduction.open(origin) if reduced else Ladder.open(origin)
        start = pick(opened, (0 if reduced else len(opened) - 1) if at is None else at)
        arch, source = arch or opened.arch, source or opened.source
        seed = opened.seed if reduced and seed is None else seed
    elif at is not None:
        raise typer.BadParameter("--at needs --from, the folder of a ladder or a reduced network")
    if begun is not None:  # what is not given is as it was
        method, arch, source = method or begun.method.name, arch or begun.arch, source or begun.source
        seed = begun.seed if seed is None else seed
        max_drop = begun.max_drop if max_drop is None else max_drop
        approximate = begun.approximate if approximate is None else approximate
    arch = arch or "resnet18"
    chosen = begun.method if begun and begun.method.name == method else find_method(method or "easier", arch)
    chosen = chosen.changed(
        rounds=rounds, zeta=zeta, zero=zero, mean=mean, lambda_=lambda_, projections=projections
    )  # fmt: skip
    schedule = begun.schedule if begun and not preset else find_schedule(preset or "short")
    schedule = schedule.changed(
        epochs_dense=epochs, epochs_rung=epochs_step, samples_rung=samples_step, batch=batch, lr=lr, lr_rung=lr_step,
        weight_decay=weight_decay, warm_up=warm_up, augment=augment, precision=precision,
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with bar("depth") if first else nullcontext() as progress:
        built = Reduction.build(
            folder,
            chosen,
            arch=arch,
            source=source or "builtin:characters",
            schedule=schedule,
            start=start,
            max_drop=MAX_DROP if max_drop is None else max_drop,
            approximate=bool(approximate),
            seed=seed or 0,
            progress=progress,
        )
    steps = [
        {
            "step": step.index,
            "removed": step.removed,
            "validation_accuracy": step.validation_accuracy,
            "accuracy": step.accuracy,
            "drop": built.drop(step),
            "error": step.metadata["fold"]["error"],
            **step.cost,
        }
        for step in built
    ]
    best = built.best
    content = {
        "folder": str(folder), "method": built.method.name, "arch": built.arch, "max_drop": built.max_drop,
        "best": best.index, "steps": steps, **best.metadata["fold"], "rectifiers": best.metadata["rectifiers"],
    }  # fmt: skip
    if first:
        show(content, as_json, _table)


def _table(content: dict) -> RenderableType:
    columns = (
        ">step", ">removed", ">valid.", ">test", ">layers", ">depth", ">M MACs", ">non-zero", ">weights",
    )  # fmt: skip
    lines = (
        (
            str(s["step"]), str(s["removed"]), f"{s['validation_accuracy']:.1%}", f"{s['accuracy']:.1%}",
            str(s["layers"]), str(s["depth"]), f"{s['dense_macs'] / 1e6:.2f}", f"{s['nonzero_macs'] / 1e6:.2f}",
            f"{s['nonzeros']:,}",
        )
        for s in content["steps"]
    )  # fmt: skip
    within = f"step {content['best']} is the last within {content['max_drop']:g} points"
    title = f"{content['method']} on {content['arch']}; {within}"
    notes = [Text(_merge(merge)) for merge in content["merges"]]
    notes += [Text(f"not merged: {r['first']} and {r['second']}: {r['reason']}") for r in content["refusals"]]
    if content["error"]:
        notes.append(Text(f"approximate merges change the features by {content['error']:.1%} of their norm"))
    return Group(table(title, columns, lines, marked=content["best"]), *notes)


def _merge(merge: dict) -> str:
    before, after = merge["nonzero_macs"]
    how = "" if merge["exact"] else ", wrong at the border"
    return f"merged: {', '.join(merge['layers'])}: {before:,} multiply-accumulates become {after:,}{how}"
