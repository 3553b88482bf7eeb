"""What an image costs on every core that is emulated here, with every compiler that is installed, beside CMSIS-NN.

    python benchmarks/encoder_instructions.py

The network is benchmarks/fixtures/resnet18_alpha0.0075_int8.tflite.gz: a ResNet18 at 3x32x32 of which 0.75 % of the
weights are left, with 8 bits a weight; `quantised` in image_size.py made it with 256 images of CIFAR-10. With weights
of as many bits as the exporter gives them it is stored for size and, for each core, for speed; with 8 bits for speed. A
firmware encodes one random input; the features must be tflite-micro's, byte for byte. Everything is counted: copying
the input in, borders, decoding, scaling, pools, sums. Boards have more memory than any, but for a core that runs in
QEMU. Writes results/encoder_instructions.json and the tables of docs/boards.md and docs/performance.md. Takes two
minutes of one core.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
from elftools.elf.elffile import ELFFile
from pages import ROOT, filled, markdown

from entropi.device import SMALLEST_HEAD, Bundle, HeadConfig, measure
from entropi.device.bundle import Preprocessing
from entropi.device.files import write_atomically, write_json
from entropi.device.toolchain import CORES, GCC, ZIG, Compiler
from entropi.export.image import Centering, LayerReport, scratch_of, write_image
from entropi.export.integer import Network
from entropi.export.narrow import WEIGHT_BITS, narrow
from entropi.export.plan import plan
from entropi.export.reader import from_tflite
from entropi.export.removal import remove
from entropi.export.tflm import run_reference
from entropi.firmware_sim import BoardError, boards
from entropi.firmware_sim.build import Firmware, build_firmware, build_without_limits
from entropi.firmware_sim.emulator import MODELS, Emulator
from entropi.firmware_sim.qemu import Qemu, check_emulated
from entropi.firmware_sim.session import FramedDevice
from entropi.host.provenance import provenance

FIXTURE = ROOT / "benchmarks" / "fixtures" / "resnet18_alpha0.0075_int8.tflite.gz"
RESULT = ROOT / "results" / "encoder_instructions.json"
MODES = (12, 8, 4, 2)  # bytes a parameter
PAGES = {
    ROOT / "docs" / "boards.md": ("memory", "modes", "sources"),
    ROOT / "docs" / "performance.md": ("cores", "layers"),
}
VARIANTS = ((WEIGHT_BITS, "size"), (WEIGHT_BITS, "speed"), (8, "speed"))
BOARD_OF = {board.core: board for board in boards().values()}
CMSIS_NN = {
    "source": "our notes on firmware: every layer checked against an integer reference, hosted build, single rounding",
    "compiler": "arm-none-eabi-gcc 12.2 -O2",
    "network": "the same ResNet18, dense: 37.0 million multiply-accumulates",
    "instructions": {
        "cortex-m0plus": 294_100_000,
        "cortex-m4f": 75_086_490,
        "cortex-m7": 75_030_000,
        "cortex-m33": 75_090_000,
        "cortex-m55": 9_000_000,
    },
    "instructions_with_layer4_as_linear_layers": {"cortex-m4f": 53_000_000},
    "scratch_bytes": 18_432,
}


def fixture(bits: int = WEIGHT_BITS) -> tuple[bytes, Network]:
    """The .tflite file with weights of so many bits, and what the exporter makes of it."""
    model = narrow(gzip.decompress(FIXTURE.read_bytes()), bits)
    return model, remove(from_tflite(model))[0]


def example(network: Network) -> np.ndarray:
    """The input that is encoded."""
    return np.random.default_rng(0).integers(-128, 128, network.tensors[network.input].shape).astype(np.int8)


def stored(network: Network, aim: str, core: str) -> tuple[Bundle, list[LayerReport]]:
    """The network's image, and what its layers cost."""
    source, out = network.tensors[network.input], network.tensors[network.output]
    image, layers = write_image(network, Centering(np.zeros(out.channels, np.int8), 1.0), aim, core)
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), source.scale, source.zero_point)), layers


def scratch_bytes(network: Network, aim: str, layers: list[LayerReport]) -> int:
    """What scratch adds to the bytes of the tensors."""
    return plan(network, aim, scratch_of(layers)).bytes - plan(network, aim).bytes


