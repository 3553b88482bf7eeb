from dataclasses import replace

import pytest

from entropi.firmware_sim.boards import BoardError, Memory
from entropi.firmware_sim.build import STACK_MINIMUM, build_firmware

IMAGE = b"no image, only bytes"


def build(board, image=IMAGE, arena=4096):
    return build_firmware(image, board, arena, input_bytes=3072, feature_bytes=512)


def test_every_byte_of_ram_and_flash_is_accounted_for(nucleo):
    firmware = build(nucleo)
    assert sum(firmware.ram.values()) == nucleo.ram.length
    assert firmware.ram["arena"] == 4096
    assert firmware.ram["buffers"] == 3592  # an input behind 2 bytes, and 512 features; a multiple of 8
    assert firmware.flash["image"] == 24
    assert firmware.symbols["image_end"] - firmware.symbols["image_start"] == len(IMAGE)
    assert firmware.symbols["data_load"] + firmware.flash["data"] == nucleo.flash.origin + sum(firmware.flash.values())
    assert firmware.symbols["stack_bottom"] == nucleo.ram.origin


def test_another_image_of_the_same_length_is_linked_afresh(nucleo):
    assert IMAGE in build(nucleo).elf
    assert IMAGE[::-1] in build(nucleo, IMAGE[::-1]).elf


def test_arena_that_overflows_ram(nucleo):
    asked = 200_000
    with pytest.raises(BoardError) as error:
        build(nucleo, arena=asked)
    e = error.value
    assert (e.region, e.given, e.missing) == ("ram", 131072, e.needed - 131072)
    for part in ("nucleo-f446re", "RAM", str(e.needed), str(e.given), str(e.missing), "lower the budget"):
        assert part in str(e)
    fitting = build(nucleo, arena=asked - e.missing)
    assert fitting.ram["stack"] == STACK_MINIMUM
    with pytest.raises(BoardError, match="missing 8;"):
        build(nucleo, arena=asked - e.missing + 8)
    larger = replace(nucleo, ram=Memory(nucleo.ram.origin, e.needed))
    assert build(larger, arena=asked).ram["stack"] == STACK_MINIMUM


def test_image_that_overflows_flash(nucleo):
    image = bytes(600_000)
    with pytest.raises(BoardError) as error:
        build(nucleo, image)
    e = error.value
    assert (e.region, e.given, e.missing) == ("flash", 524288, e.needed - 524288)
    for part in ("nucleo-f446re", "FLASH", str(e.needed), str(e.given), str(e.missing), "more flash"):
        assert part in str(e)
    assert sum(build(nucleo, image[e.missing :]).flash.values()) == nucleo.flash.length
    with pytest.raises(BoardError, match="missing 8;"):
        build(nucleo, image[e.missing - 8 :])


def test_both_overflow(nucleo):
    with pytest.raises(BoardError, match=r"FLASH: needed \d+ .*; nucleo-f446re, RAM: needed \d+ ") as error:
        build(nucleo, bytes(600_000), arena=200_000)
    assert "\n" not in str(error.value)


def test_input_that_no_frame_holds(nucleo):
    with pytest.raises(BoardError, match="a frame of 70002 bytes exceeds 65535; export with a smaller input"):
        build_firmware(IMAGE, nucleo, 4096, input_bytes=70_000, feature_bytes=10)
