"""What the commands share: options, the progress bar, and how results are shown."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)

WIDE = 100  # columns of a terminal with room for a long bar

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
BoardName = Annotated[str, typer.Option("--board", help="A board of `entropi boards`, or a .toml file.")]
Budget = Annotated[str, typer.Option(help="Bytes for everything in the arena: 49152, 48KiB or 48kB.")]
BundlePath = Annotated[Path, typer.Argument(help="A folder that entropi-export wrote.", metavar="BUNDLE")]
LadderPath = Annotated[Path, typer.Argument(help="A folder that `entropi ladder` wrote.", metavar="RUN")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False):
    """Prune a network, pick the encoder with the highest entropy on your data, and let a microcontroller learn from it.

    Start with [bold]entropi demo[/bold].
    """
    if debug:
        os.environ["ENTROPI_DEBUG"] = "1"


@contextmanager
def bar(title: str) -> Iterator[Any]:
    """A progress bar on standard error; yields progress(done, total, text)."""
    columns = (
        TextColumn("[bold]{task.fields[title]}[/bold]"),
        BarColumn(bar_width=24 if err.width > WIDE else 8),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=err, expand=True) as progress:
        task = progress.add_task("", title=title, total=None)

        def update(done: int, total: int, text: str) -> None:
            progress.update(task, completed=done, total=total if total > 1 else None, description=text)

        yield update
        progress.update(task, total=1, completed=1, description="")


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether ^C was pressed. It only asks, so that nothing is cut in the middle; pressed
    once more it ends the process."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def check_device(board: str, budget: str) -> None:
    """Refuse a board that is unknown or not emulated, and a malformed budget, before anything slow is loaded."""
    from entropi.device.units import parse_bytes
    from entropi.firmware_sim import board as find
    from entropi.firmware_sim.qemu import check_emulated

    check_emulated(find(board))
    parse_bytes(budget)


def pick(folder, index: int):
    """A rung of a ladder or a step of a reduction by its index. Raises ValueError where there is none."""
    if not len(folder):
        raise ValueError(f"{folder.path} holds no trained network yet; finish it first")
    if index >= len(folder):
        raise ValueError(f"--at {index} is not in {folder.path}; give a number from 0 to {len(folder) - 1}")
    return folder[index]


def show(content: Any, as_json: bool, render) -> None:
    if as_json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        out.print(render(content))
