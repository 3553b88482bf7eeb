"""Commands about emulated boards: what is learned on them, what it costs, and the demo of the whole path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    interruptible,
    show,
)
from entropi.host.tables import table

if TYPE_CHECKING:
    from entropi.device import Bundle, Device, HeadConfig

SESSION_FOLDER = "Folder of the session; an interrupted one is gone on with."
PICTURES = ".png", ".svg", ".pdf"
LEARNING_RATES = 1e-9, 1e9  # entropi_open's
INTERRUPTED = 130  # exit status, as after any ^C


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


Target = Annotated[str, typer.Option(help="The task to learn, such as builtin:digits.")]
Samples = Annotated[
    int | None, typer.Option(min=1, help="Labelled samples a class, drawn at random.", show_default="all")
]
Epochs = Annotated[int, typer.Option(min=1, help="Rounds through the samples.")]
Every = Annotated[
    int | None,
    typer.Option(min=1, help="Samples from one held-out accuracy to the next.", show_default="a tenth of all"),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the samples' choice and order.")]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate; with momentum a tenth of it.", show_default="5; 14 with new classes"),
]
NewClasses = Annotated[
    int, typer.Option(min=0, help="So many of the last classes come after the others have been learned.")
]
Replay = Annotated[
    bool,
    typer.Option(
        "--replay/--no-replay",
        help="Keep samples in what the head leaves of the budget, to learn them again beside new ones.",
    ),
]


@app.command()
def simulate(
    bundle: BundlePath,
    target: Target,
    folder: Annotated[Path, typer.Option("--out", help=SESSION_FOLDER)] = Path("runs/simulate"),
    board: BoardName = "nucleo-f446re",
    budget: Budget = "48KiB",
    samples: Samples = None,
    epochs: Epochs = 1,
    every: Every = None,
    seed: Seed = 0,
    lr: LearningRate = None,
    new_classes: NewClasses = 0,
    replay: Replay = True,
    as_json: Json = False,
) -> None:
    """Learn a task on an emulated board, sample by sample; each is predicted before it is learned.

    ^C interrupts; the same command goes on, and ends with the same bytes as without the interruption.

    Example: entropi simulate build/r18 --board nucleo-f446re --target builtin:digits --budget 48KiB
    """
    check_device(board, budget)
    plan = _plan_options(lr, new_classes, replay)
    from entropi.firmware_sim import Simulator
    from entropi.firmware_sim import board as find

    def connect(opened: Bundle, classes: int, head: HeadConfig) -> Device:
        return Simulator(opened, board, budget, classes, head)

    choices = {"samples_a_class": samples, "epochs": epochs, "every": every, "seed": seed}
    _session(connect, find(board).name, bundle, folder, target, budget, plan, choices, as_json)


@app.command()
def device(
    bundle: BundlePath,
    port: Annotated[str, typer.Option(help="The serial port, such as /dev/ttyACM0 or COM3.")],
    target: Target,
    folder: Annotated[Path, typer.Option("--out", help=SESSION_FOLDER)] = Path("runs/device"),
    baud: Annotated[int, typer.Option(min=1, help="Bits a second, as the firmware sets them.")] = 115_200,
    budget: Budget = "48KiB",
    samples: Samples = None,
    epochs: Epochs = 1,
    every: Every = None,
    seed: Seed = 0,
    lr: LearningRate = None,
    new_classes: NewClasses = 0,
    replay: Replay = True,
    as_json: Json = False,
) -> None:
    """The session of `entropi simulate` with a board at a serial port (docs/simulate.md says what firmware it runs).

    Example: entropi device build/r18 --port /dev/ttyACM0 --target builtin:digits --budget 48KiB
    """
    from entropi.device.units import parse_bytes
    from entropi.firmware_sim.serial import SerialDevice, SerialTransport

    parse_bytes(budget)
    plan = _plan_options(lr, new_classes, replay)
    transport = SerialTransport(port, baud)

    def connect(opened: Bundle, classes: int, head: HeadConfig) -> Device:
        return SerialDevice(opened, transport, baud, budget, classes, head)

    choices = {"samples_a_class": samples, "epochs": epochs, "every": every, "seed": seed}
    _session(connect, "board at a serial port", bundle, folder, target, budget, plan, choices, as_json)


def _check_picture(path: Path) -> None:
    if path.suffix not in PICTURES:
        raise ValueError(f"--picture {path} is no picture; end it in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--picture {path}: there is no folder {path.parent}; make it first")


def _plan_options(lr: float | None, new_classes: int, replay: bool) -> dict[str, Any]:
    """What plan_head is told. Raises ValueError for a learning rate that no head takes."""
    least, limit = LEARNING_RATES
    if lr is not None and not least <= lr < limit:
        raise ValueError(f"--lr {lr:g} is no learning rate; choose one from {least:g} to below {limit:g}")
    options = {"new_classes": new_classes, "keep_samples": replay}
    return options if lr is None else {"learning_rate": lr, **options}


def _session(
    connect: Callable[[Bundle, int, HeadConfig], Device],
    device_name: str,
    bundle: Path,
    folder: Path,
    target: str,
    budget: str,
    plan_options: dict[str, Any],
    choices: dict[str, int | None],
    as_json: bool,
) -> None:
    """Begin a session or go on with it, and show how it ended."""
    from entropi.device import Bundle, plan_head
    from entropi.device.units import parse_bytes

    opened, arena = Bundle.open(bundle), parse_bytes(budget)
    from entropi.host import data
    from entropi.host.session.folder import SessionFolder, Settings
    from entropi.host.session.session import Session, check_target, session_length

    dataset = data.load(target)
    classes = len(dataset.classes)
    check_target(dataset, opened, choices["samples_a_class"], plan_options["new_classes"])
    # Where new classes come at the end, the rate must not have fallen to 0 by then.
    length = (
        0 if plan_options["new_classes"] else session_length(dataset, choices["samples_a_class"], choices["epochs"])
    )
    plan = plan_head(opened.image, arena, classes, samples=length, **plan_options)
    settings = Settings(
        image_crc32=opened.image_crc32,
        target=target,
        fingerprint=dataset.fingerprint(),
        device=device_name,
        budget=arena,
        head=plan.head,
        **choices,
    )
    kept = SessionFolder(folder, settings)
    content = kept.finished
    if content is None:
        try:
            with connect(opened, classes, plan.head) as device, interruptible() as stop, bar("session") as progress:
                session = Session(kept, device, dataset)
                content = session.run(progress, stop, plan.gave_up)
                if content is None:
                    raise typer.Exit(INTERRUPTED)
        except typer.Exit:
            done = f"{session.learned:,} of {len(session.samples):,} samples"
            err.print(f"interrupted after {done}, kept in {folder}; the same command goes on", soft_wrap=True)
            raise
    shown = {name: part for name, part in content.items() if name != "samples"} if as_json else content
    show(shown, as_json, _session_table)
    err.print(f"Every sample is in {folder / 'session.json'}, the curve in {folder / 'learning_curve.png'}")


def _session_table(content: dict) -> RenderableType:
    from entropi.host.footprint import render_memory, render_work

    settings, cost = content["settings"], content["footprint"]
    first_met = len(set(content["samples"]["index"]))
    lines = [
        ("accuracy, held out", f"{content['accuracy']:.1%}"),
        ("accuracy before learning", f"{content['accuracy_before_learning']:.1%} of {first_met:,} samples"),
        ("head", f"not kept: {content['not_stored']}" if content["not_stored"] else "kept in the device's flash"),
    ]
    for which in ("new", "old"):
        if (name := f"accuracy_{which}_classes") in content:
            lines.insert(1, (f"  {which} classes", f"{content[name]:.1%}"))
    return Group(
        table(f"{settings['target']} on {cost['board']}", ("", ""), lines),
        render_memory(cost, settings["head"], content["gave_up"]),
        render_work(cost),
    )


@app.command()
def report(
    bundle: BundlePath,
    board: BoardName = "nucleo-f446re",
    budget: Budget = "48KiB",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 10,
    new_classes: NewClasses = 0,
    replay: Replay = True,
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
    from entropi.host.session.session import check_new_classes

    check_new_classes(new_classes, classes)
    if picture:
        _check_picture(picture)

    with bar("report") as progress:
        progress(0, 1, "counting and measuring")
        content = measure(opened, board, budget, classes, **_plan_options(None, new_classes, replay))
    if picture:
        from entropi.host.footprint_figure import footprint_figure

        footprint_figure(content, picture)
    show(content, as_json, render)
