"""Commands about emulated boards: what is learned on them, what it costs, and the demo of the whole path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from entropi.host.cli.common import (
    BoardName,
    Budget,
    BundlePath,
    Json,
    app,
    bar,
    check_device,
    err,
    show,
)
from entropi.host.tables import table


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for every artefact.")] = Path("runs/demo"),
    board: BoardName = "nucleo-f446re",
    budget: Budget = "48KiB",
    as_json: Json = False,
) -> None:
    """The whole path on built-in data: train, prune, select, export, learn on an emulated Cortex-M4.

    Run again after an interruption, it goes on.

    Example: entropi demo --out runs/demo --budget 48KiB
    """
    check_device(board, budget)
    from entropi.host.demo import render, run

    content = run(folder, bar, lambda line: err.print(f"  {line}"), board, budget)
    show(content, as_json, render)
    err.print(f"Everything is in {folder}: ladder/, entropy.png, build/, demo.json ({content['seconds']:.0f} s)")


@app.command()
def simulate(
    bundle: BundlePath,
    target: Annotated[str, typer.Option(help="The task to learn, such as builtin:digits.")],
    board: BoardName = "nucleo-f446re",
    budget: Budget = "48KiB",
    samples: Annotated[int, typer.Option(min=1, help="Labelled samples a class.")] = 10,
    draws: Annotated[int, typer.Option(min=1, help="Random draws of the few samples.")] = 1,
    as_json: Json = False,
) -> None:
    """Learn a task on an emulated board: with few samples a class, then with all of them.

    Example: entropi simulate build/r18 --board nucleo-f446re --target builtin:digits --budget 48KiB
    """
    from dataclasses import asdict

    from entropi.device import Bundle

    opened = Bundle.open(bundle)
    check_device(board, budget)
    from entropi.device.files import write_json
    from entropi.device.library import describe
    from entropi.firmware_sim import Simulator
    from entropi.host import data
    from entropi.host.lesson import check_target, encode, lesson

    dataset = data.load(target)
    info = describe(opened.image)
    check_target(dataset, (info.channels, info.height, info.width), samples)
    with Simulator(opened, board=board, budget=budget, classes=len(dataset.classes)) as device:
        with bar("simulate") as progress:
            train = encode([device], dataset.train, progress, "encoding the training images")
            test = encode([device], dataset.test, progress, "encoding the held-out images")
            grades = lesson(device, train, test, samples, draws, progress)
        content = {
            "target": target,
            "grades": asdict(grades),
            "head": asdict(device.head_config),
            "gave_up": list(device.gave_up),
            "footprint": device.footprint(),
        }
    write_json(bundle / "session.json", content)
    show(content, as_json, _session_table)


def _session_table(content: dict) -> RenderableType:
    from entropi.host.report import describe_head, instructions

    grades, cost = content["grades"], content["footprint"]
    few = grades["few"]
    arena, flash, ram, stack = cost["arena"], cost["flash"], cost["ram"], cost["stack"]
    lines = (
        (f"accuracy, {grades['samples_a_class']} a class", f"{sum(few) / len(few):.1%} ({len(few)} draws)"),
        ("accuracy, all samples", f"{grades['all']:.1%}"),
        ("head", describe_head(content["head"], content["gave_up"])),
        ("arena", f"{arena['total']:,} of {arena['given']:,} bytes"),
        ("flash", f"{flash['total']:,} of {flash['given']:,} bytes"),
        ("stack", f"{stack['used']:,} of {stack['given']:,} bytes, of {ram['given']:,} of RAM"),
    )
    return Group(table(f"{content['target']} on {cost['board']}", ("", ""), lines), instructions(cost))


@app.command()
def report(
    bundle: BundlePath,
    board: BoardName = "nucleo-f446re",
    budget: Budget = "48KiB",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 10,
    picture: Annotated[
        Path | None, typer.Option(help="Draw bytes and instructions of every layer, as .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The paper's Table 2 beside ours, then what the board was measured to need.

    Example: entropi report build/r18 --budget 48KiB
    """
    from entropi.device import Bundle

    opened = Bundle.open(bundle)
    check_device(board, budget)
    from entropi.host.report import render
    from entropi.host.report import report as measure

    with bar("report") as progress:
        progress(0, 1, "counting and measuring")
        content = measure(opened, board, budget, classes)
    if picture:
        from entropi.host.footprint_figure import footprint_figure

        footprint_figure(content, picture)
    show(content, as_json, render)
