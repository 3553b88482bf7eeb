"""The boards: one TOML file each, ours in boards/ or a user's own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from entropi.device.toolchain import CORES

FOLDER = Path(__file__).resolve().parent / "boards"
FLASH_UNITS = (1, 2, 4, 8, 16, 32)  # bytes that flash programs at once
PAGE = 4096  # the emulator protects memory in pages of this size


class BoardError(ValueError):
    """A board is unknown or ill described, or something does not fit it.

    Where bytes are the reason, `needed`, `given` and `missing` tell them and `region` is "flash" or "ram".
    """

    def __init__(self, message: str, region: str = "", needed: int = 0, given: int = 0):
        super().__init__(message)
        self.region = region
        self.needed = needed
        self.given = given
        self.missing = needed - given


@dataclass(frozen=True)
class Memory:
    """A memory region: address of its first byte, and bytes."""

    origin: int
    length: int

    def __contains__(self, address: int) -> bool:
        return self.origin <= address < self.origin + self.length


@dataclass(frozen=True)
class Board:
    """A board as its data sheet (`document`) describes it.

    `core` is one of device.toolchain.CORES; `qemu` is QEMU's machine where one has its core and RAM, else empty.
    `flash_page` is the bytes that one erase clears at the end of flash, `flash_unit` the least bytes that are
    programmed at once; both are 0 where the file does not tell them, and the board then keeps no learned head.
    """

    name: str
    title: str
    core: str
    flash: Memory
    ram: Memory
    clock_hz: int
    document: str
    qemu: str = ""
    flash_page: int = 0
    flash_unit: int = 0


def boards() -> dict[str, Board]:
    """Every board that comes with entropi, by name."""
    return {path.stem: read_board(path) for path in sorted(FOLDER.glob("*.toml"), key=lambda path: path.stem)}


def board(name: str | Path) -> Board:
    """The board of that name, or the one a .toml file describes. Raises BoardError."""
    if str(name).endswith(".toml"):
        return read_board(Path(name))
    known = boards()
    if str(name) not in known:
        raise BoardError(f"no board is named {name!r}; choose one of {', '.join(known)}, or give a .toml file")
    return known[str(name)]


def read_board(path: Path) -> Board:
    """Read one board file; its name is the file's. Raises BoardError naming file, key, value and remedy."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise BoardError(f"{path}: {error.strerror}; give the path of a board's .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"{path}: not a TOML file: {error}") from error

    def check(good: bool, key: str, value: object, remedy: str) -> None:
        if not good:
            found = "is missing" if value is None else f"= {value!r}"
            raise BoardError(f"{path}: {key} {found}; {remedy}")

    def text(key: str, remedy: str) -> str:
        value = table.get(key)
        check(isinstance(value, str) and value.strip() != "", key, value, remedy)
        return value

    def number(key: str, value: object, remedy: str, least: int, multiple: int = 1) -> int:
        good = isinstance(value, int) and not isinstance(value, bool)
        check(good and least <= value < 2**32 and value % multiple == 0, key, value, remedy)
        return value

    def memory(key: str, *others: str) -> Memory:
        part = table.get(key)
        check(isinstance(part, dict), key, part, f"write a table [{key}] with origin and length")
        pages = f"give bytes as a multiple of {PAGE}"
        origin = number(f"{key}.origin", part.get("origin"), f"{pages}, such as 0x20000000", 0, PAGE)
        length = number(f"{key}.length", part.get("length"), f"{pages}, {PAGE} or more", PAGE, PAGE)
        check(origin + length <= 2**32, f"{key}.length", length, "origin + length must stay within 4 GiB")
        for name in sorted(part.keys() - {"origin", "length", *others}):
            check(False, f"{key}.{name}", part[name], "no such field; a region has origin and length")
        return Memory(origin, length)

    known = {"title", "core", "clock_hz", "document", "qemu", "flash", "ram"}
    for key in sorted(table.keys() - known):
        check(False, key, table[key], f"no such field; the fields are {', '.join(sorted(known))}")
    core = text("core", f"give one of {', '.join(CORES)}")
    check(core in CORES, "core", core, f"give one of {', '.join(CORES)}")
    flash, ram = memory("flash", "page", "unit"), memory("ram")
    overlap = flash.origin < ram.origin + ram.length and ram.origin < flash.origin + flash.length
    check(not overlap, "ram.origin", ram.origin, "flash and ram must not overlap")
    page, unit = (table["flash"].get(key) for key in ("page", "unit"))
    if (page, unit) != (None, None):
        remedy = f"give the bytes that one program writes, {', '.join(map(str, FLASH_UNITS))}"
        check(type(unit) is int and unit in FLASH_UNITS, "flash.unit", unit, remedy)
        number("flash.page", page, "give the bytes of the last page, a multiple of 32", 32, 32)
        check(flash.length % page == 0, "flash.page", page, "flash.length must be a multiple of it")
    return Board(
        name=path.stem,
        title=text("title", "give the board's name in words"),
        core=core,
        flash=flash,
        ram=ram,
        clock_hz=number("clock_hz", table.get("clock_hz"), "give the core's clock in Hz, 1 or more", 1),
        document=text("document", "name the data sheet that the sizes come from"),
        qemu=text("qemu", "give QEMU's machine name or leave it out") if "qemu" in table else "",
        flash_page=page or 0,
        flash_unit=unit or 0,
    )
