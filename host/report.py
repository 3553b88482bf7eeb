"""What learning costs: the paper's Table 2 with our count beside it, then what a board was measured to need."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from entropi.device import Bundle, Device
from entropi.firmware_sim import Simulator
from entropi.host.networks.cost import TABLE_2_BATCH, TABLE_2_CLASSES, table_2
from entropi.host.tables import table

TABLE_2_RULES = (
    f"Frozen: FLOPs = 2 x batch {TABLE_2_BATCH} x features x {TABLE_2_CLASSES} classes; memory = 12 bytes (weight, "
    "gradient, momentum in float32) x head parameters. These rules give the paper's digits.",
    "Full: FLOPs = 3 x 2 x MACs x batch at 3x32x32 (backward counted as two forward passes); memory = 12 bytes x "
    "parameters + what autograd keeps of one batch. No rule was found that gives the paper's figures for both "
    "networks, so ours stand beside them. M and MB are decimal.",
)


def exercise(device: Device, classes: int) -> None:
    """Encode the golden images and learn from them until a step has been taken, so that all has been counted."""
    features = [device.encode(values) for values in device.bundle.golden()["input"]]
    for i in range(device.head_config.batch):
        device.learn_features(features[i % len(features)], i % classes)
    device.predict_features(features[0])


def report(bundle: Bundle, board: str = "nucleo-f446re", budget: int | str = "48KiB", classes: int = 10) -> dict:
    """Everything `entropi report` prints, as JSON-able data.

    The footprint is measured in a short session on the emulated board. Raises BoardError or DeviceError when the
    bundle does not fit.
    """
    with Simulator(bundle, board=board, budget=budget, classes=classes) as device:
        exercise(device, classes)
        footprint = device.footprint()
        head = asdict(device.head_config)
        gave_up = list(device.gave_up)
    return {
        "bundle": bundle.report,
        "table_2": [asdict(row) for row in table_2()],
        "table_2_rules": TABLE_2_RULES,
        "budget": footprint["arena"]["given"],
        "head": head,
        "gave_up": gave_up,
        "footprint": footprint,
    }


def render(content: dict) -> RenderableType:
    """The report as tables."""
    cost = content["footprint"]
    return Group(
        render_table_2(content["table_2"]),
        _layers(content["bundle"]),
        _memory(content),
        instructions(cost),
    )


def render_table_2(rows: list[dict]) -> RenderableType:
    """The paper's Table 2, ours beside it, and the rules of ours."""
    columns = ("network", "encoder", ">FLOPs", ">paper", ">bytes", ">paper")
    lines = (
        (
            row["network"], row["mode"], f"{row['ours']['flops']:,}", f"{row['paper_mflops']:,.2f} M",
            f"{row['ours']['bytes']:,}", f"{row['paper_megabytes']:,.2f} MB",
        )
        for row in rows
    )  # fmt: skip
    title = f"Table 2: learning one batch, a head of {TABLE_2_CLASSES} classes"
    return Group(table(title, columns, lines), *(Text(rule + "\n", style="dim") for rule in TABLE_2_RULES))


def _layers(bundle: dict) -> RenderableType:
    title = f"{bundle['name']}: {bundle['image_bytes']:,} bytes of image, {bundle['nonzeros']:,} stored weights"
    columns = ("layer", "stored as", ">output", ">weights", ">kept", ">bytes", ">MACs")
    lines = (
        (
            layer["name"],
            layer["encoding"] or layer["kind"],
            "x".join(map(str, layer["shape"])),
            f"{layer['weights']:,}" if layer["weights"] else "",
            f"{layer['nonzeros'] / layer['weights']:.1%}" if layer["weights"] else "",
            f"{layer['bytes']:,}",
            f"{layer['macs']:,}" if layer["macs"] else "",
        )
        for layer in bundle["layers"]
    )
    return table(title, columns, lines)


def describe_head(head: dict, gave_up: list[str]) -> str:
    """The plan for the head in a line."""
    text = f"{head['bytes_per_parameter']} bytes a parameter, batch {head['batch']}"
    return text + (f"; given up for the budget: {', '.join(gave_up)}" if gave_up else "")


def _memory(content: dict) -> RenderableType:
    cost, head = content["footprint"], content["head"]
    arena = cost["arena"]
    learning = {part: arena[part] for part in ("weights", "momentum", "gradient", "batch")}
    parts = {
        "arena": {
            **learning,
            "encoder, and in its place": arena["encoder"],
            "learning": arena["learning"],
            "used": arena["total"],
            "budget": arena["given"],
        },
        "flash": cost["flash"],
        "RAM": cost["ram"],
        "stack": cost["stack"],
    }
    lines = [
        (memory if number == 0 else "", part, f"{size:,}")
        for memory, sizes in parts.items()
        for number, (part, size) in enumerate(sizes.items())
    ]
    title = f"{cost['board']}, {head['classes']} classes: {describe_head(head, content['gave_up'])}"
    return table(title, ("memory", "part", ">bytes"), lines)


def instructions(cost: dict) -> RenderableType:
    """Executed instructions by kind of call, with core, compiler and flags."""
    title = f"Instructions on {cost['core']}, {cost['compiler']} {' '.join(cost['flags'])}"
    lines = (
        (call, *(f"{ticks[k]:,.0f}" for k in ("calls", "min", "mean", "max")))
        for call, ticks in cost["instructions"].items()
        if ticks["calls"]
    )
    return table(title, ("call", ">calls", ">least", ">mean", ">most"), lines)
