"""What an address in an ELF is called, and which source line it came from."""

from __future__ import annotations

import io
from bisect import bisect_right
from pathlib import PurePath

from elftools.elf.elffile import ELFFile

UNKNOWN = "unknown code"


class Symbols:
    """Functions and source lines of an ELF with DWARF."""

    def __init__(self, elf: bytes):
        self._elf = elf
        table = ELFFile(io.BytesIO(elf)).get_section_by_name(".symtab")
        functions = [s for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"]
        self._functions = sorted({(s["st_value"] & ~1, s.name) for s in functions})

    def describe(self, address: int) -> str:
        """Such as `learn+12 (main.c:147)`; UNKNOWN where the ELF has no function there."""
        index = bisect_right(self._functions, (address, "\uffff")) - 1
        if index < 0 or self._end(index) <= address:
            return UNKNOWN
        start, name = self._functions[index]
        line = self._line(address)
        return f"{name}+{address - start}" + (f" ({line})" if line else "")

    def _end(self, index: int) -> int:
        """The next function's start, or that of what follows .text."""
        if index + 1 < len(self._functions):
            return self._functions[index + 1][0]
        text = ELFFile(io.BytesIO(self._elf)).get_section_by_name(".text")
        return text["sh_addr"] + text["sh_size"]

    def _line(self, address: int) -> str:
        file = ELFFile(io.BytesIO(self._elf))
        if not file.has_dwarf_info():
            return ""
        dwarf = file.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            before = None
            for entry in program.get_entries() if program else ():
                state = entry.state
                if state is None:
                    continue
                if before and before.address <= address < state.address:
                    first = 0 if program["version"] >= 5 else 1
                    name = program["file_entry"][before.file - first].name.decode()
                    return f"{PurePath(name).name}:{before.line}"
                before = None if state.end_sequence else state
        return ""
