import pytest

from entropi.firmware_sim.boards import BoardError, Memory, board, boards

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


def test_nucleo_f446re_has_its_data_sheets_sizes():
    nucleo = boards()["nucleo-f446re"]
    assert nucleo.flash == Memory(0x08000000, 512 * 1024)
    assert nucleo.ram == Memory(0x20000000, 128 * 1024)
    assert nucleo.clock_hz == 180_000_000
    assert board("nucleo-f446re") == nucleo


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(BoardError, match="no board is named 'nucleo'; choose one of .*nucleo-f446re"):
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
        ('core = "cortex-m4f"', 'core = "z80"', "core = 'z80'; give one of cortex-m4f"),
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
