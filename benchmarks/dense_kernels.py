"""What a multiply-accumulate of dense layers takes on a Cortex-M4F and an M55, with every compiler that is installed.

    python benchmarks/dense_kernels.py [BUNDLE ...]

Layers with random weights of many shapes, each in an image of its own, without borders and, what `--optimize speed`
asks for, with them; then whole networks. Everything is counted: gathering, padding, scaling. Outputs must be those of
the same C on this host, or the bundle's golden ones, byte for byte. Beside them stand CMSIS-NN's counts on an M4, as
our reference notes give them. What does not fit the M55's board is left out. Writes results/dense_kernels.json.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encoder_instructions import emulated_cores, firmware_of, open_emulator

from entropi.device import SMALLEST_HEAD, Bundle, HostDevice, measure
from entropi.device.bundle import Preprocessing
from entropi.device.files import write_json
from entropi.device.toolchain import CORES, GCC, ZIG, Compiler
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, Layer, Network, Tensor, quantise_multiplier
from entropi.export.rows import DENSE, forms
from entropi.firmware_sim.boards import BoardError
from entropi.firmware_sim.session import FramedDevice
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("cortex-m4f", "cortex-m55")
ZERO_POINT = -20


@dataclass(frozen=True)
class Case:
    """A square convolution padded by half its kernel. `cmsis_nn` is CMSIS-NN's count a multiply-accumulate, where there
    is one for its kind of layer."""

    name: str
    channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1
    cmsis_nn: str = ""

    def layer(self, rng: np.random.Generator) -> tuple[Network, np.ndarray]:
        out_size = (self.size + self.kernel // 2 * 2 - self.kernel) // self.stride + 1
        inputs = self.channels // self.groups
        shape = (self.out_channels, inputs, self.kernel, self.kernel)
        weight = np.clip(rng.normal(0, 35, shape).round(), -127, 127).astype(np.int8)
        width = 60 * 60 * (inputs * self.kernel**2) ** 0.5
        layer = Layer(
            CONV, self.name, (0,), 1, -128, 127, (self.kernel,) * 2, (self.stride,) * 2, (self.kernel // 2,) * 2,
            tuple(quantise_multiplier(float(s)) for s in rng.uniform(40, 120, self.out_channels) / width), weight,
            rng.integers(-2000, 2000, self.out_channels), groups=self.groups,
        )  # fmt: skip
        tensors = {
            0: Tensor(self.channels, self.size, self.size, 0.05, ZERO_POINT),
            1: Tensor(self.out_channels, out_size, out_size, 0.05, -7),
        }
        return Network(tensors, 0, 1, [layer]), rng.integers(-128, 128, tensors[0].shape).astype(np.int8)


CASES = (
    Case("3x3 on 8x8", 128, 128, 8, 3, cmsis_nn="1.75"),
    Case("3x3 on 32x32", 16, 16, 32, 3),
    Case("3x3 on 4x4", 128, 128, 4, 3),
    Case("3x3 on 2x2", 256, 256, 2, 3, cmsis_nn="1.65"),
    Case("3x3 on 16x16, stride 2", 32, 64, 16, 3, 2),
    Case("7x7 on 32x32, stride 2", 3, 64, 32, 7, 2, cmsis_nn="2.18"),
    Case("1x1 on 8x8", 128, 128, 8, 1),
    Case("1x1 on 16x16", 16, 96, 16, 1),
    Case("1x1 on 16x16, stride 2", 64, 128, 16, 1, 2),
    Case("fully connected", 512, 512, 1, 1, cmsis_nn="2.8 to 5"),
    Case("depthwise 3x3 on 16x16", 96, 96, 16, 3, groups=96, cmsis_nn="5.7 to 8.8"),
    Case("depthwise 3x3 on 16x16, stride 2", 96, 96, 16, 3, 2, groups=96, cmsis_nn="5.7 to 8.8"),
    Case("depthwise 5x5 on 8x8", 72, 72, 8, 5, groups=72, cmsis_nn="5.7 to 8.8"),
    Case("depthwise 3x3 on 4x4", 96, 96, 4, 3, groups=96, cmsis_nn="5.7 to 8.8"),
    Case("depthwise 3x3 on 2x2", 96, 96, 2, 3, groups=96),
)


def dense_image(network: Network, optimize: str) -> tuple[bytes, list]:
    """The image with dense weights, whatever takes less."""
    values = int(np.prod(network.tensors[network.output].shape))
    centering = Centering(np.zeros(values, np.int8), 0.01)
    return write_image(network, centering, optimize, forms=lambda weight: [forms(weight)[DENSE]])


def instructions(bundle: Bundle, values: np.ndarray, core: str, compiler: Compiler) -> list[int]:
    """Of each layer. The firmware's features must be those of the C in this process."""
    firmware, arena = firmware_of(bundle, core, compiler), measure(bundle.image, SMALLEST_HEAD).total
    with open_emulator(firmware) as on, FramedDevice(bundle, on, SMALLEST_HEAD, arena) as device:
        features, runs = device.encode(values), device.run_layers(values)
    with HostDevice(bundle, arena, head=SMALLEST_HEAD) as here:
        np.testing.assert_array_equal(features, here.encode(values))
    return [run.ticks for run in runs]


