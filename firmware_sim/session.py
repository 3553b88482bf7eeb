"""A device at the other end of a byte stream, and the one that is emulated here."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from entropi.device.budget import plan_head
from entropi.device.bundle import Bundle
from entropi.device.library import CNeed, describe, raise_for, record_bytes, refusal, to_need
from entropi.device.session import Device, DeviceError, HeadConfig, Need
from entropi.device.toolchain import CORES
from entropi.device.units import parse_bytes
from entropi.firmware_sim.boards import Board, board
from entropi.firmware_sim.build import build_firmware
from entropi.firmware_sim.emulator import INSTRUCTION_LIMIT, MODELS, Emulator
from entropi.firmware_sim.protocol import CLOSED, Command, Link, LinkError, Reply, Transport
from entropi.firmware_sim.qemu import Qemu, check_emulated

HEAD_CHUNK = 40  # of the head's parameters read in one frame; main.c answers no more


@dataclass
class Ticks:
    """What the calls of one kind took."""

    count: int = 0
    last: int = 0
    least: int = 0
    most: int = 0
    sum: int = 0

    def add(self, ticks: int) -> None:
        self.least = min(self.least, ticks) if self.count else ticks
        self.most = max(self.most, ticks)
        self.last = ticks
        self.sum += ticks
        self.count += 1

    def summary(self) -> dict[str, float]:
        """Calls, and ticks of the last, the least, the most and the mean one; calls alone where there were none."""
        if not self.count:
            return {"calls": 0}
        mean = self.sum / self.count
        return {"calls": self.count, "last": self.last, "min": self.least, "max": self.most, "mean": mean}


@dataclass(frozen=True)
class LayerRun:
    """One layer of one image: CRC-32 of its output, int8 channel by channel, row by row; and the ticks that it took,
    the first layer with copying the input in."""

    crc: int
    ticks: int


@dataclass(frozen=True)
class FirmwareInfo:
    """What INFO says of a firmware beside what lies in its image: bytes of arena and of stack, the image's CRC-32 in
    hexadecimal, the core and the compiler."""

    arena: int
    stack: int
    image_crc32: str
    core: str
    compiler: str

    RECORD = struct.Struct("<IHHHHfbIIIIIII")  # entropi_info, then main.c's numbers

    @classmethod
    def unpack(cls, data: bytes) -> FirmwareInfo:
        """Raises LinkError where the data is that of another firmware."""
        try:
            *_, arena, _, stack, image_crc = cls.RECORD.unpack_from(data)
            core, compiler = data[cls.RECORD.size :].decode().split(", ", 1)
        except (ValueError, struct.error):
            raise LinkError("the firmware is of another release; build and flash it again") from None
        return cls(arena, stack, f"{image_crc:08x}", core, compiler)


class FramedDevice(Device):
    """A device that runs our firmware, reached through a transport and opened with `head` in `arena_bytes` of arena.

    Raises DeviceError where the device refuses or its firmware holds another image, LinkError (a DeviceError) where it
    does not answer.
    """

    def __init__(self, bundle: Bundle, transport: Transport, head: HeadConfig, arena_bytes: int):
        self.bundle = bundle
        self.head_config = head
        self.info = describe(bundle.image)
        self.ticks = {"encode": Ticks(), "learn": Ticks(), "predict": Ticks()}
        self._arena_bytes = arena_bytes
        self._stack_used = 0
        self._link: Link | None = None
        self._connect(transport)

    def _connect(self, transport: Transport) -> None:
        self._link = Link(transport)
        self.firmware_info = self._check_firmware()
        self.reset()

    def reset(self) -> None:
        self.need = self._open(self._arena_bytes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        reply = self._call(Command.ENCODE, np.ascontiguousarray(values, np.int8).tobytes(), "encode")
        return np.frombuffer(reply.data, np.int8)

    def run_layers(self, values: np.ndarray) -> list[LayerRun]:
        """Encode int8 [C, H, W], as often as it takes to hear of every layer."""
        data = np.ascontiguousarray(values, np.int8).tobytes()
        runs: list[LayerRun] = []
        while len(runs) < self.info.layers:
            reply = self._call(Command.LAYERS, struct.pack("<H", len(runs)) + data)
            runs += [LayerRun(*fields) for fields in struct.iter_unpack("<IQ", reply.data)]
        return runs

    def learn_features(self, features: np.ndarray, label: int) -> float:
        if not 0 <= label <= 0xFFFF:
            raise refusal("E_ARGUMENT")
        payload = struct.pack("<H", label) + np.ascontiguousarray(features, np.int8).tobytes()
        return struct.unpack("<f", self._call(Command.LEARN, payload, "learn").data)[0]

    def predict_features(self, features: np.ndarray) -> tuple[int, float]:
        reply = self._call(Command.PREDICT, np.ascontiguousarray(features, np.int8).tobytes(), "predict")
        return struct.unpack("<Hf", reply.data)

    def flush(self) -> None:
        self._call(Command.FLUSH)

    def save(self) -> None:
        self._use_store(Command.SAVE)

    def restore(self) -> None:
        self._use_store(Command.RESTORE)

    def head(self) -> np.ndarray:
        size = self.head_config.classes * (self.info.features + 1)
        parts = [
            self._call(Command.HEAD, struct.pack("<IH", at, min(HEAD_CHUNK, size - at))).data
            for at in range(0, size, HEAD_CHUNK)
        ]
        return np.frombuffer(b"".join(parts), np.float32)

    def footprint(self) -> dict:
        """Bytes of arena by part, of stack at its highest, and ticks by kind of call."""
        ticks = {name: ticks.summary() for name, ticks in self.ticks.items()}
        return {"arena": asdict(self.need), "stack_used": self._most_stack(), "ticks": ticks}

    def tally(self) -> dict:
        return {"stack_used": self._most_stack(), **{name: asdict(ticks) for name, ticks in self.ticks.items()}}

    def count_from(self, tally: dict) -> None:
        self._stack_used = tally["stack_used"]
        self.ticks = {name: Ticks(**tally[name]) for name in self.ticks}

    def close(self) -> None:
        self._link = None

    def _most_stack(self) -> int:
        self._stack_used = max(self._stack_used, *struct.unpack("<I", self._call(Command.STACK).data))
        return self._stack_used

    def _check_firmware(self) -> FirmwareInfo:
        info = FirmwareInfo.unpack(self._call(Command.INFO).data)
        if info.image_crc32 != self.bundle.image_crc32:
            raise DeviceError(
                f"the firmware holds the image {info.image_crc32}, the bundle {self.bundle.image_crc32} (CRC-32); "
                "build the firmware from this bundle and flash it, or name the bundle that it was built from"
            )
        if info.arena < self._arena_bytes:
            raise DeviceError(
                f"the budget of {self._arena_bytes} bytes exceeds the firmware's arena of {info.arena}; lower the "
                f"budget to {info.arena}, or build the firmware with a larger arena"
            )
        return info

    def _open(self, arena_bytes: int) -> Need:
        head = self.head_config
        try:
            payload = struct.pack(
                "<5H2I4fI", head.classes, head.batch, head.bytes_per_parameter, head.new_classes, head.replay,
                head.seed, head.steps, head.learning_rate, head.momentum, head.weight_decay, head.learning_rate_decay,
                arena_bytes,
            )  # fmt: skip
        except struct.error:
            raise refusal("E_ARGUMENT") from None
        reply = self._request(Command.OPEN, payload)
        need = CNeed(*struct.unpack("<10I", reply.data)) if reply.data else None
        raise_for(reply.status, need)
        return to_need(need)

    def _use_store(self, command: Command) -> None:
        reply = self._request(command, b"")
        if reply.status and reply.data:
            slot, needed = int.from_bytes(reply.data, "little"), record_bytes(self.need)
            if slot < needed:
                raise DeviceError(
                    f"E_ARGUMENT: a stored head takes {needed} bytes, a slot on the device has {slot}; leave two slots "
                    "of whole flash pages free behind the image, and tell page and unit in the board's file",
                    "E_ARGUMENT",
                )
        raise_for(reply.status)

    def _call(self, command: Command, payload: bytes = b"", kind: str = "") -> Reply:
        reply = self._request(command, payload)
        raise_for(reply.status)
        if kind:
            self.ticks[kind].add(reply.ticks)
        return reply

    def _request(self, command: Command, payload: bytes) -> Reply:
        if self._link is None:
            raise DeviceError(f"the device is closed, {command.name} cannot be sent; open another")
        reply = self._link.request(command, payload)
        if reply.status == CLOSED:
            raise DeviceError(
                "E_CLOSED: the device was reset, as by a loss of power, and its head is gone; open it again, or give "
                "the session's command again, which goes on from its last checkpoint",
                "E_CLOSED",
            )
        return reply


class Simulator(FramedDevice):
    """An emulated board that runs the real firmware: the session that a board would have, to the byte and instruction.

    `bundle` is a Bundle or its folder, `board` a name of `boards()`, a .toml file or a Board, `budget` the bytes of
    arena or text such as "48KiB". Without `head`, plan_head picks the best head that fits, told `options`. A core that
    Unicorn lacks runs in QEMU. Raises BoardError when the board's flash or RAM is too small or no emulator has its
    core, DeviceError when the runtime refuses, FaultError (a DeviceError) when the firmware faults or takes more than
    `instruction_limit` instructions for one command.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        board: str | Path | Board = "nucleo-f446re",
        budget: int | str = "48KiB",
        classes: int = 10,
        head: HeadConfig | None = None,
        instruction_limit: int = INSTRUCTION_LIMIT,
        **options,
    ):
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        arena = parse_bytes(budget)
        self.board = _board(board)
        check_emulated(self.board)
        if head is None:
            plan = plan_head(bundle.image, arena, classes, **options)
            head, self.gave_up = plan.head, plan.gave_up
        self.firmware = build_firmware(bundle.image, self.board, arena, head)
        elf = self.firmware.elf
        in_unicorn = self.board.core in MODELS
        self.emulator = Emulator(self.board, elf, instruction_limit) if in_unicorn else Qemu(self.board, elf)
        super().__init__(bundle, self.emulator, head, arena)

    def power_on(self) -> None:
        """Switch the board off, unless the power has failed already, and on: flash is kept, the head is lost until
        `restore` brings back what `save` has kept."""
        self.emulator.power_on()
        self._connect(self.emulator)

    def close(self) -> None:
        super().close()
        if isinstance(self.emulator, Qemu):
            self.emulator.close()

    def footprint(self) -> dict:
        """Everything the session costs the board, as a JSON-able dict.

        `arena`, `flash` and `ram` are bytes by part (`given` is what the board has, `slots` what keeps learned heads
        in flash that `total`, the firmware, leaves free), `stack` bytes used at most
        since reset of those given, `instructions` by kind of call: those of the C function, and about 20 that read
        the clock and pass the arguments.
        """
        cost = super().footprint()
        flash, ram = self.firmware.flash, self.firmware.ram
        core = CORES[self.board.core]
        return {
            "board": self.board.name,
            "core": core.name,
            "compiler": self.firmware.compiler.version,
            "flags": list(self.firmware.compiler.flags(core)),
            "arena": cost["arena"],
            "flash": {
                **flash,
                "total": sum(flash.values()),
                "slots": self.firmware.slots,
                "given": self.board.flash.length,
            },
            "ram": {**ram, "given": self.board.ram.length},
            "stack": {"used": cost["stack_used"], "given": ram["stack"]},
            "instructions": cost["ticks"],
        }


def _board(name: str | Path | Board) -> Board:
    return name if isinstance(name, Board) else board(name)
