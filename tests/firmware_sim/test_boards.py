import pytest

from entropi.device.toolchain import CORES
from entropi.firmware_sim.boards import FOLDER, BoardError, Memory, board, boards

GOOD = """
title = "A board"
core = "cortex-m4f"
clock_hz = 84_000_000
document = "a data sheet"
[flash]
origin = 0x0800_0000
length = 0x4_0000
[ram]
origin = 0x2000_0000
length = 0x1_8000
"""


KIB = 1024
FLASH_AT, RAM_AT = 0x08000000, 0x20000000  # where most have them
SIZES = {
    "arduino-nano-33-ble": ("cortex-m4f", 0x10000, 960, RAM_AT, 256, 64),
    "bluepill": ("cortex-m3", FLASH_AT, 64, RAM_AT, 20, 72),
    "corstone-300": ("cortex-m55", 0x10000000, 512, 0x30000000, 512, 32),
    "nucleo-f401re": ("cortex-m4f", FLASH_AT, 512, RAM_AT, 96, 84),
    "nucleo-f446re": ("cortex-m4f", FLASH_AT, 512, RAM_AT, 128, 180),
    "nucleo-h743zi": ("cortex-m7", FLASH_AT, 2048, 0x24000000, 512, 480),
    "raspberry-pi-pico": ("cortex-m0plus", 0x10000000, 2048, RAM_AT, 264, 133),
    "raspberry-pi-pico-2": ("cortex-m33", 0x10000000, 4096, RAM_AT, 520, 150),
    "stm32f746g-disco": ("cortex-m7", FLASH_AT, 1024, RAM_AT, 320, 216),
}


def test_boards_have_their_data_sheets_sizes():
    known = boards()
    assert list(known) == list(SIZES)
    for name, (core, flash_at, flash, ram_at, ram, megahertz) in SIZES.items():
        found = known[name]
        assert found.core == core
        assert (found.flash, found.ram) == (Memory(flash_at, flash * KIB), Memory(ram_at, ram * KIB))
        assert found.clock_hz == megahertz * 1_000_000
        assert board(name) == board(FOLDER / f"{name}.toml") == found
    assert {found.core for found in known.values()} == CORES.keys()


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        BoardError, match="no board is named 'nucleo'; choose one of .*nucleo-f446re, .*, or give a .toml"
    ):
        board("nucleo")


def test_users_own_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    mine = board(path)
    assert (mine.name, mine.ram.length, mine.qemu) == ("mine", 96 * 1024, "")
    assert board(str(path)) == mine


def test_missing_file(tmp_path):
    with pytest.raises(BoardError, match="nowhere.toml: No such file"):
        board(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("length = 0x1_8000", "", "ram.length is missing; give bytes as a multiple of 4096, 4096 or more"),
        ("length = 0x1_8000", "length = 0", "ram.length = 0; give bytes as a multiple"),
        ("length = 0x1_8000", "length = 5000", "ram.length = 5000; give bytes as a multiple of 4096"),
        ("length = 0x1_8000", "length = true", "ram.length = True; give bytes"),
        ("length = 0x1_8000", 'length = "96K"', "ram.length = '96K'; give bytes"),
        ("length = 0x1_8000", "length = 0x1_8000\nspeed = 1", "ram.speed = 1; no such field; a region has"),
        ("origin = 0x2000_0000", "origin = 0x2000_0100", "ram.origin = 536871168; give bytes as a multiple"),
        ("origin = 0x2000_0000", "origin = 0x0800_0000", "ram.origin = 134217728; flash and ram must not overlap"),
        ("origin = 0x2000_0000", "origin = 0xFFFF_0000", "ram.length = 98304; origin . length must stay within"),
        ("[ram]", "[rom]", "rom = .*; no such field; the fields are"),
        ("clock_hz = 84_000_000", "clock_hz = 0", "clock_hz = 0; give the core's clock in Hz"),
        ("clock_hz = 84_000_000", "", "clock_hz is missing; give the core's clock"),
        ('core = "cortex-m4f"', 'core = "z80"', "core = 'z80'; give one of cortex-m0plus, cortex-m3,"),
        ('title = "A board"', "title = 3", "title = 3; give the board's name"),
        ('title = "A board"', "title = ", "not a TOML file"),
    ],
)
def test_bad_field_gives_one_line_with_file_key_value_and_remedy(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(BoardError, match=message) as error:
        board(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
