"""`entropi demo`: the whole path, from printed characters to handwritten digits learned on an emulated Cortex-M4."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import RenderableType

from entropi.device import Bundle, Device, HostDevice
from entropi.device.files import write_json
from entropi.export import MAX_DROP, export_encoder, export_pixels
from entropi.firmware_sim import Board, BoardError, Simulator, board
from entropi.firmware_sim.boards import Memory
from entropi.host import data
from entropi.host.accuracy import HeadAccuracy
from entropi.host.figures import entropy_figure
from entropi.host.lesson import encode, lesson
from entropi.host.networks.cost import parameters
from entropi.host.networks.inference import outputs
from entropi.host.probe import probe, probe_features
from entropi.host.progress import Progress
from entropi.host.report import exercise
from entropi.host.selection import FEWEST_DRAWS, select
from entropi.host.tables import table
from entropi.host.training.ladder import Ladder, Rung
from entropi.host.training.schedule import PRESETS, Schedule

VIRTUAL_FLASH = 16 << 20
FLASH_A_WEIGHT = 3  # bytes, at most, of what the image of so many weights and the code take
BOARDS = 2  # emulated boards that share the encoding, one a core

Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Tasks:
    """What is learned: the source task, the target task, and the target's raw pixels as the baseline sees them."""

    source: data.Dataset
    target: data.Dataset
    pixels: data.Dataset

    @classmethod
    def builtin(cls) -> Tasks:
        """Printed characters to handwritten digits."""
        return cls(*(data.load(f"builtin:{name}") for name in ("characters", "digits", "digits8x8")))


@dataclass(frozen=True)
class Row:
    """One column of the demo's table. Sizes in bytes, accuracies 0..1, instructions executed on the emulated core.

    `flash_missing` is how many bytes the board's flash is too small by. Where it is, the counts are taken on the same
    core with more flash, and features and heads are computed by the same C on the host, bit for bit the board's."""

    name: str
    parameters: int
    nonzeros: int
    macs: int
    flash: int
    flash_missing: int
    ram: int
    arena: int
    instructions_image: float
    instructions_learn: float
    few: tuple[float, ...]
    all: float


