"""Commands about networks, ladders and the choice of a rung."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from entropi.host.cli.common import Json, LadderPath, app, bar, pick, show
from entropi.host.tables import table

PRESET = "Instead of the preset's"  # the panel in --help of options that replace a value of the schedule


@app.command()
def archs(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NETWORK]...", help="Only these; also torchvision's and your own.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 10,
    every: Annotated[bool, typer.Option("--all", help="Also the names of torchvision's other classifiers.")] = False,
    as_json: Json = False,
) -> None:
    """The networks that a ladder can be built from, with their sizes, and whether they take such images.

    Example: entropi archs --size 64 --classes 5
    """
    from dataclasses import asdict

    from entropi.host.networks.archs import ARCHS, CHANNELS, classifiers
    from entropi.host.networks.cost import summary

    shape = (CHANNELS, size, size)
    content = {
        "input_shape": shape,
        "classes": classes,
        "networks": [asdict(summary(name, classes, shape)) for name in names or ARCHS],
    }
    if every:
        content["others"] = [name for name in classifiers() if name not in ARCHS]
    show(content, as_json, _archs_table)


def _archs_table(content: dict) -> RenderableType:
    networks = content["networks"]
    columns = ("network", ">parameters", ">features", ">head parameters", ">MACs an image")
    lines = (
        (
            n["name"], f"{n['parameters']:,}", f"{n['features']:,}", f"{n['head_parameters']:,}",
            "-" if n["macs"] is None else f"{n['macs']:,}",
        )
        for n in networks
    )  # fmt: skip
    title = f"Networks for {'x'.join(map(str, content['input_shape']))} images and {content['classes']} classes"
    notes = [Text(n["problem"] + "\n") for n in networks if n["problem"]]
    if "others" in content:
        notes.append(Text("Also known, by torchvision: " + ", ".join(content["others"])))
    return Group(table(title, columns, lines), *notes)


@app.command()
def ladder(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the ladder; an unfinished one is gone on with.")],
    arch: Annotated[
        str | None,
        typer.Option(
            help="A network of `entropi archs`, or your own: package.module:factory.", show_default="resnet18"
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="The source task.", show_default="builtin:characters")] = None,
    origin: Annotated[
        Path | None,
        typer.Option("--from", help="Prune a step of this reduced network, of `entropi depth`, for its source."),
    ] = None,
    at: Annotated[
        int | None, typer.Option(min=0, help="Which step of --from.", show_default="the last within its allowed drop")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The schedule: paper, short, smoke or demo.", show_default="short")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same ladder on one machine.", show_default="0")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the dense network.", rich_help_panel=PRESET)] = None,
    epochs_rung: Annotated[int | None, typer.Option(help="Epochs of every other rung.", rich_help_panel=PRESET)] = None,
    samples_rung: Annotated[
        int | None, typer.Option(help="Random images that such an epoch sees.", rich_help_panel=PRESET)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, of all processes.", rich_help_panel=PRESET)] = None,
    lr: Annotated[float | None, typer.Option(help="First learning rate, dense.", rich_help_panel=PRESET)] = None,
    lr_rung: Annotated[
        float | None, typer.Option(help="First learning rate of every other rung.", rich_help_panel=PRESET)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of all weights.", rich_help_panel=PRESET)] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(help="Share of the steps over which the learning rate rises.", rich_help_panel=PRESET),
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Share of the weights kept from rung to rung.", rich_help_panel=PRESET)
    ] = None,
    stop: Annotated[
        str | None, typer.Option(help="End at this share of all weights; or auto.", rich_help_panel=PRESET)
    ] = None,
    counts: Annotated[
        str | None, typer.Option(help="What alpha counts: weights or parameters.", rich_help_panel=PRESET)
    ] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Shift and mirror images.", rich_help_panel=PRESET)
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=PRESET)] = None,
    as_json: Json = False,
) -> None:
    """Train a network, then prune it rung by rung, retraining between.

    With --from, rung 0 is a step of a reduced network, and all shares are of the weights that it has left.

    --out alone goes on with a folder that was begun, with its settings; options that are given must agree with them.

    Example: entropi ladder --arch resnet18 --source builtin:characters --out runs/r18
    """
    from entropi.host.training.ladder import LADDER, Ladder
    from entropi.host.training.schedule import preset as find

    schedule, start = find(preset or "short"), None
    if origin is not None:
        from entropi.host.depth.reduction import Reduction

        reduction = Reduction.open(origin)
        start = reduction.best if at is None else pick(reduction, at)
        arch, source = arch or reduction.arch, source or reduction.source
    elif at is not None:
        raise typer.BadParameter("--at needs --from, the folder of a reduced network")
    if (folder / LADDER).exists():  # what is not given is as it was
        begun = Ladder.open(folder)
        arch, source, seed = arch or begun.arch, source or begun.source, begun.seed if seed is None else seed
        schedule = schedule if preset else begun.schedule
    schedule = schedule.changed(
        epochs_dense=epochs, epochs_rung=epochs_rung, samples_rung=samples_rung, batch=batch, lr=lr, lr_rung=lr_rung,
        weight_decay=weight_decay, warm_up=warm_up, step=step, stop=_number(stop), counts=counts, augment=augment,
        precision=precision,
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with bar("ladder") if first else nullcontext() as progress:
        built = Ladder.build(
            folder,
            arch=arch or "resnet18",
            source=source or "builtin:characters",
            schedule=schedule,
            start=start,
            seed=seed or 0,
            progress=progress,
        )
    names = ("alpha", "nonzeros", "source_accuracy", "source_entropy")
    rungs = [{"rung": rung.index, **{name: getattr(rung, name) for name in names}} for rung in built]
    if first:
        show({"ladder": str(folder), "rungs": rungs}, as_json, _rung_table)


def _number(text: str | None) -> float | str | None:
    """The number, or the text, of which a Schedule says what is wrong."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _rung_table(content: dict) -> RenderableType:
    columns = ("rung", ">alpha", ">non-zeros", ">source accuracy", ">source entropy, nats")
    lines = (
        (
            str(r["rung"]), f"{r['alpha']:.4f}", f"{r['nonzeros']:,}", f"{r['source_accuracy']:.1%}",
            f"{r['source_entropy']:.3f}",
        )
        for r in content["rungs"]
    )  # fmt: skip
    return table(f"Rungs of {content['ladder']}", columns, lines)


