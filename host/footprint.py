"""What a head takes on a device, as tables: the plan, every byte, and the work of each call."""

from __future__ import annotations

from rich.console import RenderableType

from entropi.host.tables import table

LEARNING_PARTS = ("weights", "momentum", "gradient", "batch", "replay")


def describe_head(head: dict, gave_up: list[str]) -> str:
    """The plan for the head in a line."""
    text = f"{head['bytes_per_parameter']} bytes a parameter, batch {head['batch']}"
    if head["replay"]:
        text += f", {head['replay']:,} samples for replay"
    return text + (f"; given up for the budget: {', '.join(gave_up)}" if gave_up else "")


def render_memory(cost: dict, head: dict, gave_up: list[str]) -> RenderableType:
    """The plan, and every byte of what Device.footprint tells: of the arena always, of flash, RAM and stack where the
    device knows them."""
    arena = cost["arena"]
    parts = {
        "arena": {
            **{part: arena[part] for part in LEARNING_PARTS},
            "encoder, and in its place": arena["encoder"],
            "learning": arena["learning"],
            "used": arena["total"],
            "budget": arena["given"],
        },
        "flash": cost.get("flash", {}),
        "RAM": cost.get("ram", {}),
        "stack": cost["stack"],
    }
    lines = [
        (memory if number == 0 else "", part, f"{size:,}")
        for memory, sizes in parts.items()
        for number, (part, size) in enumerate(sizes.items())
    ]
    new = f", {head['new_classes']} of them to come later" if head["new_classes"] else ""
    title = f"{cost['board']}, {head['classes']} classes{new}: {describe_head(head, gave_up)}"
    return table(title, ("memory", "part", ">bytes"), lines)


def render_work(cost: dict) -> RenderableType:
    """Instructions by kind of call with core, compiler and flags; for a real board, the ticks of its clock."""
    how = " ".join((cost["compiler"], *cost.get("flags", ())))
    unit = "Instructions" if "instructions" in cost else "Ticks of the board's clock"
    calls = cost["instructions"] if "instructions" in cost else cost["ticks"]
    lines = (
        (call, *(f"{ticks[k]:,.0f}" for k in ("calls", "min", "mean", "max")))
        for call, ticks in calls.items()
        if ticks["calls"]
    )
    return table(f"{unit} on {cost['core']}, {how}", ("call", ">calls", ">least", ">mean", ">most"), lines)
