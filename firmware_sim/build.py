"""From a device image and a board to a firmware ELF, with every byte of flash and RAM accounted for."""

from __future__ import annotations

import io
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from elftools.elf.elffile import ELFFile

from entropi.device.library import describe, kernels_source, measure, modes_source, record_bytes
from entropi.device.session import HeadConfig
from entropi.device.toolchain import (
    CORES,
    KERNELS_SOURCE,
    MODES_SOURCE,
    RUNTIME_SOURCES,
    ZIG,
    Compiler,
    ToolchainError,
    compile_object,
    link_firmware,
)
from entropi.firmware_sim.boards import Board, BoardError, Memory

FIRMWARE = Path(__file__).resolve().parent / "firmware"
PORT, FLASH = FIRMWARE / "port_semihosting.c", FIRMWARE / "flash.c"
SOURCES = (
    *sorted(set(FIRMWARE.glob("*.c")) - {PORT, FLASH}),
    *sorted(set(RUNTIME_SOURCES) - {KERNELS_SOURCE, MODES_SOURCE}),
)
STACK_MINIMUM = 2048  # bytes of RAM kept for the stack at least; the rest of RAM is the stack's too
NUMBER_BYTES = 2  # of a layer or a label, in front of an input or features
COMMAND_BYTES = 64  # the longest command without input or features, rounded up
FRAME_LIMIT = 65535  # the frame's length field is 16 bits

AMPLE = Board("ample", "", "", Memory(0x0800_0000, 2**26), Memory(0x2000_0000, 2**26), 1, "")

LINKER_SCRIPT = """\
MEMORY
{{
    FLASH (rx) : ORIGIN = {flash.origin:#x}, LENGTH = {flash.length:#x}
    RAM (rw) : ORIGIN = {ram.origin:#x}, LENGTH = {ram.length:#x}
}}
arena_bytes = {arena};
frame_bytes = {frame};
feature_bytes = {features};
stack_minimum = {stack};
slot_bytes = {slot};
INCLUDE "{layout}"
"""
OVERFLOW = re.compile(r"region [`'](\w+)':? overflowed by (\d+) bytes")  # lld's words and GNU ld's


@dataclass(frozen=True)
class Firmware:
    """A linked firmware.

    `flash` and `ram` hold bytes by section; in `ram`, stack is all that the rest leaves free. `slots` are the bytes at
    the end of flash that keep learned heads, 0 where there are none. `symbols` holds the address of every function and
    object, the Thumb bit cleared.
    """

    board: Board
    compiler: Compiler
    elf: bytes = field(repr=False)
    flash: dict[str, int]
    ram: dict[str, int]
    slots: int
    symbols: dict[str, int] = field(repr=False)

    @property
    def needed(self) -> tuple[int, int]:
        """Bytes of flash and of RAM without which this would not fit; of the stack, STACK_MINIMUM alone."""
        return sum(self.flash.values()), sum(self.ram.values()) - self.ram["stack"] + STACK_MINIMUM


