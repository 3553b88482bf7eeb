"""The `entropi-export` command: a rung, any torch module or an int8 TFLite model onto a device; and `check`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType

from entropi.device import Bundle, HeadConfig
from entropi.host import data
from entropi.host.cli.common import BoardName, BundlePath, Json, bar, options, show
from entropi.host.tables import table

export_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)
check_app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)

DEPTH = "depth.json"  # stands in every folder of `entropi depth`

Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]


@export_app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of `entropi ladder` or `entropi depth`, a .tflite file, or package.module:factory.",
            metavar="SOURCE",
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    rung: Annotated[
        str,
        typer.Option(
            help="Of a ladder: a number, or best, the choice of `entropi select`; of a reduced network: a step's "
            "number, or best, the last within its allowed drop."
        ),
    ] = "best",
    target: Annotated[
        str | None,
        typer.Option(
            help="Images that set the integer ranges; by default those of a ladder's selection, of a reduced network's "
            "source."
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Of a factory: the state dict, as .safetensors.")] = None,
    mean: Annotated[str | None, typer.Option(help="What is taken off pixel / 255, as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="What that is then divided by, as 0.229,0.224,0.225.")] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of accuracy that int8 may cost the head.")] = 1.0,
    optimize: Annotated[
        Literal["size", "speed"], typer.Option(help="Where bytes and instructions conflict: size or speed.")
    ] = "size",
    board: Annotated[
        str | None,
        typer.Option(
            help="With --optimize speed: the board, or .toml file, whose core counts; else a Cortex-M4F's counts."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(min=3, max=8, help="Of a weight of sparse layers: 5 by default, of a .tflite file what it has."),
    ] = None,
    train_signatures: Annotated[
        bool, typer.Option("--train-signatures", help="Also write a LiteRT model that learns the target's classes.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export an encoder as ONNX, int8 TFLite and a sparse device image, each checked before it is written.

    `entropi-export check BUNDLE` compares everything in the folder again, on an emulated board, too.

    Examples: entropi-export runs/r18 --rung best --out build/r18
    entropi-export runs/r18 --optimize speed --board raspberry-pi-pico --out build/pico
    entropi-export model_int8.tflite --out build/model
    entropi-export nets.mine:encoder --weights mine.safetensors --target folder:photos --out build/mine
    """
    options(debug)
    pixels = {"mean": _numbers("mean", mean), "std": _numbers("std", std)}
    bits = {} if weight_bits is None else {"weight_bits": weight_bits}
    aim = _aim(optimize, board)
    wanted = {"max_drop": max_drop, **aim, **bits}
    if source.endswith(".tflite"):
        _refuse("a .tflite file", rung=rung != "best", weights=weights)
        report = _export_tflite(Path(source), folder, target, train_signatures, **aim, **bits, **pixels)
    elif ":" in source:
        _refuse("a factory", rung=rung != "best")
        report = _export_module(source, weights, folder, target, pixels, train_signatures, wanted)
    elif (Path(source) / DEPTH).is_file():
        _refuse("a reduced network", weights=weights, **pixels)
        report = _export_step(Path(source), folder, rung, target, train_signatures, wanted)
    else:
        _refuse("a ladder", weights=weights, **pixels)
        report = _export_rung(Path(source), folder, rung, target, train_signatures, wanted)
    content = {name: value for name, value in report.items() if name != "layers"}
    show({"bundle": str(folder), **content}, as_json, _export_table)