def firmware_of(bundle: Bundle, core: str, compiler: Compiler, head: HeadConfig | None = SMALLEST_HEAD) -> Firmware:
    arena = measure(bundle.image, SMALLEST_HEAD).total
    if core in MODELS:
        return build_without_limits(bundle.image, core, arena, head, compiler)
    return build_firmware(bundle.image, BOARD_OF[core], arena, head, compiler)


def code_bytes(firmware: Firmware) -> int:
    return firmware.flash["text"] + firmware.flash["rodata"]


def code_by_mode(bundle: Bundle, core: str, compiler: Compiler) -> dict[str, int]:
    """Bytes of code with each memory mode alone, and with all of them."""
    heads = {f"{size}": replace(SMALLEST_HEAD, bytes_per_parameter=size) for size in MODES} | {"all": None}
    return {name: code_bytes(firmware_of(bundle, core, compiler, head)) for name, head in heads.items()}


@contextmanager
def open_emulator(firmware: Firmware) -> Iterator[Emulator | Qemu]:
    """Unicorn, or QEMU where that has no such core, with the firmware switched on."""
    on = (Emulator if firmware.board.core in MODELS else Qemu)(firmware.board, firmware.elf)
    try:
        yield on
    finally:
        if isinstance(on, Qemu):
            on.close()


def code_by_source(firmware: Firmware) -> dict[str, int]:
    """Bytes of the functions that each source file has in a firmware, by its debug information."""
    found: Counter[str] = Counter()
    for unit in ELFFile(io.BytesIO(firmware.elf)).get_dwarf_info().iter_CUs():
        top = unit.get_top_DIE()
        for entry in top.iter_children():
            where = entry.attributes
            if entry.tag != "DW_TAG_subprogram" or "DW_AT_low_pc" not in where:
                continue
            start, end = where["DW_AT_low_pc"].value, where["DW_AT_high_pc"].value
            if start >= firmware.board.flash.origin:  # what the linker left out lies at 0
                found[PurePath(top.attributes["DW_AT_name"].value.decode()).name] += end
    return dict(found.most_common())


def run(bundle: Bundle, layers: list[LayerReport], values: np.ndarray, core: str, compiler: Compiler) -> dict:
    """One image on one core."""
    firmware = firmware_of(bundle, core, compiler)
    arena = measure(bundle.image, SMALLEST_HEAD).total
    with open_emulator(firmware) as on, FramedDevice(bundle, on, SMALLEST_HEAD, arena) as device:
        features = device.encode(values)
        cost = device.footprint()
        ticks = [layer.ticks for layer in device.run_layers(values)]
    macs = sum(layer.nonzeros * layer.shape[1] * layer.shape[2] for layer in layers)
    instructions = cost["ticks"]["encode"]["last"]
    return {
        "core": core,
        "emulator": type(on).__name__,
        "compiler": compiler.version,
        "flags": list(compiler.flags(CORES[core])),
        "instructions": instructions,
        "instructions_a_nonzero_mac": round(instructions / macs, 3),
        "features_crc32": f"{zlib.crc32(features.tobytes()):08x}",
        "image_bytes": len(bundle.image),
        "code_bytes": code_bytes(firmware),
        "code_bytes_by_mode": code_by_mode(bundle, core, compiler),
        "code_bytes_by_source": code_by_source(firmware),
        "stack_bytes": cost["stack_used"],
        "encoder_arena_bytes": cost["arena"]["encoder"],
        "layers": {
            layer.name: {"stored": layer.encoding, "instructions": taken}
            | ({"a_nonzero_mac": _a_mac(layer, taken)} if layer.nonzeros else {})
            for layer, taken in zip(layers, ticks, strict=True)
        },
    }


def _a_mac(layer: LayerReport, instructions: int) -> float:
    return round(instructions / (layer.nonzeros * layer.shape[1] * layer.shape[2]), 3)


def emulated_cores() -> list[str]:
    def is_emulated(core: str) -> bool:
        try:
            check_emulated(BOARD_OF[core])
        except BoardError:
            return False
        return True

    return [core for core in CORES if is_emulated(core)]


