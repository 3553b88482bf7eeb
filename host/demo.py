"""`entropi demo`: the whole path, from printed characters to handwritten digits learned on an emulated Cortex-M4."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from entropi.device import Bundle, Device, HeadConfig, HostDevice
from entropi.device.files import write_json
from entropi.export import export_encoder, export_pixels
from entropi.firmware_sim import Board, BoardError, Simulator, board
from entropi.firmware_sim.boards import Memory
from entropi.host import data
from entropi.host.cost import parameters
from entropi.host.figures import entropy_figure
from entropi.host.ladder import Ladder, Rung
from entropi.host.lesson import Encoded, Grades, Progress, encode, lesson
from entropi.host.probe import HeadAccuracy, probe
from entropi.host.report import exercise
from entropi.host.schedule import PRESETS
from entropi.host.selection import select
from entropi.host.tables import table
from rich.console import RenderableType

SOURCE, TARGET, PIXELS = "builtin:characters", "builtin:digits", "builtin:digits8x8"
VIRTUAL_FLASH = 16 << 20

Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. Sizes in bytes, accuracies 0..1, instructions executed on the emulated core.

    `flash_missing` is how many bytes the board's flash is too small by; the counts are then taken on the same core
    with more flash, and the features computed by the same C on the host."""

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
) -> dict:
    """Run the demo in `folder`, going on where an earlier run stopped; returns what demo.json holds.

    `bar(title)` opens a progress bar, `say(line)` prints a line. Raises what the steps raise.
    """
    started = time.perf_counter()
    folder = Path(folder)
    target_board = board(board_name)

    with bar("1 source: printed characters") as progress:
        progress(0, 1, "rendering")
        target, pixels = data.load(TARGET), data.load(PIXELS)
        source = data.load(SOURCE)
    say(
        f"{len(source.train):,} images of {len(source.classes)} characters; target: {len(target.train):,} digits to learn from"
    )

    with bar("2 ladder: train, prune, retrain") as progress:
        ladder = Ladder.build(folder / "ladder", source=source, schedule=PRESETS["demo"], progress=progress)
    say(f"{len(ladder)} rungs down to {ladder[-1].nonzeros:,} weights, alpha {ladder[-1].alpha:.4f}")

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as background:
        dense = background.submit(_dense, ladder[0], target, folder / "build" / "dense")
        with bar("3 select: entropy on the digits") as progress:
            selection = select(ladder, target.train, target=TARGET, progress=progress)
            selection.save(ladder.path)
        with bar("  head accuracy of every rung") as progress:
            accuracies = _probe_all(ladder, target, progress)
            baseline = probe(None, pixels)
        entropy_figure(selection, accuracies, folder / "entropy.png", baseline)
        chosen = ladder[selection.rung]
        say(f"chosen: rung {chosen.index}, {chosen.nonzeros:,} weights; picture: {folder / 'entropy.png'}")

        with bar("4 export: ONNX, int8 TFLite, image") as progress:
            bundle = export_encoder(chosen, target.train, folder / "build" / "chosen", lambda s: progress(0, 1, s))
            pixel_bundle = export_pixels(pixels.train, folder / "build" / "pixels")
        checked = bundle.report["checks"]["tflite_micro_images_equal_byte_for_byte"]
        say(f"{len(bundle.image):,} bytes of image; {checked} images equal tflite-micro's features byte for byte")

        rows = []
        with bar("5 board: encode and learn") as progress:
            rows.append(_row_on_board("chosen rung", chosen, bundle, target, target_board, budget, progress))
            rows.append(_row_on_board("raw pixels", None, pixel_bundle, pixels, target_board, budget, progress))
        with bar("6 dense network, for comparison") as progress:
            progress(0, 1, "waiting for its export")
            rows.insert(0, _dense_row(ladder[0], dense, target_board, budget, progress))

    content = {
        "board": target_board.name,
        "budget": budget,
        "classes": len(target.classes),
        "test_images": len(target.test),
        "train_images": len(target.train),
        "chosen_rung": chosen.index,
        "alpha": chosen.alpha,
        "rows": [asdict(row) for row in rows],
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(folder / "demo.json", content)
    return content


def _probe_all(ladder: Ladder, target: data.Dataset, progress: Progress) -> list[HeadAccuracy]:
    accuracies = []
    for rung in ladder:
        progress(rung.index, len(ladder), rung.name)
        accuracies.append(probe(rung.encoder(), target))
    return accuracies


def _count(rung: Rung | None) -> tuple[int, int]:
    """Parameters of the encoder, and its convolution weights that are not zero."""
    return (parameters(rung.encoder()), rung.nonzeros) if rung else (0, 0)


def _row(name: str, rung: Rung | None, device: Device, grades: Grades, missing: int = 0) -> Row:
    cost = device.footprint()
    total, nonzeros = _count(rung)
    ram = cost["ram"]
    return Row(
        name=name,
        parameters=total,
        nonzeros=nonzeros,
        macs=device.bundle.report["macs"],
        flash=cost["flash"]["total"],
        flash_missing=missing,
        ram=sum(ram[part] for part in ("data", "bss", "buffers", "arena")) + cost["stack"]["used"],
        arena=cost["arena"]["total"],
        instructions_image=cost["instructions"]["encode"]["mean"],
        instructions_learn=cost["instructions"]["learn"]["mean"],
        few=grades.few,
        all=grades.all,
    )


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
    with Simulator(bundle, board=on, budget=budget, classes=len(target.classes)) as device:
        train = encode(device, target.train, progress, f"{name}: encoding {len(target.train)} to learn from")
        test = encode(device, target.test, progress, f"{name}: encoding {len(target.test)} held out")
        grades = lesson(device, train, test, progress=lambda d, t, text: progress(d, t, f"{name}: {text}"))
        np.save(bundle.folder / "head.npy", device.head())
        write_json(bundle.folder / "session.json", device.footprint())
        return _row(name, rung, device, grades)


def _dense(rung: Rung, target: data.Dataset, out: Path) -> tuple[Bundle, Encoded, Encoded]:
    """Export the dense network and encode the target with the same C on the host, on both cores."""
    bundle = export_encoder(rung, target.train, out)

    def features(images: np.ndarray) -> np.ndarray:
        device = HostDevice(bundle, "1MiB", head=HeadConfig(classes=2, batch=1))
        return np.stack([device.features(image) for image in images])

    with ThreadPoolExecutor(2) as pool:
        parts = np.array_split(target.train.images, 2)
        train = np.concatenate(list(pool.map(features, parts)))
    return bundle, Encoded(train, target.train.labels), Encoded(features(target.test.images), target.test.labels)


def _dense_row(rung: Rung, dense: Future, on: Board, budget: int | str, progress: Progress) -> Row:
    """The dense network does not fit the board: by how many bytes, and what it would cost with more flash."""
    bundle, train, test = dense.result()
    missing = 0
    try:
        Simulator(bundle, board=on, budget=budget).close()
    except BoardError as refused:
        missing = refused.missing
        on = replace(on, name=f"{on.name} with 16 MiB of flash", flash=Memory(on.flash.origin, VIRTUAL_FLASH))
    with Simulator(bundle, board=on, budget=budget) as device:
        exercise(device, 10)
        grades = lesson(device, train, test, progress=lambda d, t, text: progress(d, t, f"dense: {text}"))
        return _row("dense ResNet18", rung, device, grades, missing)


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
        f"{content['classes']} digits on {content['board']}, {content['budget']} of arena, "
        f"{content['test_images']} held-out images"
    )
    columns = ("", *(f">{row['name']}" for row in rows))
    return table(title, columns, ((name, *map(value, rows)) for name, value in lines.items()))
