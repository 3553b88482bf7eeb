"""Boards that QEMU has, and what passes between a board and the host."""

from __future__ import annotations

from entropi.firmware_sim.boards import Board, Memory, board
from entropi.firmware_sim.emulator import Emulator
from entropi.firmware_sim.protocol import REPLY, Decoder

CHUNK = 1 << 16


def machine(name: str, core: str, flash: int, ram: int) -> Board:
    """A board with part of the memory of a QEMU machine, for the cores that no board of ours has there."""
    return Board(name, name, core, Memory(flash, 0x40000), Memory(ram, 0x4000), 1, "QEMU", name)


MACHINES = {
    found.core: found
    for found in (
        machine("microbit", "cortex-m0plus", 0, 0x20000000),
        board("bluepill"),
        board("nucleo-f446re"),
        machine("mps2-an500", "cortex-m7", 0, 0x20000000),
        machine("mps2-an505", "cortex-m33", 0x10000000, 0x38000000),
        board("corstone-300"),
    )
}


class Recorder:
    """A transport that keeps all that passes."""

    def __init__(self, emulator: Emulator):
        self.emulator = emulator
        self.requests = self.replies = b""

    def send(self, data: bytes) -> None:
        self.requests += data
        self.emulator.send(data)

    def receive(self, seconds: float = 0.0) -> bytes:
        data = self.emulator.receive()
        self.replies += data
        return data


def answers(stream: bytes) -> list[tuple[int, int, bytes]]:
    """Command, status and data of every reply; the ticks are no instructions in QEMU."""
    decoder = Decoder()
    frames = [frame for at in range(0, len(stream), CHUNK) for frame in decoder.feed(stream[at : at + CHUNK])]
    return [(f.command, REPLY.unpack_from(f.payload)[0], f.payload[REPLY.size :]) for f in frames]
