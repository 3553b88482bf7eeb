"""Every layer of a bundle on an emulated board, whether the bundle fits that board or not."""

from __future__ import annotations

from dataclasses import replace

from entropi.device import SMALLEST_HEAD, Bundle, measure
from entropi.firmware_sim import Board, BoardError, Simulator
from entropi.firmware_sim.boards import PAGE


def open_encoder(bundle: Bundle, on: Board) -> Simulator:
    """The bundle on the board `on`, with the smallest head. Where flash or RAM is too small for it, on one with as much
    as it needs, whose name says so.

    Raises BoardError (a core that is not emulated, an input that no frame holds) and DeviceError (a damaged image).
    """
    arena = measure(bundle.image, SMALLEST_HEAD).total
    while True:
        try:
            return Simulator(bundle, board=on, budget=arena, head=SMALLEST_HEAD)
        except BoardError as refused:
            if not refused.region:
                raise
            size = -(-refused.needed // PAGE) * PAGE
            region = replace(getattr(on, refused.region), length=size)
            shown = f"{size >> 10} KiB of {'RAM' if refused.region == 'ram' else refused.region}"
            joint = "and" if " with " in on.name else "with"
            on = replace(on, name=f"{on.name} {joint} {shown}", **{refused.region: region})
