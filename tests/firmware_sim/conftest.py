"""Small bundles, made by the real exporter's last step, and firmware of a few lines of C."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from networks import EVERY_LAYER, write
from qemu import MACHINES

from entropi.device.bundle import Bundle, Preprocessing
from entropi.device.session import HeadConfig
from entropi.device.toolchain import CORES, GCC, ZIG, Compiler, compile_object, run
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, MEAN, Layer, Network, Tensor, quantise_multiplier
from entropi.firmware_sim.boards import Board, BoardError, board
from entropi.firmware_sim.build import FIRMWARE, Firmware, build_firmware, link
from entropi.firmware_sim.emulator import MODELS, Emulator
from entropi.firmware_sim.qemu import Qemu, check_emulated
from entropi.firmware_sim.session import FramedDevice

BOARD_OF = {
    "cortex-m0plus": "raspberry-pi-pico",
    "cortex-m3": "bluepill",
    "cortex-m4f": "nucleo-f446re",
    "cortex-m7": "nucleo-h743zi",
    "cortex-m33": "raspberry-pi-pico-2",
}


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
def every_layer() -> Bundle:
    """A network of every kind of layer."""
    zero_point = EVERY_LAYER.tensors[0].zero_point
    return Bundle(Path(), write(EVERY_LAYER), {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 0.05, zero_point))


@pytest.fixture(scope="session")
def other_bundle() -> Bundle:
    """The same network with other weights."""
    return make_bundle(seed=1)


@pytest.fixture
def nucleo() -> Board:
    return board("nucleo-f446re")


@pytest.fixture
def board_of() -> dict[str, Board]:
    """A board of each core that is emulated here, by core."""
    return {core: board(name) for core, name in BOARD_OF.items()}


@pytest.fixture(params=BOARD_OF.values(), ids=BOARD_OF)
def every_core(request) -> Board:
    """A board of each core in turn."""
    return board(request.param)


@pytest.fixture(params=["cortex-m0plus", "cortex-m4f"])
def either(request) -> Board:
    """A board of the smallest core, then one of the usual core."""
    return board(BOARD_OF[request.param])


@pytest.fixture(params=["cortex-m0plus", "cortex-m4f", "cortex-m55"])
def each_kernel(request) -> Board:
    """A board for each way the kernels are written: in plain C, with DSP instructions, with vectors."""
    on = MACHINES["cortex-m55"] if request.param == "cortex-m55" else board(BOARD_OF[request.param])
    try:
        check_emulated(on)
    except BoardError as error:
        pytest.skip(str(error))
    return on


@cache
def gcc_is_installed() -> bool:
    """Whether arm-none-eabi-gcc is there with its C library."""
    found = shutil.which(GCC.command[0])
    return bool(found) and Path(run([*GCC.command, "-print-file-name=libc.a"]).stdout.strip()).is_absolute()


@pytest.fixture(params=[ZIG, GCC], ids=lambda compiler: compiler.name)
def compiler(request) -> Compiler:
    """Each compiler in turn."""
    if request.param is GCC and not gcc_is_installed():
        pytest.skip("arm-none-eabi-gcc is not installed (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi)")
    return request.param


@pytest.fixture
def open_on():
    """Open a bundle on an emulated board, its firmware made by any compiler."""
    opened = []

    def open_device(bundle: Bundle, on: Board, compiler: Compiler, head: HeadConfig, arena: int) -> FramedDevice:
        firmware = build_firmware(bundle.image, on, arena, compiler=compiler)
        opened.append((Emulator if on.core in MODELS else Qemu)(on, firmware.elf))
        return FramedDevice(bundle, opened[-1], head, arena)

    yield open_device
    for emulator in opened:
        if isinstance(emulator, Qemu):
            emulator.close()


@pytest.fixture
def build_c(tmp_path):
    """Compile a `main` with our startup code and port for a board."""

    def build(source: str, on: Board) -> Firmware:
        path = tmp_path / "snippet.c"
        path.write_text('#include <stdint.h>\n#include "port.h"\nint main(void);\n' + source)
        for name in ("port.h", "startup.h"):
            (tmp_path / name).write_text((FIRMWARE / name).read_text())
        sources = (path, FIRMWARE / "startup.c", FIRMWARE / "port_semihosting.c")
        objects = [compile_object(CORES[on.core], source) for source in sources]
        return link(on, objects, b"", {"arena": 0, "frame": 0, "features": 0, "stack": 1024})

    return build


@pytest.fixture
def run_c(build_c, nucleo):
    """The same, put on the emulator."""

    def run(source: str, on: Board = nucleo, **limits: int) -> tuple[Emulator, Firmware]:
        firmware = build_c(source, on)
        return Emulator(on, firmware.elf, **limits), firmware

    return run
