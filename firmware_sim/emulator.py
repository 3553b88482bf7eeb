"""An emulated Cortex-M with a board's true flash and RAM, on Unicorn: counts instructions, explains faults."""

from __future__ import annotations

import ctypes
import io
from pathlib import Path

from elftools.elf.elffile import ELFFile
from unicorn import Uc, UcError, arm_const, unicorn_const
from unicorn.unicorn_py3.unicorn import uclib

from entropi.device.session import DeviceError
from entropi.device.toolchain import build_shared
from entropi.firmware_sim.boards import Board, BoardError
from entropi.firmware_sim.debug import UNKNOWN, Symbols
from entropi.firmware_sim.flash import Controller, Flash, PowerCut

MODELS = {
    "cortex-m0plus": arm_const.UC_CPU_ARM_CORTEX_M0,  # the same instructions
    "cortex-m3": arm_const.UC_CPU_ARM_CORTEX_M3,
    "cortex-m4f": arm_const.UC_CPU_ARM_CORTEX_M4,
    "cortex-m7": arm_const.UC_CPU_ARM_CORTEX_M7,
    "cortex-m33": arm_const.UC_CPU_ARM_CORTEX_M33,
}
SYSTEM_CONTROL = 0xE000E000  # one page: startup.c turns the FPU on there
POWER_ON = b"\x5c"  # RAM holds anything at power-on, so that firmware must not count on zeros
INSTRUCTION_LIMIT = 20_000_000_000  # between two waits for input; about half a minute of emulation

BKPT_INTERRUPT = 7
INTERRUPTS = {
    1: "undefined instruction",
    2: "supervisor call, which nothing handles",
    4: "unaligned access",  # what is unmapped or protected has hooks of its own
    BKPT_INTERRUPT: "breakpoint",
    17: "FPU instruction without an FPU",
}
THUMB_BIT = 1 << 5
SEMIHOSTING = b"\xab\xbe"  # bkpt 0xab
SYS_OPEN, SYS_WRITE, SYS_READ, SYS_EXIT, SYS_ELAPSED = 0x01, 0x05, 0x06, 0x18, 0x30
CONSOLE_IN, CONSOLE_OUT = 1, 2
APPLICATION_EXIT = 0x20026

R0, R1 = arm_const.UC_ARM_REG_R0, arm_const.UC_ARM_REG_R1
SP, LR, PC = arm_const.UC_ARM_REG_SP, arm_const.UC_ARM_REG_LR, arm_const.UC_ARM_REG_PC


class FaultError(DeviceError):
    """The firmware did what stops a real core; `kind` says it in words, `address` is what it touched, if anything."""

    def __init__(self, message: str, kind: str, pc: int, address: int | None = None):
        super().__init__(message)
        self.kind = kind
        self.pc = pc
        self.address = address


class Block(ctypes.Structure):
    """count.c's block."""

    _fields_ = [("bytes", ctypes.c_uint16), ("instructions", ctypes.c_uint16)]


