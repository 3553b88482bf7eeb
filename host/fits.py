"""Which boards a bundle fits: what its firmware takes of flash and RAM on each, and what is left or missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from entropi.device import Bundle, plan_head
from entropi.device.toolchain import CORES
from entropi.device.units import parse_bytes
from entropi.firmware_sim import Board
from entropi.firmware_sim.boards import Memory
from entropi.firmware_sim.build import build_without_limits
from entropi.host.progress import Progress
from entropi.host.tables import table


def fits(
    bundle: Bundle, boards: Iterable[Board], budget: int | str, classes: int, progress: Progress | None = None
) -> list[dict]:
    """Each board as JSON-able data, its `flash` and `ram` with bytes `needed`, `left` and `missing`.

    The firmware is linked for each core, for the head that plan_head picks, with `budget` bytes of arena and the
    smallest stack. Raises DeviceError where
    no head of `classes` classes fits the budget, BoardError where no board could take the input.
    """
    boards, arena = list(boards), parse_bytes(budget)
    head = plan_head(bundle.image, arena, classes).head
    cores = list(dict.fromkeys(board.core for board in boards))
    linked = {}
    for number, core in enumerate(cores):
        if progress:
            progress(number, len(cores), f"linking for {core}")
        linked[core] = build_without_limits(bundle.image, core, arena, head)
    found = []
    for board in boards:
        firmware = linked[board.core]
        flash, ram = firmware.needed
        found.append(
            {
                **asdict(board),
                "flash": _share(board.flash, flash),
                "ram": _share(board.ram, ram),
                "budget": arena,
                "compiler": firmware.compiler.version,
                "flags": list(firmware.compiler.flags(CORES[board.core])),
            }
        )
    return found


def _share(memory: Memory, needed: int) -> dict[str, int]:
    left = memory.length - needed
    return {**asdict(memory), "needed": needed, "left": max(left, 0), "missing": max(-left, 0)}


def render(content: list[dict]) -> RenderableType:
    """The boards as a table, and how the firmware was compiled."""

    def columns(share: dict) -> tuple[str, str]:
        return f"{share['needed']:,}", f"missing {share['missing']:,}" if share["missing"] else f"{share['left']:,}"

    first, *others = content
    flags = [flag for flag in first["flags"] if all(flag in board["flags"] for board in others)]
    title = f"Bytes that the firmware takes, with {first['budget']:,} of arena, and leaves"
    lines = ((board["name"], *columns(board["flash"]), *columns(board["ram"])) for board in content)
    how = f"{first['compiler']} {' '.join(flags)}"
    return Group(table(title, ("board", ">flash", ">left", ">RAM", ">left"), lines), Text(how, style="dim"))