def run(
    folder: str | Path,
    bar: Bar,
    say: Callable[[str], None],
    board_name: str = "nucleo-f446re",
    budget: int | str = "48KiB",
    tasks: Callable[[], Tasks] = Tasks.builtin,
    schedule: Schedule = PRESETS["demo"],
    max_drop: float = MAX_DROP,
) -> dict:
    """Run the demo in `folder`, going on with a ladder that an earlier run began; returns what demo.json holds.

    `bar(title)` opens a progress bar, `say(line)` prints a line; int8 may cost the chosen rung `max_drop` points of
    accuracy. Raises what the steps raise.
    """
    started = time.perf_counter()
    folder = Path(folder)
    on = board(board_name)

    with bar("1 source: printed characters") as progress:
        progress(0, 1, "rendering")
        found = tasks()
        source, target = found.source, found.target
    say(f"{len(source.train):,} images of {len(source.classes)} classes; {len(target.train):,} target images to learn")

    with bar("2 ladder: train, prune, retrain") as progress:
        ladder = Ladder.build(folder / "ladder", source=source, schedule=schedule, progress=progress)
    say(f"{len(ladder)} rungs down to {ladder[-1].nonzeros:,} weights, alpha {ladder[-1].alpha:.4f}")

    kept: list[tuple[np.ndarray, np.ndarray]] = []  # every rung's features, which the picture needs as well

    def features(rung: Rung) -> np.ndarray:
        encoder = rung.encoder()
        train, test = (outputs(encoder, split) for split in (target.train, target.test))
        kept.append((train, test))
        return train

    with bar("3 select: entropy on the target") as progress:
        selection = select(
            ladder,
            target.train,
            estimators=("marginal", "joint"),
            bootstrap=FEWEST_DRAWS,
            at_most=on.flash.length // FLASH_A_WEIGHT,
            target=target.name,
            features=features,
            progress=progress,
        )
        selection.save(ladder.path)
    chosen = ladder[selection.rung]
    say(f"chosen: rung {chosen.index}, {chosen.nonzeros:,} weights, alpha {chosen.alpha:.4f}")
    say(selection.explanation)

    # One process more, on what the steps below leave idle: it prepares what the chosen rung is compared with.
    # Leaving the pool, by an error or ^C too, ends the process at once.
    with multiprocessing.get_context("spawn").Pool(1, _stay_behind) as background:
        probes = background.apply_async(_probe_all, (kept, found))
        dense = background.apply_async(_dense, (ladder[0], target, folder / "build" / "dense", budget))

        with bar("4 export: ONNX, int8 TFLite, image") as progress:
            bundle = export_encoder(
                chosen, target.train, folder / "build" / "chosen", lambda s: progress(0, 1, s), max_drop=max_drop
            )
            pixels = export_pixels(found.pixels.train, folder / "build" / "pixels")
        checked = bundle.report["checks"]["tflite_micro_images_equal_byte_for_byte"]
        say(f"{len(bundle.image):,} bytes of image; features of {checked} images equal tflite-micro's byte for byte")

        with bar(f"5 {on.name}: encode and learn") as progress:
            rows = [
                _row_on_board("chosen rung", chosen, bundle, target, on, budget, progress),
                _row_on_board("raw pixels", None, pixels, found.pixels, on, budget, progress),
            ]
        with bar("6 the dense network, to compare") as progress:
            progress(0, 1, "waiting for its features")
            accuracies, baseline = probes.get()
            entropy_figure(selection, accuracies, folder / "entropy.png", baseline)
            rows.insert(0, _dense_row(ladder[0], *dense.get(), on, budget))

    content = {
        "board": on.name,
        "budget": budget,
        "classes": len(target.classes),
        "train_images": len(target.train),
        "test_images": len(target.test),
        "chosen_rung": chosen.index,
        "alpha": chosen.alpha,
        "rows": [asdict(row) for row in rows],
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(folder / "demo.json", content)
    return content


def _stay_behind() -> None:
    """Yield the processor to the main process, and leave ^C to it."""
    os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _probe_all(features: list[tuple[np.ndarray, np.ndarray]], tasks: Tasks) -> tuple[list[HeadAccuracy], HeadAccuracy]:
    """Accuracy of a float32 head on every rung's features, and on the raw pixels."""
    return [probe_features(train, test, tasks.target) for train, test in features], probe(None, tasks.pixels)


def _dense(rung: Rung, target: data.Dataset, out: Path, budget: int | str) -> tuple[Bundle, HeadAccuracy]:
    """Export the dense network, whatever int8 costs it, and let the C runtime on the host learn the target with it."""
    torch.set_num_threads(1)
    bundle = export_encoder(rung, target.train, out, max_drop=100)
    with HostDevice(bundle, budget, classes=len(target.classes)) as device:
        return bundle, lesson(device, encode([device], target.train), encode([device], target.test))


def _dense_row(rung: Rung, bundle: Bundle, accuracy: HeadAccuracy, on: Board, budget: int | str) -> Row:
    """By how many bytes the dense network does not fit the board, and what it would cost with more flash."""
    missing = 0
    try:
        Simulator(bundle, board=on, budget=budget).close()
    except BoardError as refused:
        missing = refused.missing
        on = replace(on, name=f"{on.name} with 16 MiB of flash", flash=Memory(on.flash.origin, VIRTUAL_FLASH))
    with Simulator(bundle, board=on, budget=budget) as device:
        exercise(device, device.head_config.classes)
        return _row("dense", rung, device, accuracy, missing)


def _row_on_board(
    name: str,
    rung: Rung | None,
    bundle: Bundle,
    target: data.Dataset,
    on: Board,
    budget: int | str,
    progress: Progress,
) -> Row:
    """Everything on the emulated board: encoding, learning, and the accuracy on the held-out images."""

    def named(done: int, total: int, text: str) -> None:
        progress(done, total, f"{name}: {text}")

    devices = [Simulator(bundle, board=on, budget=budget, classes=len(target.classes)) for _ in range(BOARDS)]
    train = encode(devices, target.train, named, f"encoding {len(target.train):,} to learn from")
    test = encode(devices, target.test, named, f"encoding {len(target.test):,} held out")
    with devices[0] as device:
        accuracy = lesson(device, train, test, progress=named)
        return _row(name, rung, device, accuracy)


def _row(name: str, rung: Rung | None, device: Device, accuracy: HeadAccuracy, missing: int = 0) -> Row:
    cost = device.footprint()
    ram = cost["ram"]
    return Row(
        name=name,
        parameters=parameters(rung.encoder()) if rung else 0,
        nonzeros=rung.nonzeros if rung else 0,
        macs=device.bundle.report["macs"],
        flash=cost["flash"]["total"],
        flash_missing=missing,
        ram=sum(ram[part] for part in ("data", "bss", "buffers", "arena")) + cost["stack"]["used"],
        arena=cost["arena"]["total"],
        instructions_image=cost["instructions"]["encode"]["mean"],
        instructions_learn=cost["instructions"]["learn"]["mean"],
        few=accuracy.few,
        all=accuracy.all,
    )


def render(content: dict) -> RenderableType:
    """The demo's table, one column a network."""
    rows = content["rows"]
    few = len(rows[0]["few"])
    lines: dict[str, Callable[[dict], str]] = {
        "encoder parameters": lambda r: f"{r['parameters']:,}",
        "non-zero weights": lambda r: f"{r['nonzeros']:,}",
        "MACs an image": lambda r: f"{r['macs']:,}",
        "flash, bytes": lambda r: f"{r['flash']:,}",
        "flash missing": lambda r: f"{r['flash_missing']:,}" if r["flash_missing"] else "fits",
        "RAM, bytes": lambda r: f"{r['ram']:,}",
        "  of it arena used": lambda r: f"{r['arena']:,}",
        "instructions an image": lambda r: f"{r['instructions_image']:,.0f}",
        "instructions a sample learned": lambda r: f"{r['instructions_learn']:,.0f}",
        f"accuracy, 10 a class, {few} draws": lambda r: f"{np.mean(r['few']):.1%} ± {np.std(r['few'], ddof=1):.1%}",
        f"accuracy, all {content['train_images']:,}": lambda r: f"{r['all']:.1%}",
    }
    title = (
        f"{content['classes']} classes on {content['board']}, {content['budget']} of arena, "
        f"{content['test_images']} held-out images"
    )
    columns = ("", *(f">{row['name']}" for row in rows))
    return table(title, columns, ((name, *map(value, rows)) for name, value in lines.items()))