def measured() -> dict:
    """The result's content."""
    compilers = [compiler for compiler in (ZIG, GCC) if shutil.which(compiler.command[0])]
    runs, cores, networks = [], emulated_cores(), {}
    for bits, aim in VARIANTS:
        model, network = fixture(bits)
        values = example(network)
        expected = f"{zlib.crc32(run_reference(model, values[None]).tobytes()):08x}"
        for core in cores:
            bundle, layers = stored(network, aim, core)
            found = [run(bundle, layers, values, core, compiler) for compiler in compilers]
            if any(entry["features_crc32"] != expected for entry in found):
                raise SystemExit(f"features on {core} are not tflite-micro's, weights of {bits} bits, for {aim}")
            variant = {"weight_bits": bits, "optimize": aim, "scratch_bytes": scratch_bytes(network, aim, layers)}
            runs += [variant | entry for entry in found]
        networks[bits] = {
            "nonzeros": sum(layer.nonzeros for layer in layers),
            "nonzero_macs": sum(layer.nonzeros * layer.shape[1] * layer.shape[2] for layer in layers),
            "tflite_micro_features_crc32": expected,
        }
    return {
        "command": "python benchmarks/encoder_instructions.py",
        "network": FIXTURE.name,
        "by_weight_bits": networks,
        "cmsis_nn": CMSIS_NN,
        **provenance("unicorn", "ziglang"),
        "runs": runs,
    }


def tables(content: dict) -> dict[str, str]:
    """The pages' tables, by marker."""
    of = {(r["weight_bits"], r["optimize"], r["core"], r["compiler"].partition(" ")[0]): r for r in content["runs"]}
    names = {run["compiler"].partition(" ")[0]: run["compiler"] for run in content["runs"]}
    cores = list(dict.fromkeys(run["core"] for run in content["runs"]))
    dense = content["cmsis_nn"]["instructions"]

    def row(core: str) -> tuple[str, ...]:
        runs = [of[WEIGHT_BITS, "speed", core, name] for name in names]
        others = of[WEIGHT_BITS, "size", core, "zig"], of[8, "speed", core, "zig"]
        peer = f"{dense[core]:,}" if core in dense else ""
        return (
            core,
            *(f"{run['instructions']:,}" for run in (*runs, *others)),
            f"{runs[0]['instructions_a_nonzero_mac']:.2f}",
            peer,
        )

    def memory(core: str) -> tuple[str, ...]:
        runs = [of[WEIGHT_BITS, "speed", core, name] for name in names]
        numbers = (*(run["code_bytes"] for run in runs), *(run["stack_bytes"] for run in runs))
        numbers += runs[0]["scratch_bytes"], runs[0]["image_bytes"]
        return core, *(f"{number:,}" for number in numbers)

    def layer(name: str) -> tuple[str, ...]:
        found = [of[WEIGHT_BITS, "speed", core, "zig"]["layers"][name] for core in cores]
        return name, *(f"{cell['instructions']:,} {cell['stored']}".strip() for cell in found)

    sources = [of[WEIGHT_BITS, "speed", core, "zig"]["code_bytes_by_source"] for core in cores]
    files = sorted(
        {name for found in sources for name in found}, key=lambda name: -max(found.get(name, 0) for found in sources)
    )
    zig = names["zig"]
    speeds = (f">speed, {name}" for name in names.values())
    columns = ("core", *speeds, f">size, {zig}", f">8 bits, speed, {zig}", ">a non-zero MAC")
    code = (*(f">code, {name}" for name in names), *(f">stack, {name}" for name in names), ">scratch", ">image")
    return {
        "cores": markdown((*columns, ">CMSIS-NN, dense"), map(row, cores)),
        "memory": markdown(("core, speed", *code), map(memory, cores)),
        "modes": markdown(
            ("core, compiler", *(f">{size}" for size in MODES), ">all four"),
            (
                (
                    f"{core}, {name}",
                    *(
                        f"{of[WEIGHT_BITS, 'speed', core, name]['code_bytes_by_mode'][key]:,}"
                        for key in (*map(str, MODES), "all")
                    ),
                )
                for core in cores
                for name in names
            ),
        ),
        "sources": markdown(
            ("source", *(f">{core}" for core in cores)),
            ((name, *(f"{found[name]:,}" if name in found else "" for found in sources)) for name in files),
        ),
        "layers": markdown(
            ("layer", *(f">{core}" for core in cores)), map(layer, of[WEIGHT_BITS, "speed", cores[0], "zig"]["layers"])
        ),
    }


def main() -> None:
    content = measured()
    write_json(RESULT, content)
    fill_pages()


def fill_pages() -> None:
    found = tables(json.loads(RESULT.read_bytes()))
    for page, names in PAGES.items():
        write_atomically(page, filled(page.read_text(), {name: found[name] for name in names}).encode())


if __name__ == "__main__":
    main()
