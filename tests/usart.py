"""What the example port touches of an STM32F446, as registers of the emulator: a USART whose bytes take their time."""

from __future__ import annotations

from entropi.firmware_sim.build import Firmware
from entropi.firmware_sim.emulator import Emulator

USART, DMA, DWT = 0x40004000, 0x40026000, 0xE0001000
SR, DR, BRR = 0x400, 0x404, 0x408
NDTR, M0AR = 0x8C, 0x94
PLAIN = (0x40020000, 0x40023000)  # GPIOA and RCC: written and read back, nothing else
BITS = 10  # a byte on the line


class UsartBoard(Emulator):
    """A transport: bytes arrive at the baud rate that the firmware set, one instruction being one clock."""

    def __init__(self, firmware: Firmware):
        super().__init__(firmware.board, firmware.elf)
        self.registers = {SR: 0xC0, BRR: 0, NDTR: 0, M0AR: 0}
        self.line = bytearray()
        self.sent = bytearray()
        self.frames = 0
        self.last = 0  # instructions when the last byte had arrived
        self.length = self.idle = 0  # of the ring; questions for more since the last byte
        for page in PLAIN:
            self._uc.mem_map(page, 0x1000)
        for page, read, write in ((USART, self._read_usart, self._write_usart), (DMA, self._read_dma, self._write_dma)):
            self._uc.mmio_map(page, 0x1000, read, None, write, None)
        self._uc.mmio_map(DWT, 0x1000, lambda *_: self.instructions & 0xFFFFFFFF, None, lambda *_: None, None)

    def send(self, data: bytes) -> None:
        if not self.line:
            self.last = self.instructions
        self.line += data
        self.idle = 0
        self.frames += 1

    def receive(self, seconds: float = 0.0) -> bytes:
        self.run()
        sent = bytes(self.sent)
        self.sent.clear()
        return sent

    def _read_usart(self, uc, offset: int, size: int, _) -> int:
        return self.registers.get(offset, 0)

    def _write_usart(self, uc, offset: int, size: int, value: int, _) -> None:
        self.registers[offset] = value
        if offset == DR:
            self.sent.append(value)

    def _read_dma(self, uc, offset: int, size: int, _) -> int:
        if offset == NDTR:
            self._arrive()
            # The firmware takes a byte from the ring each time it asks, until there is none.
            self.idle = 0 if self.line else self.idle + 1
            if self.idle > self.length:
                uc.emu_stop()
        return self.registers.get(offset, 0)

    def _write_dma(self, uc, offset: int, size: int, value: int, _) -> None:
        self.registers[offset] = value
        if offset == NDTR:
            self.length = value

    def _arrive(self) -> None:
        clocks = BITS * self.registers[BRR]
        while self.line and self.last + clocks <= self.instructions:
            self.last += clocks
            at = self.registers[M0AR] + self.length - self.registers[NDTR]
            self._uc.mem_write(at, bytes([self.line.pop(0)]))
            self.registers[NDTR] = self.registers[NDTR] - 1 or self.length
