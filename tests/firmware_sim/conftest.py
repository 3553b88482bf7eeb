"""Small bundles, made by the real exporter's last step, and firmware of a few lines of C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entropi.device.bundle import Bundle, Preprocessing
from entropi.device.toolchain import CORES, compile_object
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, MEAN, Layer, Network, Tensor, quantise_multiplier
from entropi.firmware_sim.boards import Board, board
from entropi.firmware_sim.build import FIRMWARE, Firmware, link
from entropi.firmware_sim.emulator import Emulator


def make_bundle(side: int = 8, channels: int = 8, seed: int = 0) -> Bundle:
    """One sparse 3x3 convolution over RGB, then the mean of each channel."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (channels, 3, 3, 3)).astype(np.int8)
    weight[rng.random(weight.shape) < 0.7] = 0
    scales = (quantise_multiplier(0.002),) * channels
    bias = rng.integers(-500, 500, channels).astype(np.int32)
    tensors = {
        0: Tensor(3, side, side, 1 / 255, -128),
        1: Tensor(channels, side, side, 0.02, -128),
        2: Tensor(channels, 1, 1, 0.02, -128),
    }
    conv = Layer(CONV, "conv", (0,), 1, -128, 127, (3, 3), (1, 1), (1, 1), scales, weight, bias)
    mean = Layer(MEAN, "mean", (1,), 2, -128, 127, scales=(quantise_multiplier(1 / side**2),))
    image, _ = write_image(Network(tensors, 0, 2, [conv, mean]), Centering(np.zeros(channels, np.int8), 0.05))
    return Bundle(Path(), image, {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 1 / 255, -128))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="session")
def other_bundle() -> Bundle:
    """The same network with other weights."""
    return make_bundle(seed=1)


@pytest.fixture
def nucleo() -> Board:
    return board("nucleo-f446re")


@pytest.fixture
def run_c(tmp_path, nucleo):
    """Compile a `main` with our startup code and port, and put it on the emulator."""

    def build(source: str, **limits: int) -> tuple[Emulator, Firmware]:
        path = tmp_path / "snippet.c"
        path.write_text('#include <stdint.h>\n#include "port.h"\nint main(void);\n' + source)
        for name in ("port.h", "startup.h"):
            (tmp_path / name).write_text((FIRMWARE / name).read_text())
        sources = (path, FIRMWARE / "startup.c", FIRMWARE / "port_semihosting.c")
        objects = [compile_object(CORES[nucleo.core], source) for source in sources]
        firmware = link(nucleo, objects, b"", {"arena": 0, "frame": 0, "features": 0, "stack": 1024})
        return Emulator(nucleo, firmware.elf, **limits), firmware

    return build
