"""The command line: thin layers over the Python API. Exit status 0 ok, 1 failed, 2 wrong use."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from entropi.host.tables import table

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)
export_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
BoardName = Annotated[str, typer.Option("--board", help="A board of `entropi boards`, or a .toml file.")]
Budget = Annotated[str, typer.Option(help="Bytes for everything in the arena: 49152, 48KiB or 48kB.")]
BundlePath = Annotated[Path, typer.Argument(help="A folder that entropi-export wrote.", metavar="BUNDLE")]
LadderPath = Annotated[Path, typer.Argument(help="A folder that `entropi ladder` wrote.", metavar="RUN")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False):
    """Prune a network, pick the encoder with the highest entropy on your data, and let a microcontroller learn from it.

    Start with [bold]entropi demo[/bold].
    """
    if debug:
        os.environ["ENTROPI_DEBUG"] = "1"


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    """A progress bar on standard error; yields progress(done, total, text)."""
    columns = (
        TextColumn("[bold]{task.fields[title]}[/bold]"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("", title=title, total=None)

        def update(done: int, total: int, text: str) -> None:
            progress.update(task, completed=done, total=total if total > 1 else None, description=text)

        yield update
        progress.update(task, total=1, completed=1, description="")


def _check_device(board: str, budget: str) -> None:
    """Refuse an unknown board and a malformed budget before anything slow is loaded."""
    from entropi.device.units import parse_bytes
    from entropi.firmware_sim import board as find

    find(board)
    parse_bytes(budget)


def _print(content: Any, as_json: bool, render) -> None:
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        out.print(render(content))


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
    _check_device(board, budget)
    from entropi.host.demo import render, run

    content = run(folder, _bar, lambda line: err.print(f"  {line}"), board, budget)
    _print(content, as_json, render)
    err.print(f"Everything is in {folder}: ladder/, entropy.png, build/, demo.json ({content['seconds']:.0f} s)")


@app.command()
def ladder(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the ladder; an unfinished one is gone on with.")],
    arch: Annotated[str, typer.Option(help="The network.")] = "resnet18",
    source: Annotated[str, typer.Option(help="The source task.")] = "builtin:characters",
    preset: Annotated[str, typer.Option(help="The schedule: demo or paper.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same ladder on one machine.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a network, then prune it rung by rung, retraining between.

    Example: entropi ladder --arch resnet18 --source builtin:characters --out runs/r18
    """
    from entropi.host.ladder import Ladder
    from entropi.host.schedule import PRESETS

    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; choose from {', '.join(PRESETS)}")
    with _bar("ladder") as progress:
        built = Ladder.build(folder, arch=arch, source=source, schedule=PRESETS[preset], seed=seed, progress=progress)
    rungs = [
        {"rung": r.index, "alpha": r.alpha, "nonzeros": r.nonzeros, "source_accuracy": r.source_accuracy} for r in built
    ]
    _print({"ladder": str(folder), "rungs": rungs}, as_json, lambda c: _rung_table(c["rungs"], None))


@app.command()
def select(
    run: LadderPath,
    target: Annotated[str, typer.Option(help="The target task, such as builtin:digits.")],
    estimator: Annotated[str, typer.Option(help="spectral, or the paper's marginal or joint.")] = "spectral",
    as_json: Json = False,
) -> None:
    """Measure the entropy of every rung on the target's training images and choose the highest.

    The choice is kept in RUN/selection.json, where entropi-export finds it.

    Example: entropi select runs/r18 --target builtin:digits
    """
    from dataclasses import asdict

    from entropi.host import data
    from entropi.host.ladder import Ladder
    from entropi.host.selection import select as choose

    opened, dataset = Ladder.open(run), data.load(target)
    with _bar("select") as progress:
        selection = choose(opened, dataset.train, estimator, target=target, progress=progress)
    selection.save(run)
    rungs = [{**asdict(r), **asdict(r.entropy)} for r in selection.rungs]
    content = {"target": target, "estimator": estimator, "chosen_rung": selection.rung, "rungs": rungs}
    _print(content, as_json, lambda c: _rung_table(c["rungs"], c["chosen_rung"]))


def _rung_table(rungs: list[dict], chosen: int | None) -> RenderableType:
    formats = {
        "rung": "d", "alpha": ".4f", "nonzeros": ",d", "source_accuracy": ".1%",
        "spectral": ".3f", "marginal": ".1f", "joint": ".2f",
    }  # fmt: skip
    shown = {name: form for name, form in formats.items() if name in rungs[0]}
    columns = [">" + name.replace("_", " ") for name in shown]
    lines = ([format(rung[name], form) for name, form in shown.items()] for rung in rungs)
    title = "Rungs" if chosen is None else f"Rungs, entropies in nats; chosen: rung {chosen}"
    return table(title, columns, lines, marked=chosen)


