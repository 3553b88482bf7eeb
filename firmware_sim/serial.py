"""A board at a serial port: the same frames, the same session."""

from __future__ import annotations

import errno
from pathlib import Path

import serial
from serial.tools import list_ports

from entropi.device.budget import plan_head
from entropi.device.bundle import Bundle
from entropi.device.library import describe
from entropi.device.session import HeadConfig
from entropi.device.units import parse_bytes
from entropi.firmware_sim.protocol import LinkError
from entropi.firmware_sim.session import FramedDevice

BAUD = 115_200
AROUND = 64  # more bytes than a frame has around an input


class SerialTransport:
    """A serial port, held for this process alone. Raises LinkError where it cannot be opened, or is unplugged."""

    def __init__(self, port: str, baud: int = BAUD):
        self.port = port
        try:
            self._serial = serial.Serial(port, baud, exclusive=True)
        except (serial.SerialException, ValueError) as error:
            raise LinkError(_why(port, baud, error)) from None

    def send(self, data: bytes) -> None:
        try:
            self._serial.write(data)
            self._serial.flush()
        except (OSError, serial.SerialException):
            raise self._gone() from None

    def receive(self, seconds: float) -> bytes:
        try:
            self._serial.timeout = seconds
            return self._serial.read(max(1, self._serial.in_waiting))
        except (OSError, serial.SerialException):
            raise self._gone() from None

    def close(self) -> None:
        self._serial.close()

    def _gone(self) -> LinkError:
        return LinkError(f"{self.port} is gone; plug the board in again and repeat the command")


def _why(port: str, baud: int, error: Exception) -> str:
    """Why a port cannot be opened, and what helps."""
    if isinstance(error, ValueError):
        return f"{port} does not take {baud} baud; choose a rate that the firmware has, such as {BAUD}"
    match error.errno:
        case errno.ENOENT:
            found = ", ".join(sorted(found.device for found in list_ports.comports())) or "none"
            return f"there is no port {port}; plug the board in and choose from: {found}"
        case errno.EACCES | errno.EPERM:
            return f"{port}: no permission; add yourself to the group that owns it (ls -l {port}) and log in again"
        case errno.EBUSY | errno.EAGAIN:
            return f"{port} is in use; close the program that holds it, a serial monitor say"
    return f"{port} is no serial port that can be used ({error}); choose one such as /dev/ttyACM0"


class SerialDevice(FramedDevice):
    """A board at a serial port that runs our firmware, built from this bundle, with an arena of at least `budget`.

    `bundle` is a Bundle or its folder, `port` a name or an open SerialTransport, which the device closes, `budget` the
    bytes of arena or text such as "48KiB". Without `head`, plan_head picks the best head that fits. Raises LinkError
    (a DeviceError) when the port cannot be opened or nothing answers, DeviceError when the firmware holds another image
    or its arena is smaller.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        port: str | SerialTransport,
        baud: int = BAUD,
        budget: int | str = "48KiB",
        classes: int = 10,
        head: HeadConfig | None = None,
    ):
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        arena = parse_bytes(budget)
        if head is None:
            plan = plan_head(bundle.image, arena, classes)
            head, self.gave_up = plan.head, plan.gave_up
        info = describe(bundle.image)
        self._transport = port if isinstance(port, SerialTransport) else SerialTransport(port, baud)
        try:
            # A session that was killed may have left part of a frame, which these bytes fill up and so end.
            self._transport.send(bytes(max(info.channels * info.height * info.width, info.features) + AROUND))
            super().__init__(bundle, self._transport, head, arena)
        except BaseException:
            self._transport.close()
            raise

    def footprint(self) -> dict:
        """Bytes of arena by part, of stack used at most and given, and the firmware's ticks by kind of call."""
        cost = super().footprint()
        return {
            "board": f"board at {self._transport.port}",
            "core": self.firmware_info.core,
            "compiler": self.firmware_info.compiler,
            "arena": cost["arena"],
            "stack": {"used": cost["stack_used"], "given": self.firmware_info.stack},
            "ticks": cost["ticks"],
        }

    def close(self) -> None:
        super().close()
        self._transport.close()