class Counter(ctypes.Structure):
    """count.c's counter."""

    _fields_ = [
        ("instructions", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("code", ctypes.c_void_p),
        ("memo", ctypes.POINTER(Block)),
        ("stop", ctypes.c_void_p),
    ]


def cpu_model(board: Board) -> int:
    """Unicorn's model of a board's core. Raises BoardError where it has none."""
    if board.core not in MODELS:
        raise BoardError(f"{board.name}: Unicorn has no {board.core}; choose a board with {', '.join(MODELS)}")
    return MODELS[board.core]


class Emulator:
    """One emulated board running one ELF. It is a transport: `send` bytes to the firmware, `receive` its answer.

    RAM cannot be executed, and flash is written through its controller alone (flash.py). Instruction counts are exact
    and the same in every run; they are not cycles. `flash` is the model of the flash, None where the board's file tells
    no pages.
    """

    def __init__(self, board: Board, elf: bytes, instruction_limit: int = INSTRUCTION_LIMIT):
        self.board = board
        self.instruction_limit = instruction_limit
        self._flash = ctypes.create_string_buffer(b"\xff" * board.flash.length, board.flash.length)
        self.flash = Flash(self._flash, board.flash_page, board.flash_unit) if board.flash_page else None
        self._uc = self._engine()
        self._at_reset = self._uc.context_save()
        self._symbols = Symbols(elf)
        self._load(elf)
        self._counter = self._count()
        self.power_on()

    def power_on(self) -> None:
        """Start from reset: flash is as it was, everything else is lost."""
        self.exit_status: int | None = None
        self._input = bytearray()
        self._output = bytearray()
        self._read: tuple[int, int] | None = None  # address and bytes of a SYS_READ that waits for input
        self._fault: tuple[str, int | None] | None = None
        self._dead: DeviceError | None = None
        self._cut_at: int | None = None
        self._counter.instructions = 0
        self._uc.context_restore(self._at_reset)
        self._uc.mem_write(SYSTEM_CONTROL, bytes(0x1000))
        self._uc.mem_write(self.board.ram.origin, POWER_ON * self.board.ram.length)
        stack, entry = (int.from_bytes(self._flash[at : at + 4], "little") for at in (0, 4))
        self._uc.reg_write(SP, stack)
        self._pc = entry | 1

    def cut_power_after(self, instructions: int) -> None:
        """Let the power fail when so many more have been executed, to the end of the basic block."""
        self._cut_at = self.instructions + instructions

    @property
    def instructions(self) -> int:
        """Executed since reset."""
        return self._counter.instructions

    def send(self, data: bytes) -> None:
        """Queue bytes for the firmware to read."""
        self._input += data

    def receive(self, seconds: float = 0.0) -> bytes:
        """Run until the firmware waits for input that is not there; what it wrote, however many seconds that takes.
        Raises FaultError, PowerCut."""
        self.run()
        output = bytes(self._output)
        self._output.clear()
        if self.exit_status is not None and not output:
            raise self._explain(f"the firmware has ended with status {self.exit_status}", None)
        return output

    def run(self) -> None:
        """Run until the firmware waits for input that is not there, or ends. Raises FaultError, PowerCut."""
        if self._dead:
            raise self._dead
        if self._read and self._input:
            self._uc.reg_write(R0, self._take_input(*self._read))
            self._read = None
        if self._read or self.exit_status is not None:
            return
        self._fault = None
        watchdog = self._counter.instructions + self.instruction_limit
        self._counter.limit = watchdog if self._cut_at is None else min(watchdog, self._cut_at)
        try:
            self._uc.emu_start(self._pc, 0xFFFFFFFE)
        except UcError as error:
            raise self._explain(*(self._fault or (str(error), None))) from None
        self._pc = self._uc.reg_read(PC) | 1
        if self._dead:
            raise self._dead
        if self._fault:
            raise self._explain(*self._fault)
        if self._cut_at is not None and self._counter.instructions > self._cut_at:
            self._dead = PowerCut(f"the power failed after {self._counter.instructions} instructions")
            raise self._dead
        if self._counter.instructions > self._counter.limit:
            raise self._explain(f"no end after {self.instruction_limit} instructions", None)

    def _engine(self) -> Uc:
        # UC_MODE_MCLASS would silently make this a Cortex-M33.
        uc = Uc(unicorn_const.UC_ARCH_ARM, unicorn_const.UC_MODE_THUMB)
        model = cpu_model(self.board)
        uc.ctl_set_cpu_model(model)
        if uc.ctl_get_cpu_model() != model:
            raise RuntimeError(f"unicorn does not emulate {self.board.core}; install unicorn 2.1.4 or newer")
        flash, ram = self.board.flash, self.board.ram
        readable, writable = unicorn_const.UC_PROT_READ, unicorn_const.UC_PROT_WRITE
        code = ctypes.addressof(self._flash)
        uc.mem_map_ptr(flash.origin, flash.length, readable | unicorn_const.UC_PROT_EXEC, code)
        uc.mem_map(ram.origin, ram.length, readable | writable)
        uc.mem_map(SYSTEM_CONTROL, 0x1000, readable | writable)
        if self.flash:
            Controller(uc, self.flash, flash.origin, self._on_power_cut)
        invalid = unicorn_const.UC_HOOK_MEM_UNMAPPED | unicorn_const.UC_HOOK_MEM_PROT
        uc.hook_add(invalid, self._on_invalid_access)
        uc.hook_add(unicorn_const.UC_HOOK_INTR, self._on_interrupt)
        uc.hook_add(unicorn_const.UC_HOOK_INSN_INVALID, self._on_invalid_instruction)
        return uc

    def _load(self, elf: bytes) -> None:
        for segment in ELFFile(io.BytesIO(elf)).iter_segments("PT_LOAD"):
            if segment["p_filesz"]:
                at = segment["p_paddr"] - self.board.flash.origin
                self._flash[at : at + segment["p_filesz"]] = segment.data()

    def _count(self) -> Counter:
        shim = ctypes.CDLL(str(build_shared("count", (Path(__file__).with_name("count.c"),))))
        self._memo = (Block * (self.board.flash.length // 2))()
        counter = Counter(start=self.board.flash.origin, code=ctypes.addressof(self._flash), memo=self._memo)
        counter.stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value
        handle = ctypes.c_size_t()
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        error = uclib.uc_hook_add(
            self._uc._uch, ctypes.byref(handle), unicorn_const.UC_HOOK_BLOCK,
            ctypes.cast(shim.count_block, ctypes.c_void_p), ctypes.addressof(counter), *everywhere,
        )  # fmt: skip
        if error:
            raise UcError(error)
        return counter

    def _on_power_cut(self, cut: PowerCut) -> None:
        self._dead = cut
        self._uc.emu_stop()

    def _on_invalid_access(self, uc: Uc, access: int, address: int, size: int, value: int, _: object) -> bool:
        self._fault = (self._access_kind(access, address), address)
        return False

    def _access_kind(self, access: int, address: int) -> str:
        flash, ram = self.board.flash, self.board.ram
        if access in (unicorn_const.UC_MEM_FETCH_PROT, unicorn_const.UC_MEM_FETCH_UNMAPPED):
            return "execution from RAM" if address in ram else "execution outside flash"
        if access == unicorn_const.UC_MEM_WRITE_PROT and address in flash:
            return "write to flash"
        reads = (unicorn_const.UC_MEM_READ_UNMAPPED, unicorn_const.UC_MEM_READ_PROT)
        verb = "read" if access in reads else "write"
        if ram.origin - 0x1000 <= address < ram.origin and self._uc.reg_read(SP) < ram.origin + 0x100:
            return f"stack overflow: {verb} below RAM"
        return f"{verb} outside flash and RAM"

    def _on_invalid_instruction(self, uc: Uc, _: object) -> bool:
        thumb = uc.reg_read(arm_const.UC_ARM_REG_CPSR) & THUMB_BIT
        kind = "undefined instruction" if thumb else "branch to an even address, as if to Arm code"
        self._fault = (kind, None)
        return False

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        pc = uc.reg_read(PC)
        if number == BKPT_INTERRUPT and bytes(uc.mem_read(pc, 2)) == SEMIHOSTING:
            self._semihosting(uc.reg_read(R0), uc.reg_read(R1))
            uc.reg_write(PC, pc + 2 | 1)
            if self._read or self.exit_status is not None:
                uc.emu_stop()
            return
        self._fault = (INTERRUPTS.get(number, f"exception {number}"), None)
        uc.emu_stop()

    def _semihosting(self, operation: int, argument: int) -> None:
        """Arm's "Semihosting for AArch32 and AArch64", the five operations that the firmware uses."""
        if operation == SYS_EXIT:
            self.exit_status = int(argument != APPLICATION_EXIT)
        elif operation == SYS_ELAPSED:
            self._uc.mem_write(argument, self.instructions.to_bytes(8, "little"))
            self._uc.reg_write(R0, 0)
        elif operation in (SYS_OPEN, SYS_READ, SYS_WRITE):
            block = bytes(self._uc.mem_read(argument, 12))
            first, second, third = (int.from_bytes(block[i : i + 4], "little") for i in (0, 4, 8))
            if operation == SYS_OPEN:
                console = bytes(self._uc.mem_read(first, third)) == b":tt"
                self._uc.reg_write(R0, (CONSOLE_IN if second < 4 else CONSOLE_OUT) if console else 0xFFFFFFFF)
            elif operation == SYS_WRITE:
                self._output += self._uc.mem_read(second, third)
                self._uc.reg_write(R0, 0)
            elif self._input:
                self._uc.reg_write(R0, self._take_input(second, third))
            else:
                self._read = (second, third)
        else:
            self._fault = (f"semihosting operation {operation:#x}", None)
            self._uc.emu_stop()

    def _take_input(self, address: int, length: int) -> int:
        """Give the firmware what input there is; the bytes it has to go without, as SYS_READ returns them."""
        data = bytes(self._input[:length])
        del self._input[:length]
        self._uc.mem_write(address, data)
        return length - len(data)

    def _explain(self, kind: str, address: int | None) -> FaultError:
        pc, return_address = self._uc.reg_read(PC) & ~1, self._uc.reg_read(LR) & ~1
        where = self._symbols.describe(pc)
        if where == UNKNOWN:
            where += f", called from {self._symbols.describe(return_address - 2)}"
        touched = "" if address is None else f" at {address:#010x}"
        message = f"{self.board.name}: {kind}{touched}, pc {pc:#010x} in {where}"
        self._dead = FaultError(message, kind, pc, address)
        return self._dead
