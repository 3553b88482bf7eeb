"""What an image costs on every core that is emulated, with every compiler that is installed.

    python benchmarks/cores.py BUNDLE

Each firmware encodes the bundle's golden images; its features must be the golden ones, byte for byte. The board has
more memory than any, so that only core and compiler differ. Writes results/cores.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from entropi.device import Bundle, HeadConfig, describe, measure
from entropi.device.files import write_json
from entropi.device.toolchain import CORES, GCC, ZIG, Compiler
from entropi.firmware_sim.build import build_without_limits
from entropi.firmware_sim.emulator import MODELS, Emulator
from entropi.firmware_sim.session import FramedDevice
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
SMALLEST_HEAD = HeadConfig(classes=2, batch=1)


def encode(bundle: Bundle, core: str, compiler: Compiler) -> dict:
    """Instructions an image, and bytes of code and of stack."""
    info, golden = describe(bundle.image), bundle.golden()
    arena = measure(bundle.image, SMALLEST_HEAD).total
    inputs = info.channels * info.height * info.width
    firmware = build_without_limits(bundle.image, core, arena, inputs, info.features, compiler)
    with FramedDevice(bundle, Emulator(firmware.board, firmware.elf), SMALLEST_HEAD, arena) as device:
        for values, features in zip(golden["input"], golden["features"], strict=True):
            np.testing.assert_array_equal(device.encode(values), features)
        cost = device.footprint()
    return {
        "core": core,
        "compiler": compiler.version,
        "flags": list(compiler.flags(CORES[core])),
        "images_equal_byte_for_byte": len(golden["input"]),
        "instructions": cost["ticks"]["encode"]["last"],
        "instructions_a_mac": round(cost["ticks"]["encode"]["last"] / info.macs, 3),
        "code_bytes": firmware.flash["text"] + firmware.flash["rodata"],
        "stack_bytes": cost["stack_used"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    bundle = Bundle.open(parser.parse_args().bundle)
    compilers = [compiler for compiler in (ZIG, GCC) if shutil.which(compiler.command[0])]
    result = {
        "command": f"python benchmarks/cores.py {bundle.folder.name}",
        "encoder": bundle.report["name"],
        "macs": describe(bundle.image).macs,
        **provenance("unicorn", "ziglang"),
        "cores": [encode(bundle, core, compiler) for compiler in compilers for core in MODELS],
    }
    write_json(ROOT / "results" / "cores.json", result)


if __name__ == "__main__":
    main()
