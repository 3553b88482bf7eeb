"""The command that repeats the paper's experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entropi.host.cli.common import Json, app, bar, err, show

TABLES = ("table1", "table2", "fig3")


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="table1, table2 or fig3.", metavar="TABLE")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of everything; what is there is not done again.")
    ] = Path("runs/paper"),
    preset: Annotated[str, typer.Option(help="The schedule: paper, short or smoke.")] = "short",
    epochs: Annotated[int | None, typer.Option(help="Epochs of the dense networks, if not the preset's.")] = None,
    epochs_rung: Annotated[int | None, typer.Option(help="Epochs of every other rung.")] = None,
    step: Annotated[float | None, typer.Option(help="Share of the weights kept from rung to rung.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Shift and mirror the source's images.")
    ] = None,
    arch: Annotated[list[str] | None, typer.Option(help="A network, instead of the paper's two; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Encoders of each kind.")] = 3,
    source: Annotated[str, typer.Option(help="The source task.")] = "cifar10",
    cifar100: Annotated[str, typer.Option(help="A target; none: leave it out.")] = "cifar100,per-class=100",
    pacs: Annotated[str, typer.Option(help="PACS with its domains, such as folder:PACS; none: leave it out.")] = "none",
    vlcs: Annotated[str, typer.Option(help="VLCS, such as folder:VLCS; none: leave it out.")] = "none",
    as_json: Json = False,
) -> None:
    """The paper's tables and Fig. 3 from data to table, ours beside the paper's. Run again, it goes on.

    table2 needs no training. table1 and fig3 share their ladders; both are hours on two cores with the preset short,
    and minutes, to see the path work, with smoke.

    Example: entropi reproduce table1 --source cifar10 --pacs folder:PACS --out runs/paper
    """
    if what not in TABLES:
        raise ValueError(f"{what!r} is not known; choose from {', '.join(TABLES)}")
    if what == "table2":
        from dataclasses import asdict

        from entropi.host.networks.cost import table_2
        from entropi.host.report import render_table_2

        show([asdict(row) for row in table_2()], as_json, render_table_2)
        return
    from entropi.host.paper import ARCHS, Experiments, run
    from entropi.host.paper.results import FIG_3, RENDER, write
    from entropi.host.training.schedule import preset as find

    if what == "fig3" and (FIG_3[0] not in (arch or ARCHS) or cifar100 == "none"):
        raise ValueError(f"fig3 is of {' on '.join(FIG_3)}; ask for both, or leave out --arch and --cifar100")
    given = {"cifar100": cifar100, "pacs": pacs, "vlcs": vlcs}
    targets = {name: None if spec == "none" else spec for name, spec in given.items()}
    schedule = find(preset).changed(epochs_dense=epochs, epochs_rung=epochs_rung, step=step, augment=augment)
    experiments = Experiments(schedule, archs=tuple(arch or ARCHS), seeds=seeds, source=source, **targets)
    surveys = run(experiments, folder, bar, lambda line: err.print(f"  {line}"))
    show(write(what, surveys, folder), as_json, RENDER[what])