@export_app.command()
def export(
    run: LadderPath,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    rung: Annotated[str, typer.Option(help="A number, or best: the one that `entropi select` chose.")] = "best",
    target: Annotated[
        str | None, typer.Option(help="Images that set the integer ranges; default: the selection's target.")
    ] = None,
    as_json: Json = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    """Export a rung as ONNX, int8 TFLite and a sparse device image, each checked after writing.

    Example: entropi-export runs/r18 --rung best --out build/r18
    """
    _options(debug)
    from entropi.export import export_encoder
    from entropi.host import data
    from entropi.host.ladder import Ladder
    from entropi.host.selection import SELECTION, Selection

    opened = Ladder.open(run)
    selection = Selection.load(run) if (run / SELECTION).is_file() else None
    if selection is None and (rung == "best" or target is None):
        what = "--rung best" if rung == "best" else "the calibration images"
        raise ValueError(f"{run} holds no selection, which {what} needs; run entropi select {run} --target NAME first")
    index = selection.rung if rung == "best" else _rung_number(rung, len(opened))
    dataset = data.load(target or selection.target)
    with _bar("export") as progress:
        bundle = export_encoder(opened[index], dataset.train, folder, lambda stage: progress(0, 1, stage))
    content = {"bundle": str(folder), "rung": index, **{k: v for k, v in bundle.report.items() if k != "layers"}}
    _print(content, as_json, _export_table)


def _rung_number(text: str, count: int) -> int:
    if not text.isdecimal() or int(text) >= count:
        raise ValueError(f"--rung {text!r} is no rung of this ladder; give best or a number from 0 to {count - 1}")
    return int(text)


def _export_table(content: dict) -> RenderableType:
    checks = content["checks"]
    difference = checks["onnx_runtime_largest_relative_difference"]
    cosine = checks["int8_cosine"]
    lines = (
        ("device image", f"{content['image_bytes']:,} bytes"),
        ("weights kept", f"{content['nonzeros']:,} of {content['weights']:,} that can meet data"),
        ("multiply-accumulates an image", f"{content['macs']:,} (dense: {content['dense_macs']:,})"),
        ("equal to tflite-micro byte for byte", f"{checks['tflite_micro_images_equal_byte_for_byte']} images"),
        ("ONNX Runtime against PyTorch", f"largest difference {difference:.1e} of the largest feature"),
        ("int8 against float32 features", f"cosine {cosine['mean']:.4f} (smallest {cosine['min']:.4f})"),
    )
    return table(f"{content['name']} in {content['bundle']}", ("", ""), lines)


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
    _check_device(board, budget)
    from entropi.device.files import write_json
    from entropi.device.library import describe
    from entropi.firmware_sim import Simulator
    from entropi.host import data
    from entropi.host.lesson import check_target, encode, lesson

    dataset = data.load(target)
    info = describe(opened.image)
    check_target(dataset, (info.channels, info.height, info.width), samples)
    with Simulator(opened, board=board, budget=budget, classes=len(dataset.classes)) as device:
        with _bar("simulate") as progress:
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
    _print(content, as_json, _session_table)


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
    as_json: Json = False,
) -> None:
    """The paper's Table 2 beside ours, then what the board was measured to need.

    Example: entropi report build/r18 --budget 48KiB
    """
    from entropi.device import Bundle

    opened = Bundle.open(bundle)
    _check_device(board, budget)
    from entropi.host.report import render
    from entropi.host.report import report as measure

    with _bar("report") as progress:
        progress(0, 1, "counting and measuring")
        content = measure(opened, board, budget, classes)
    _print(content, as_json, render)


@app.command()
def boards(as_json: Json = False) -> None:
    """The boards that are known, with their sizes.

    Example: entropi boards
    """
    from dataclasses import asdict

    from entropi.firmware_sim import boards as known

    def render(content: list[dict]) -> RenderableType:
        columns = ("board", "core", ">flash, bytes", ">RAM, bytes", ">MHz", "sizes from")
        lines = (
            (
                b["name"], b["core"], f"{b['flash']['length']:,}", f"{b['ram']['length']:,}",
                f"{b['clock_hz'] / 1e6:g}", b["document"],
            )
            for b in content
        )  # fmt: skip
        return table("Boards", columns, lines)

    _print([asdict(board) for board in known().values()], as_json, render)


def _run(application: typer.Typer) -> None:
    """Run a command; anything it raises becomes one line on standard error and exit status 1."""
    try:
        application()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if os.environ.get("ENTROPI_DEBUG"):
            raise
        text = str(error)
        if isinstance(error, ImportError):
            text += "; install the extras: pip install 'entropi[sim,tflite]'"
        err.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
        sys.exit(1)


def main() -> None:
    """The `entropi` command."""
    _run(app)


def export_main() -> None:
    """The `entropi-export` command."""
    _run(export_app)


if __name__ == "__main__":
    main()
