"""Flash as microcontrollers have it, the controller that the firmware writes it with, and power that fails meanwhile.

Flash is erased page by page, all bits to 1, and programmed unit by unit, bits from 1 to 0, once between two erases. The
controller's registers are 32 bits wide and lie at CONTROLLER, in the address space of peripherals:

    0x00  bytes of a page (read only)
    0x04  bytes of a unit (read only)
    0x08  address: of a page or of a unit
    0x0c  command: 1 erases the page, 2 programs the unit
    0x10  status of the last command: 0 done, 1 refused (read only)
    0x20  data: the unit's bytes, 32 at most

A command is over when the write to its register is: waiting for flash costs time on a board, but no instructions here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from unicorn import Uc

from entropi.device.session import DeviceError

CONTROLLER, CONTROLLER_BYTES = 0x5FFFF000, 0x1000
PAGE_REGISTER, UNIT_REGISTER, ADDRESS, COMMAND, STATUS, DATA = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x20
ERASE, PROGRAM = 1, 2
UNIT_LIMIT = 32  # bytes

# How far an erase or a program got when the power failed. "any bits": the cells read as noise.
STAGES = ("nothing", "first bytes", "some bits", "any bits", "all")


class PowerCut(DeviceError):
    """The power has failed; the device is off until it is switched on again."""


class FlashError(ValueError):
    """What flash refuses; the message says which address and why."""


@dataclass(frozen=True)
class Cut:
    """The power fails at the `operation`-th erase or program from now, counted from 0; one of STAGES says how far it
    gets, `seed` picks the bytes or bits."""

    operation: int
    stage: str
    seed: int = 0


class Flash:
    """Flash over `memory`, a writable buffer, with pages of `page` bytes and units of `unit` bytes.

    `operations` counts erases and programs, `erases` the erases of each page. `cut` says when the power fails next.
    """

    def __init__(self, memory, page: int, unit: int):
        self.page, self.unit = page, unit
        self.operations = 0
        self.erases = [0] * (len(memory) // page)
        self._memory = memoryview(memory).cast("B")
        self._spent = bytearray(len(memory) // unit)  # 1 where a unit has to be erased before it is programmed
        self._cut_at, self._cut = -1, Cut(0, "all")

    def cut(self, cut: Cut) -> None:
        """Let the power fail."""
        self._cut_at, self._cut = self.operations + cut.operation, cut

    def erase(self, at: int) -> None:
        """Erase the page at byte `at`. Raises FlashError, PowerCut."""
        if at % self.page or not 0 <= at < len(self._memory):
            raise FlashError(f"erase at {at:#x}: no page starts there; pages have {self.page} bytes")
        units = slice(at // self.unit, (at + self.page) // self.unit)
        self.erases[at // self.page] += 1
        self._spent[units] = b"\1" * (self.page // self.unit)
        self._change(at, b"\xff" * self.page)
        self._spent[units] = bytes(self.page // self.unit)

    def program(self, at: int, data: bytes) -> None:
        """Program the unit at byte `at`. Raises FlashError, PowerCut."""
        if at % self.unit or not 0 <= at < len(self._memory):
            raise FlashError(f"program at {at:#x}: no unit starts there; units have {self.unit} bytes")
        if len(data) != self.unit:
            raise FlashError(f"program at {at:#x}: {len(data)} bytes are no unit of {self.unit}")
        if self._spent[at // self.unit] or any(byte != 0xFF for byte in self._memory[at : at + self.unit]):
            raise FlashError(f"program at {at:#x}: the unit is not erased")
        self._spent[at // self.unit] = 1
        self._change(at, data)

    def _change(self, at: int, new: bytes) -> None:
        """Put `new` at byte `at`, or as much of it as the power lasts for."""
        number, self.operations = self.operations, self.operations + 1
        if number != self._cut_at:
            self._memory[at : at + len(new)] = new
            return
        old = self._memory[at : at + len(new)].tobytes()
        self._memory[at : at + len(new)] = interrupted(old, new, self._cut)
        raise PowerCut(f"the power failed at flash operation {number}, which changed {self._cut.stage}")


def interrupted(old: bytes, new: bytes, cut: Cut) -> bytes:
    """What flash reads after an operation that was to turn `old` into `new`."""
    rng = random.Random(cut.seed)
    noise = rng.randbytes(len(new))
    if cut.stage == "nothing":
        return old
    if cut.stage == "first bytes":
        count = rng.randrange(len(new))
        return new[:count] + old[count:]
    if cut.stage == "some bits":
        return bytes((o & ~n) | (w & n) for o, w, n in zip(old, new, noise, strict=True))
    return noise if cut.stage == "any bits" else new


class Controller:
    """The controller's registers, mapped into an emulated core; `origin` is the address of the flash's first byte.

    `on_cut` is called with the PowerCut when the power fails.
    """

    def __init__(self, uc: Uc, flash: Flash, origin: int, on_cut: Callable[[PowerCut], None]):
        self._flash, self._origin, self._on_cut = flash, origin, on_cut
        self._address = self._status = 0
        self._data = bytearray(UNIT_LIMIT)
        uc.mmio_map(CONTROLLER, CONTROLLER_BYTES, self._read, None, self._write, None)

    def _read(self, _uc: Uc, offset: int, _size: int, _: object) -> int:
        return {PAGE_REGISTER: self._flash.page, UNIT_REGISTER: self._flash.unit, STATUS: self._status}.get(offset, 0)

    def _write(self, _uc: Uc, offset: int, size: int, value: int, _: object) -> None:
        if offset == ADDRESS:
            self._address = value
        elif offset == COMMAND:
            self._carry_out(value)
        elif DATA <= offset <= DATA + UNIT_LIMIT - size:
            self._data[offset - DATA : offset - DATA + size] = value.to_bytes(size, "little")

    def _carry_out(self, command: int) -> None:
        at = self._address - self._origin
        self._status = 1
        try:
            if command == ERASE:
                self._flash.erase(at)
                self._status = 0
            elif command == PROGRAM:
                self._flash.program(at, bytes(self._data[: self._flash.unit]))
                self._status = 0
        except FlashError:
            return
        except PowerCut as cut:
            self._on_cut(cut)