def case_result(case: Case, core: str, compiler: Compiler) -> dict:
    network, values = case.layer(np.random.default_rng(0))
    result = {"layer": case.name, "channels": case.channels, "out_channels": case.out_channels}
    source = network.tensors[0]
    for name, optimize in (("without_border", "size"), ("with_border", "speed")):
        image, reports = dense_image(network, optimize)
        preprocessing = Preprocessing((0.0,), (1.0,), source.scale, source.zero_point)
        bundle = Bundle(Path(), image, {"layers": [asdict(report) for report in reports]}, preprocessing)
        (taken,) = instructions(bundle, values, core, compiler)
        result |= {"macs": reports[0].macs, name: taken, f"{name}_a_mac": round(taken / reports[0].macs, 3)}
    return result | ({"cmsis_nn_on_an_m4_a_mac": case.cmsis_nn} if case.cmsis_nn else {})


def bundle_result(path: Path, core: str, compiler: Compiler) -> dict:
    bundle = Bundle.open(path)
    taken = instructions(bundle, bundle.golden()["input"][0], core, compiler)
    layers = bundle.report["layers"]
    dense = [(layer["macs"], ticks) for layer, ticks in zip(layers, taken, strict=True) if layer["encoding"] == "dense"]
    macs, in_dense = (sum(numbers) for numbers in zip(*dense, strict=True))
    return {
        "network": bundle.report["name"],
        "instructions": sum(taken),
        "dense_layers": len(dense),
        "dense_macs": macs,
        "dense_instructions": in_dense,
        "dense_instructions_a_mac": round(in_dense / macs, 3),
    }


def results(of: Callable[[Any, str, Compiler], dict], inputs: Sequence, core: str, compiler: Compiler) -> list[dict]:
    """Of each, but for what does not fit the core's board."""
    found = []
    for one in inputs:
        with suppress(BoardError):
            found.append(of(one, core, compiler))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    bundles = parser.parse_args().bundles
    compilers = [compiler for compiler in (ZIG, GCC) if shutil.which(compiler.command[0])]
    runs = [
        {
            "core": core,
            "compiler": compiler.version,
            "flags": list(compiler.flags(CORES[core])),
            "layers": results(case_result, CASES, core, compiler),
            "networks": results(bundle_result, bundles, core, compiler),
        }
        for core in MEASURED
        if core in emulated_cores()
        for compiler in compilers
    ]
    write_json(
        ROOT / "results" / "dense_kernels.json",
        {
            "command": " ".join(["python benchmarks/dense_kernels.py", *(path.name for path in bundles)]),
            **provenance("ziglang", "unicorn"),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