@check_app.command()
def check(
    bundle: BundlePath,
    board: BoardName = "nucleo-f446re",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare torch, ONNX, TFLite, tflite-micro, the C on this host and on an emulated board, layer by layer.

    Example: entropi-export check build/r18
    """
    options(debug)
    opened = Bundle.open(bundle)
    from entropi.host.check import check as compare
    from entropi.host.check import render

    with bar("check") as progress:
        content = compare(opened, board, progress)
    show(content, as_json, render)
    if not content["passed"]:
        raise typer.Exit(1)


def _aim(optimize: str, board: str | None) -> dict[str, str]:
    """What counts, as export_encoder takes it."""
    if board is None:
        return {"optimize": optimize}
    if optimize != "speed":
        raise typer.BadParameter("--board says whose instructions count; give --optimize speed, too, or leave it out")
    from entropi.firmware_sim import board as find

    return {"optimize": optimize, "core": find(board).core}


def _export_rung(
    run: Path, folder: Path, rung: str, target: str | None, train_signatures: bool, wanted: dict[str, Any]
) -> dict[str, Any]:
    from entropi.host.selection import SELECTION, Selection
    from entropi.host.training.ladder import Ladder

    opened = Ladder.open(run)
    selection = Selection.load(run) if (run / SELECTION).is_file() else None
    if selection is None and (rung == "best" or target is None):
        what = "--rung best" if rung == "best" else "the calibration images"
        raise ValueError(f"{run} holds no selection, which {what} needs; run entropi select {run} --target NAME first")
    index = selection.rung if rung == "best" else _rung_number(rung, len(opened))
    dataset = data.load(target or selection.target)
    return {"rung": index, **_export_encoder(opened[index], dataset, folder, train_signatures, wanted)}


def _export_step(
    run: Path, folder: Path, step: str, target: str | None, train_signatures: bool, wanted: dict[str, Any]
) -> dict[str, Any]:
    from entropi.host.depth.reduction import Reduction

    opened = Reduction.open(run)
    chosen = opened.best if step == "best" else opened[_rung_number(step, len(opened))]
    dataset = data.load(target or opened.source)
    return {"step": chosen.index, **_export_encoder(chosen, dataset, folder, train_signatures, wanted)}


def _export_module(
    spec: str,
    weights: Path | None,
    folder: Path,
    target: str | None,
    pixels: dict[str, tuple[float, ...] | None],
    train_signatures: bool,
    wanted: dict[str, Any],
) -> dict[str, Any]:
    if target is None:
        raise ValueError(f"{spec} needs images that set its integer ranges; give --target, such as folder:PATH")
    from entropi.host.networks.inference import MEAN, STD
    from entropi.host.networks.module import Module, load_module

    module = load_module(spec, weights)
    dataset = data.load(target)
    channels = dataset.input_shape[0]
    mean, std = (
        _per_channel(name, pixels[name] or (usual,), channels) for name, usual in (("mean", MEAN), ("std", STD))
    )
    source = Module(spec, module, dataset.input_shape, mean, std)
    return _export_encoder(source, dataset, folder, train_signatures, wanted)


def _export_encoder(
    source, dataset: data.Dataset, folder: Path, train_signatures: bool, wanted: dict[str, Any]
) -> dict[str, Any]:
    from entropi.export import export_encoder

    with bar("export") as progress:
        return export_encoder(
            source, dataset.train, folder, lambda stage: progress(0, 1, stage),
            train_head=HeadConfig(len(dataset.classes)) if train_signatures else None, **wanted,
        ).report  # fmt: skip


def _export_tflite(
    path: Path, folder: Path, target: str | None, train_signatures: bool, **wanted: Any
) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is no file; give an int8 .tflite model")
    if train_signatures and target is None:
        raise ValueError("--train-signatures needs the classes to learn; give --target, such as folder:PATH")
    from entropi.export import export_model

    dataset = None if target is None else data.load(target)
    with bar("export") as progress:
        return export_model(
            path.read_bytes(), path.stem, folder, lambda stage: progress(0, 1, stage),
            images=None if dataset is None else dataset.train,
            train_head=HeadConfig(len(dataset.classes)) if train_signatures else None, **wanted,
        ).report  # fmt: skip


def _refuse(what: str, **given: object) -> None:
    """Options that say nothing about this kind of source."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"--{name} means nothing for {what}; leave it out")


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--{name} {text!r} is no list of numbers; write them as 0.485,0.456,0.406") from None
    if not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
        limit = "finite and above 0" if name == "std" else "finite"
        raise ValueError(f"--{name} {text!r} is out of range; every number has to be {limit}")
    return numbers


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ValueError(f"--{name} has {len(values)} values and the images {channels} channels; give one, or one each")
    return values * channels if len(values) == 1 else values


def _rung_number(text: str, count: int) -> int:
    if not text.isdecimal() or int(text) >= count:
        raise ValueError(f"--rung {text!r} is not in this folder; give best or a number from 0 to {count - 1}")
    return int(text)


def _export_table(content: dict) -> RenderableType:
    checks = content["checks"]
    aim = f"fewest instructions on {content['core']}" if "core" in content else "fewest bytes"
    lines = [
        ("device image", f"{content['image_bytes']:,} bytes; where they conflict, {aim}"),
        ("dense int8 TFLite file", f"{content['tflite_bytes']:,} bytes, with gzip {content['tflite_gzip_bytes']:,}"),
        ("weights kept", f"{content['nonzeros']:,} of {content['weights']:,} that can meet data"),
        ("multiply-accumulates an image", f"{content['macs']:,} (dense: {content['dense_macs']:,})"),
        ("equal to tflite-micro byte for byte", f"{checks['tflite_micro_images_equal_byte_for_byte']} images"),
    ]
    if "int8_cosine" in checks:
        difference, cosine = checks["onnx_runtime_largest_relative_difference"], checks["int8_cosine"]
        lines += [
            ("ONNX Runtime against PyTorch", f"largest difference {difference:.1e} of the largest feature"),
            ("int8 against float32 features", f"cosine {cosine['mean']:.4f} (smallest {cosine['min']:.4f})"),
        ]
    for name, key in (("the device's recipe", "head"), ("ridge regression", "ridge_head")):
        if head := content.get(key):
            scores = f"{head['float32']:.1%} on float32, {head['int8']:.1%} on int8 features"
            allowed = f", {head['max_drop']:g} allowed" if "max_drop" in head else ""
            lines += [
                (f"head by {name}", f"{scores}, {head['images']:,} held-out images"),
                ("what int8 costs it", f"{head['drop']:.1f} ± {100 * head['error']:.1f} points{allowed}"),
            ]
    return table(f"{content['name']} in {content['bundle']}", ("", ""), lines)
