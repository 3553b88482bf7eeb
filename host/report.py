"""What learning costs, the paper's Table 2 with our count beside it; what every layer of an encoder costs, and all of
them beside their dense file; then what a board was measured to need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from entropi.device import Bundle, Device
from entropi.export.costs import costs, predict, records
from entropi.firmware_sim import Simulator
from entropi.host.footprint import render_memory, render_work
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


def report(
    bundle: Bundle, board: str = "nucleo-f446re", budget: int | str = "48KiB", classes: int = 10, **options
) -> dict:
    """Everything `entropi report` prints, as JSON-able data.

    The footprint is measured in a short session on the emulated board, with the head that plan_head picks, told
    `options`. Raises BoardError or DeviceError when the bundle does not fit.
    """
    with Simulator(bundle, board, budget, classes, **options) as device:
        exercise(device, classes)
        footprint = device.footprint()
        head = asdict(device.head_config)
        gave_up = list(device.gave_up)
        measured = [run.ticks for run in device.run_layers(bundle.golden()["input"][0])]
        core = device.board.core
    return {
        "bundle": bundle.report,
        "layers": layers(bundle, measured, predict(bundle.image, bundle.report["layers"], core)),
        "prediction_errors": costs()["cores"][core]["errors"],
        "table_2": [asdict(row) for row in table_2()],
        "table_2_rules": TABLE_2_RULES,
        "budget": footprint["arena"]["given"],
        "head": head,
        "gave_up": gave_up,
        "footprint": footprint,
    }


def layers(bundle: Bundle, measured: Sequence[int], predicted: Sequence[int]) -> list[dict]:
    """The export's report of every layer, with its density, the bytes of its weights alone, and its instructions."""
    found = bundle.report["layers"]
    return [
        {
            **layer,
            "density": layer["nonzeros"] / layer["weights"] if layer["weights"] else None,
            "weight_bytes": record.weight_bytes,
            "instructions": instructions,
            "predicted_instructions": guess,
        }
        for layer, record, instructions, guess in zip(
            found, records(bundle.image, found), measured, predicted, strict=True
        )
    ]


def render(content: dict) -> RenderableType:
    """The report as tables."""
    cost = content["footprint"]
    return Group(
        render_table_2(content["table_2"]),
        _stored(content),
        _work(content),
        _totals(content),
        render_memory(cost, content["head"], content["gave_up"]),
        render_work(cost),
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


def _stored(content: dict) -> RenderableType:
    """How every layer's weights are stored."""
    with_weights = [layer for layer in content["layers"] if layer["weights"]]
    rules = sorted({layer["reason"].partition(": ")[0] for layer in with_weights})
    columns = ("layer", "stored as", "of all forms", ">kept", ">bytes", ">bound")
    lines = (
        (
            layer["name"],
            layer["encoding"],
            layer["reason"].partition(": ")[2],
            f"{100 * layer['density']:.3g}%",
            f"{layer['weight_bytes']:,}",
            f"{layer['bound']:,.0f}",
        )
        for layer in with_weights
    )
    title = f"Weights, each layer's in the form of {' or '.join(rules)}; the bound is Shannon's"
    return table(title, columns, lines)


def _work(content: dict) -> RenderableType:
    """What every layer computes."""
    columns = ("layer", ">output", ">dense MACs", ">MACs", ">instructions", ">predicted")
    lines = (
        (
            layer["name"],
            "x".join(map(str, layer["shape"])),
            f"{layer['dense_macs']:,}" if layer["dense_macs"] else "",
            f"{layer['macs']:,}" if layer["dense_macs"] else "",
            f"{layer['instructions']:,}",
            f"{layer['predicted_instructions']:,}",
        )
        for layer in content["layers"]
    )
    cost = content["footprint"]
    return table(f"Work of every layer on {cost['core']}, for one image", columns, lines)


def _totals(content: dict) -> RenderableType:
    layers, bundle = content["layers"], content["bundle"]

    def total(name: str) -> int:
        return sum(layer[name] or 0 for layer in layers)

    weights, bound = total("weight_bytes"), total("bound")
    lines = [
        ("device image, bytes", f"{bundle['image_bytes']:,}"),
        ("  of it weights", f"{weights:,}" + (f", {weights / bound:.2f} x Shannon's bound" if bound else "")),
    ]
    dense = {"tflite_bytes": "dense int8 TFLite file, bytes", "tflite_gzip_bytes": "  packed with gzip -9"}
    for name in filter(bundle.__contains__, dense):
        lines.append((dense[name], f"{bundle[name]:,}, {bundle[name] / bundle['image_bytes']:.1f} x the image"))
    lines += [
        ("weights kept", f"{total('nonzeros'):,} of {total('weights'):,}"),
        ("MACs an image", f"{total('macs'):,} of {total('dense_macs'):,}"),
        ("instructions an image, measured", f"{total('instructions'):,}"),
    ]
    error = content["prediction_errors"]["networks held out"]
    off = f"; of random networks, off by {error['whole network']:.1%} at most"
    lines.append(("  predicted", f"{total('predicted_instructions'):,}{off}"))
    if "activations" in bundle:
        lines += _activations(bundle["activations"], bundle["removed"])
    return table(f"{bundle['name']} in all", ("", ""), lines)


def _activations(memory: dict, removed: dict) -> list[tuple[str, str]]:
    """Where the RAM goes, and what was removed without changing a byte."""
    alive = ", ".join("x".join(map(str, t["shape"])) for t in memory["alive_there"])
    gone = {kind: removed[kind] for kind in ("constant", "unread", "folded")}
    return [
        ("activations, bytes", f"{memory['bytes']:,}; living tensors cover {memory['least_bytes']:,} of them at once"),
        ("  most of them at", f"{memory['peak_layer']}: {alive}; a smaller input or fewer channels there lower it"),
        ("  scratch of that layer", f"{memory['scratch_bytes']:,}"),
        ("  borders there", f"{memory['border_bytes']:,}; with --optimize size only where the whole takes no more"),
        ("  tflite-micro's arena for the same file", f"{memory['tflite_micro_arena_bytes']:,} on this machine"),
        ("channels left out", f"{gone['constant']['channels']:,} constant, {gone['unread']['channels']:,} unread"),
        ("  with them weights", f"{sum(saving['weights'] for saving in gone.values()):,}"),
    ]