def build_firmware(
    image: bytes,
    board: Board,
    arena_bytes: int,
    head: HeadConfig | None = None,
    compiler: Compiler = ZIG,
    port: Path = PORT,
    flash: Path = FLASH,
) -> Firmware:
    """Compile, once for each core and compiler, and link the runtime, the main loop and an image.

    arena_bytes is what the firmware's arena has to hold. With `head`, the firmware has the code for that head's bytes a
    parameter alone, and two slots to store it, of whole pages, at the end of flash; there are none where the firmware
    needs those bytes, or the board's file tells no pages. port and flash are the C files with the functions of port.h
    and flash.h: the emulator's, unless a real board's are given. Raises BoardError with needed, given and missing bytes
    where flash or RAM is too small, ToolchainError where the compiler fails, DeviceError (E_IMAGE, E_VERSION).
    """
    info = describe(image)
    frame = max(NUMBER_BYTES + max(info.channels * info.height * info.width, info.features), COMMAND_BYTES)
    if frame > FRAME_LIMIT:
        raise BoardError(f"a frame of {frame} bytes exceeds {FRAME_LIMIT}; export with a smaller input")
    sizes = {"arena": arena_bytes, "frame": frame, "features": info.features, "stack": STACK_MINIMUM}
    compile_one = partial(compile_object, CORES[board.core], compiler=compiler)
    with ThreadPoolExecutor() as pool, tempfile.TemporaryDirectory(prefix="entropi-") as folder:
        kernels, modes = Path(folder) / KERNELS_SOURCE.name, Path(folder) / MODES_SOURCE.name
        kernels.write_text(kernels_source(image))
        modes.write_text(modes_source(head) if head else MODES_SOURCE.read_text())
        sources = (*SOURCES, port, flash, kernels, modes)
        objects = list(pool.map(lambda source: compile_one(source, FIRMWARE, KERNELS_SOURCE.parent), sources))
    record = record_bytes(measure(image, head)) if head else 0
    slot = -(-record // board.flash_page) * board.flash_page if board.flash_page else 0
    return link(board, objects, image, sizes, slot, compiler)


def build_without_limits(
    image: bytes, core: str, arena_bytes: int, head: HeadConfig | None = None, compiler: Compiler = ZIG
) -> Firmware:
    """build_firmware for a board of that core with ample memory: `needed` says what it takes of any board."""
    return build_firmware(image, replace(AMPLE, core=core), arena_bytes, head, compiler)


def link(
    board: Board,
    objects: list[Path],
    image: bytes,
    sizes: dict[str, int],
    slot_bytes: int = 0,
    compiler: Compiler = ZIG,
) -> Firmware:
    """Link any objects as firmware for a board; sizes are bytes of arena, frame, features and least stack, slot_bytes
    those of one slot of the store."""
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folder = Path(name)
        script = folder / "board.ld"
        memories = {"flash": board.flash, "ram": board.ram}
        script.write_text(LINKER_SCRIPT.format(**memories, **sizes, slot=slot_bytes, layout=FIRMWARE / "link.ld"))
        try:
            elf = link_firmware(CORES[board.core], objects, image, FIRMWARE / "image.S", script, folder, compiler)
        except ToolchainError as error:
            raise overflow(str(error), board, sizes) or error from None
        return inspect(board, compiler, elf.read_bytes())


def overflow(message: str, board: Board, sizes: dict[str, int]) -> BoardError | None:
    """The linker's complaint about a full region, in bytes; None where it complains of something else."""
    over: dict[str, int] = {}
    for region, excess in OVERFLOW.findall(message):
        over[region] = max(over.get(region, 0), int(excess))
    lines = []
    for region, remedy in (
        ("FLASH", "export a rung with fewer weights, or choose a board with more flash"),
        ("RAM", f"lower the budget ({sizes['arena']} bytes of arena), or choose a board with more RAM"),
    ):
        if region in over:
            given = getattr(board, region.lower()).length
            needed = given + over[region]
            numbers = f"needed {needed} bytes, given {given}, missing {over[region]}"
            lines.append((f"{board.name}, {region}: {numbers}; {remedy}", region.lower(), needed, given))
    if not lines:
        return None
    _, *numbers = lines[0]
    return BoardError("; ".join(text for text, *_ in lines), *numbers)


def inspect(board: Board, compiler: Compiler, elf: bytes) -> Firmware:
    """Account for the bytes of an ELF that `link` made."""
    file = ELFFile(io.BytesIO(elf))
    sections = {s.name: s["sh_size"] for s in file.iter_sections() if s["sh_flags"] & 2}
    flash = {name: sections.get(f".{name}", 0) for name in ("text", "rodata", "image", "data")}
    ram = {name: sections.get(f".{name}", 0) for name in ("data", "bss", "buffers", "arena", "stack")}
    table = file.get_section_by_name(".symtab")
    symbols = {
        s.name: s["st_value"] & (~1 if s["st_info"]["type"] == "STT_FUNC" else ~0)
        for s in table.iter_symbols()
        if s["st_info"]["type"] != "STT_FILE" and s.name and not s.name.startswith("$")
    }
    slots = symbols["slots_end"] - symbols["slots_start"]
    return Firmware(board, compiler, elf, flash, ram, slots, symbols)
