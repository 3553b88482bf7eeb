"""An emulated board at a pseudo-terminal: bytes go through the kernel's terminal driver, as with a serial port."""

from __future__ import annotations

import math
import os
import random
import select
import threading

from entropi.firmware_sim.build import Firmware
from entropi.firmware_sim.emulator import Emulator


class Faults:
    """A line that drops, repeats, changes and invents bytes, and drops and repeats what was written at once: frames."""

    def __init__(self, seed: int, rate: float):
        self.random = random.Random(seed)
        self.rate = rate
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        if self.random.random() >= self.rate:
            return data
        self.count += 1
        at = self.random.randrange(len(data))
        end = at + self.random.randint(1, 4)
        return self.random.choice(
            (
                b"",
                data + data,
                data[:at] + data[end:],
                data[:end] + data[at:],
                data[:at] + bytes([data[at] ^ 1 << self.random.randrange(8)]) + data[at + 1 :],
                data[:at] + self.random.randbytes(5) + data[at:],
            )
        )


class PtyBoard:
    """A board that runs `firmware` at the port `port`, until the block ends. `faults` damages both directions.

    The power fails, and comes back at once, when `lives` bytes have arrived."""

    def __init__(self, firmware: Firmware, faults=lambda data: data, lives: float = math.inf):
        self.emulator = Emulator(firmware.board, firmware.elf)
        self.faults = faults
        self.lives = lives

    def __enter__(self) -> PtyBoard:
        self._master, self._slave = os.openpty()  # held open, so that the line stays when a session closes its end
        self.port = os.ttyname(self._slave)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()
        return self

    def _pump(self) -> None:
        while True:
            ready, _, _ = select.select((self._master, self._stop_read), (), ())
            if self._stop_read in ready:
                return
            data = self.faults(os.read(self._master, 65536))
            self.lives -= len(data)
            if self.lives < 0:
                self.emulator.power_on()
                self.lives = math.inf
                continue
            self.emulator.send(data)
            if answer := self.emulator.receive():
                os.write(self._master, self.faults(answer))

    def __exit__(self, *_) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._master, self._slave, self._stop_read, self._stop_write):
            os.close(descriptor)
