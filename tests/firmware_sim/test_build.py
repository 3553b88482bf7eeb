import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from networks import residual_network

from entropi.device import DeviceError, HeadConfig, HostDevice, describe, measure
from entropi.device.library import kernels_source
from entropi.device.toolchain import CORES, GCC, KERNELS_SOURCE, ZIG, ToolchainError, compile_object
from entropi.export.image import Centering, write_image
from entropi.firmware_sim.boards import BoardError, Memory, boards
from entropi.firmware_sim.build import FIRMWARE, STACK_MINIMUM, build_firmware, build_without_limits
from entropi.firmware_sim.emulator import Emulator
from entropi.firmware_sim.session import FramedDevice

LARGE = 600_000  # bytes, more than the nucleo's flash


def make_image(seed: int = 0, **shape: int) -> bytes:
    network = residual_network(seed, **shape)
    return write_image(network, Centering(np.zeros(network.tensors[network.output].channels, np.int8), 1.0))[0]


def padded(image: bytes, length: int) -> bytes:
    """The image with bytes behind its records that nothing reads."""
    body = bytearray(image[:-4]) + bytes(length - len(image))
    struct.pack_into("<I", body, 8, length)
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


IMAGE = make_image()


def build(board, image=IMAGE, arena=4096, compiler=ZIG):
    return build_firmware(image, board, arena, compiler=compiler)