@app.command()
def select(
    run: LadderPath,
    target: Annotated[str, typer.Option(help="The target task, such as builtin:digits.")],
    estimator: Annotated[str | None, typer.Option(help="What chooses, if not the default; see above.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="An estimator to show beside it; may be repeated.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws of the images for the intervals; 0: none.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of these draws.")] = 0,
    at_most: Annotated[
        int | None,
        typer.Option(help="Leave out rungs of more non-zero weights, each of which takes 2 to 3 bytes of flash."),
    ] = None,
    source_fall: Annotated[
        float | None,
        typer.Option(
            help="Leave out rungs whose source accuracy lies further below the best; 1: none.",
            show_default="further than by chance",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure every rung on the target's training images and choose the smallest that is as good as the best.

    Rungs that have forgotten their source task are left out: their features spread, but into nothing.

    The choice is kept in RUN/selection.json, where entropi-export finds it.

    Estimators, all but the last without labels:

    - spectral-correlation, the default: entropy of the spectrum of the features' correlation

    - spectral: the same of their covariance, in which large units weigh more

    - rankme: entropy of the features' singular values

    - marginal: sum of the entropies of quantised units (paper, eq. 8)

    - paper: the paper's rule to the letter, the highest marginal entropy of all rungs

    - marginal-robust: the same, with a range that outliers do not set

    - joint: entropy of the whole quantised output (paper, eq. 6); at most log(images)

    - probe: held-out accuracy of a linear classifier; needs labels

    Example: entropi select runs/r18 --target builtin:digits --also marginal
    """
    from entropi.host import data
    from entropi.host.entropy import DEFAULT
    from entropi.host.selection import check
    from entropi.host.selection import select as choose
    from entropi.host.training.ladder import Ladder

    estimator = estimator or DEFAULT
    names = check(estimator, *(also or ()))
    opened, dataset = Ladder.open(run), data.load(target)
    with bar("select") as progress:
        selection = choose(
            opened,
            dataset.train,
            estimator,
            estimators=names,
            bootstrap=bootstrap,
            seed=seed,
            at_most=at_most,
            source_fall=source_fall,
            target=target,
            progress=progress,
        )
    selection.save(run)
    show(selection.summary(), as_json, _selection_table)


def _selection_table(content: dict) -> RenderableType:
    rungs, estimator = content["rungs"], content["estimator"]
    formats = {
        "spectral": ".3f", "spectral-correlation": ".3f", "rankme": ".3f",
        "marginal": ".1f", "marginal-robust": ".1f", "joint": ".2f", "probe": ".1%",
    }  # fmt: skip
    marked = next(i for i, rung in enumerate(rungs) if rung["rung"] == content["chosen_rung"])

    def line(rung: dict) -> Iterator[str]:
        yield from (str(rung["rung"]), f"{rung['alpha']:.4f}", f"{rung['nonzeros']:,}")
        yield f"{rung['source_accuracy']:.1%}"
        yield format(rung[estimator], formats[estimator])
        if content["bootstrap"]:
            yield " to ".join(format(end, formats[estimator]) for end in rung["interval"])
        marks = {
            "too large": rung["rung"] in content["too_large"],
            "has forgotten": rung["rung"] in content["forgotten"],
            "chosen": rung["rung"] == content["chosen_rung"],
            "best": rung["rung"] == content["best"],
            "as good": rung["as_good"],
        }
        yield next((mark for mark, fits in marks.items() if fits), "")

    interval = [">90 % interval"] * bool(content["bootstrap"])
    columns = (">rung", ">alpha", ">nonzeros", ">source", ">estimate", *interval, "")
    unit = "" if estimator == "probe" else ", in nats"
    parts = [table(f"{content['target']}: {estimator} chooses{unit}", columns, map(line, rungs), marked=marked)]
    if beside := [name for name in formats if name in rungs[0] and name != estimator]:
        lines = ([str(rung["rung"]), *(format(rung[name], formats[name]) for name in beside)] for rung in rungs)
        columns = (">rung", *(">" + name.replace("-", "\n") for name in beside))
        parts.append(table("Beside it", columns, lines, marked=marked))
    return Group(*parts, Text(content["explanation"]))
