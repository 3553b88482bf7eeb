"""The command about boards: what is known of them, and what fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from entropi.host.cli.common import Budget, Json, app, bar, show
from entropi.host.tables import table


@app.command()
def boards(
    bundle: Annotated[
        Path | None, typer.Argument(help="A folder that entropi-export wrote, to see what fits.", metavar="[BUNDLE]")
    ] = None,
    board: Annotated[
        list[str] | None, typer.Option(help="Only this board, by name or .toml file; may be given again.")
    ] = None,
    budget: Budget = "48KiB",
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 10,
    as_json: Json = False,
) -> None:
    """The boards that are known, with their sizes; and, for a bundle, what its firmware takes and leaves on each.

    Example: entropi boards build/r18 --budget 48KiB
    """
    from dataclasses import asdict

    from entropi.firmware_sim import board as find
    from entropi.firmware_sim import boards as known

    chosen = [find(name) for name in board] if board else list(known().values())
    if bundle is None:
        show([asdict(board) for board in chosen], as_json, _sizes)
        return
    from entropi.device import Bundle
    from entropi.host.fits import fits, render

    opened = Bundle.open(bundle)
    with bar("boards") as progress:
        content = fits(opened, chosen, budget, classes, progress)
    show(content, as_json, render)


def _sizes(content: list[dict]) -> RenderableType:
    columns = ("board", "core", ">MHz", ">flash KiB", ">RAM KiB", "sizes from")
    lines = (
        (
            board["name"],
            board["core"],
            f"{board['clock_hz'] / 1e6:g}",
            f"{board['flash']['length'] // 1024:,}",
            f"{board['ram']['length'] // 1024:,}",
            board["document"].partition(",")[0],
        )
        for board in content
    )
    return table("Boards", columns, lines)