def test_every_byte_of_ram_and_flash_is_accounted_for(nucleo, compiler):
    firmware = build(nucleo, compiler=compiler)
    assert sum(firmware.ram.values()) == nucleo.ram.length
    assert firmware.ram["arena"] == 4096
    assert firmware.ram["buffers"] == 272  # an input of 3 x 9 x 9 behind 2 bytes, and 24 features; each a multiple of 8
    assert firmware.flash["image"] == -(-len(IMAGE) // 8) * 8
    assert firmware.symbols["image_end"] - firmware.symbols["image_start"] == len(IMAGE)
    assert firmware.symbols["data_load"] + firmware.flash["data"] == nucleo.flash.origin + sum(firmware.flash.values())
    assert firmware.symbols["stack_bottom"] == nucleo.ram.origin


def test_another_image_of_the_same_length_is_linked_afresh(nucleo):
    other = bytearray(padded(IMAGE, len(IMAGE) + 8))
    image = padded(IMAGE, len(other))
    other[-12] = 1
    other[-4:] = struct.pack("<I", zlib.crc32(other[:-4]))
    assert image in build(nucleo, image).elf
    assert bytes(other) in build(nucleo, bytes(other)).elf


def test_arena_that_overflows_ram(nucleo, compiler):
    asked = 200_000
    with pytest.raises(BoardError) as error:
        build(nucleo, IMAGE, asked, compiler)
    e = error.value
    assert (e.region, e.given, e.missing) == ("ram", 131072, e.needed - 131072)
    for part in ("nucleo-f446re", "RAM", str(e.needed), str(e.given), str(e.missing), "lower the budget"):
        assert part in str(e)
    fitting = build(nucleo, IMAGE, asked - e.missing, compiler)
    assert fitting.ram["stack"] == STACK_MINIMUM
    with pytest.raises(BoardError, match="missing 8;"):
        build(nucleo, IMAGE, asked - e.missing + 8, compiler)
    larger = replace(nucleo, ram=Memory(nucleo.ram.origin, e.needed))
    assert build(larger, IMAGE, asked, compiler).ram["stack"] == STACK_MINIMUM


def test_image_that_overflows_flash(nucleo, compiler):
    image = padded(IMAGE, LARGE)
    with pytest.raises(BoardError) as error:
        build(nucleo, image, 4096, compiler)
    e = error.value
    assert (e.region, e.given, e.missing) == ("flash", 524288, e.needed - 524288)
    for part in ("nucleo-f446re", "FLASH", str(e.needed), str(e.given), str(e.missing), "more flash"):
        assert part in str(e)
    assert sum(build(nucleo, padded(IMAGE, LARGE - e.missing), 4096, compiler).flash.values()) == nucleo.flash.length
    with pytest.raises(BoardError, match="missing 8;"):
        build(nucleo, padded(IMAGE, LARGE - e.missing + 8), 4096, compiler)


def test_both_overflow(nucleo, compiler):
    with pytest.raises(BoardError, match=r"FLASH: needed \d+ .*; nucleo-f446re, RAM: needed \d+ ") as error:
        build(nucleo, padded(IMAGE, LARGE), 200_000, compiler)
    assert "\n" not in str(error.value)


def test_what_firmware_needs_is_what_the_linker_asks_of_every_board():
    linked = {core: build_without_limits(padded(IMAGE, LARGE), core, 200_000) for core in CORES}
    refused = []
    for board in boards().values():
        flash, ram = linked[board.core].needed
        fits = flash <= board.flash.length and ram <= board.ram.length
        try:
            assert build(board, padded(IMAGE, LARGE), 200_000).needed == (flash, ram) and fits
        except BoardError as error:
            assert not fits
            assert error.needed == (flash if error.region == "flash" else ram)
            refused.append(board.name)
    assert 0 < len(refused) < len(boards())


@pytest.mark.parametrize("size", [12, 8, 4, 2])
def test_code_for_other_heads_is_left_out(nucleo, compiler, bundle, size):
    """What is left is at least 1 KiB less, learns, and refuses heads of other bytes a parameter."""
    heads = {asked: HeadConfig(classes=3, batch=1, bytes_per_parameter=asked) for asked in (12, 8, 4, 2)}
    arena = measure(bundle.image, heads[12]).total
    whole = build(nucleo, bundle.image, arena, compiler)
    alone = build_firmware(bundle.image, nucleo, arena, heads[size], compiler)
    assert alone.flash["text"] < whole.flash["text"] - 1024 and alone.slots > whole.slots == 0
    for asked, head in heads.items():
        on = Emulator(nucleo, alone.elf)
        if asked != size:
            with pytest.raises(DeviceError, match="E_KERNEL"):
                FramedDevice(bundle, on, head, arena)
            continue
        with FramedDevice(bundle, on, head, arena) as device, HostDevice(bundle, arena, head=head) as host:
            features = np.arange(device.info.features, dtype=np.int8)
            assert device.learn_features(features, 1) == host.learn_features(features, 1)
            assert device.predict_features(features) == host.predict_features(features)


def test_a_compiler_that_was_told_of_another_fpu_is_refused(compiler):
    names = {"cortex-m4f": compiler.cores["cortex-m3"], "cortex-m3": compiler.cores["cortex-m7"]}
    wrong = replace(compiler, cores=names)
    for core in ("cortex-m4f", "cortex-m3"):
        with pytest.raises(ToolchainError, match="told of another FPU than this core has"):
            compile_object(CORES[core], FIRMWARE / "startup.c", compiler=wrong)


def test_a_compiler_that_is_not_there(nucleo):
    absent = ("no-such-gcc",)
    with pytest.raises(ToolchainError, match="no-such-gcc is not installed; install it, or compile with zig"):
        build(nucleo, compiler=replace(GCC, command=absent, asks_version=absent))


def test_input_that_no_frame_holds(nucleo):
    with pytest.raises(BoardError, match="a frame of 70229 bytes exceeds 65535; export with a smaller input"):
        build(nucleo, make_image(size=153))


def test_kernels_that_the_image_does_not_need_are_left_out(nucleo, compiler, tmp_path):
    firmware = build(nucleo, compiler=compiler)
    assert "entropi_run_add" in firmware.symbols
    assert "entropi_run_softmax" not in firmware.symbols
    listed = kernels_source(IMAGE).count("= run_")
    assert listed == describe(IMAGE).kernels.bit_count() < KERNELS_SOURCE.read_text().count("= run_")
