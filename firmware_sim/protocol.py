"""The host's side of the frames that firmware/protocol.h describes, over any byte stream."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from entropi.device.session import DeviceError

SYNC = b"\xe7\x4e"
HEADER = struct.Struct("<BBHH")
REPLY = struct.Struct("<bQ")
REPLY_BIT = 0x80
DAMAGED = 0xFF
CLOSED = 1  # a reply's status, beside entropi_status
LENGTH_LIMIT = 0xFFFF
ATTEMPTS = 8
PATIENCE = 15.0  # seconds that one command may go unanswered
FIRST_WAIT = 1.0  # seconds of silence before the frame is sent again, where the command has not been answered yet
LEAST_WAIT = 0.1  # and where it has, at least; an operating system may take so long to hand a byte on
SLACK = 3  # times longer than before may an answer take


class Command(IntEnum):
    """firmware/main.c's commands; each is one call of the C API."""

    INFO = 1
    OPEN = 2
    ENCODE = 3
    PREDICT = 4
    LEARN = 5
    FLUSH = 6
    HEAD = 7
    STACK = 8
    LAYERS = 9
    SAVE = 10
    RESTORE = 11


class LinkError(DeviceError):
    """The device does not answer, or not in frames."""


class Transport(Protocol):
    """A byte stream to a device: an emulator, or a serial port."""

    def send(self, data: bytes) -> None:
        """Hand all bytes to the device."""

    def receive(self, seconds: float) -> bytes:
        """Wait for bytes; empty when none came in `seconds`, or sooner where none can come."""


@dataclass(frozen=True)
class Frame:
    """One undamaged frame."""

    command: int
    sequence: int
    payload: bytes

    def encode(self) -> bytes:
        """The frame as it goes over the stream. Raises ValueError for a payload over 65,535 bytes."""
        if len(self.payload) > LENGTH_LIMIT:
            raise ValueError(f"payload of {len(self.payload)} bytes exceeds {LENGTH_LIMIT}; send it in parts")
        header = struct.pack("<BBH", self.command, self.sequence, len(self.payload))
        crc = zlib.crc32(header)
        checked = header + struct.pack("<H", crc & 0xFFFF) + self.payload
        return SYNC + checked + struct.pack("<I", zlib.crc32(self.payload, crc))


class Decoder:
    """Finds frames in a stream, whatever lies between them and however it is cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in bytes; yields the frames that are whole by now."""
        self._buffer += data
        while True:
            start = self._buffer.find(SYNC)
            if start < 0:
                del self._buffer[: len(self._buffer) - (self._buffer[-1:] == SYNC[:1])]
                return
            del self._buffer[:start]
            body = self._buffer[len(SYNC) :]
            if len(body) < HEADER.size:
                return
            command, sequence, length, check = HEADER.unpack_from(body)
            crc = zlib.crc32(body[:4])
            end = HEADER.size + length
            if check != crc & 0xFFFF:
                del self._buffer[: len(SYNC)]
            elif len(body) < end + 4:
                return
            elif zlib.crc32(body[HEADER.size : end], crc) != int.from_bytes(body[end : end + 4], "little"):
                del self._buffer[: len(SYNC)]
            else:
                del self._buffer[: len(SYNC) + end + 4]
                yield Frame(command, sequence, bytes(body[HEADER.size : end]))


@dataclass(frozen=True)
class Reply:
    """What one call of the C API returned: its status, the ticks it took, and data packed as main.c says."""

    status: int
    ticks: int
    data: bytes


class Link:
    """Requests and replies over a transport; a frame damaged or lost either way is sent again.

    How long silence lasts until a frame counts as lost is learned: three times what the command took at most when it
    was answered at the first attempt, doubled after each silence.
    """

    def __init__(self, transport: Transport):
        self._transport = transport
        self._decoder = Decoder()
        self._sequence = 0
        self._slowest: dict[Command, float] = {}  # seconds

    def request(self, command: Command, payload: bytes = b"") -> Reply:
        """Have one command carried out, once. Raises LinkError after 8 attempts or 15 s without an answer."""
        self._sequence = (self._sequence + 1) % 256
        frame = Frame(command, self._sequence, payload).encode()
        known = self._slowest.get(command)
        wait = FIRST_WAIT if known is None else max(LEAST_WAIT, SLACK * known)
        started = time.monotonic()
        for attempt in range(ATTEMPTS):
            self._transport.send(frame)
            sent = time.monotonic()
            if reply := self._reply_to(command, wait, started + PATIENCE):
                if attempt == 0:
                    self._slowest[command] = max(known or 0.0, time.monotonic() - sent)
                return reply
            if time.monotonic() - sent >= wait:
                wait *= 2
            if time.monotonic() - started >= PATIENCE:
                break
        raise LinkError(
            f"no answer to {command.name} in {attempt + 1} attempts; check the connection and that the firmware runs"
        )

    def _reply_to(self, command: Command, wait: float, deadline: float) -> Reply | None:
        """The reply; None when it is time to send the frame again."""
        while data := self._transport.receive(wait):
            frames = list(self._decoder.feed(data))
            for frame in frames:
                if (frame.command, frame.sequence) == (command | REPLY_BIT, self._sequence):
                    return Reply(*REPLY.unpack_from(frame.payload), frame.payload[REPLY.size :])
            if any(frame.command == DAMAGED for frame in frames) or time.monotonic() >= deadline:
                return None
        return None
