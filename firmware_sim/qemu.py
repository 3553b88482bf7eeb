"""A board in qemu-system-arm, where Unicorn has no such core: a Cortex-M55, say."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

from entropi.firmware_sim.boards import Board, BoardError
from entropi.firmware_sim.emulator import MODELS, FaultError

QEMU = "qemu-system-arm"
PATIENCE = 120.0  # seconds of silence
CHUNK = 1 << 16


def check_emulated(board: Board) -> None:
    """Raise BoardError where neither Unicorn nor an installed QEMU has the board's core."""
    if board.core in MODELS or (board.qemu and shutil.which(QEMU)):
        return
    remedy = f", or install {QEMU} (Debian: {QEMU})" if board.qemu else ""
    raise BoardError(
        f"{board.name}: {board.core} is not emulated here; choose a board with {', '.join(MODELS)}{remedy}"
    )


def command(board: Board) -> list[str]:
    """How QEMU is called to run a firmware on a board, an instruction in 32 ns; `-kernel ELF` is left to add."""
    silent = [argument for name in ("display", "monitor", "serial") for argument in (f"-{name}", "none")]
    counting = ("-icount", "shift=5")
    return [QEMU, "-M", board.qemu, *silent, *counting, "-semihosting-config", "enable=on,target=native"]


class Qemu:
    """One board in a QEMU of its own, running one ELF. It is a transport, as Emulator is.

    The answers are the same; what is missing beside Emulator: the board's true sizes (QEMU's machine may have more
    memory), flash that keeps a head, and what a fault was.
    """

    def __init__(self, board: Board, elf: bytes):
        self.board = board
        self._folder = tempfile.TemporaryDirectory(prefix="entropi-")
        self._elf = Path(self._folder.name) / "firmware.elf"
        self._elf.write_bytes(elf)
        self._process: subprocess.Popen | None = None
        self.power_on()

    def power_on(self) -> None:
        """Start from reset."""
        self.close()
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # In a session of its own ^C does not reach it: ours ends it when a checkpoint is written.
        started = [*command(self.board), "-kernel", self._elf]
        self._process = subprocess.Popen(started, bufsize=0, start_new_session=True, **pipes)

    def send(self, data: bytes) -> None:
        """Write bytes for the firmware to read."""
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self, seconds: float = 0.0) -> bytes:
        """What the firmware writes next, however many seconds that takes. Raises FaultError where it ends instead, or
        is silent for PATIENCE seconds."""
        output = self._process.stdout
        if not select.select([output], [], [], PATIENCE)[0]:
            raise self._fault(f"no answer in {PATIENCE:g} s")
        if data := os.read(output.fileno(), CHUNK):
            return data
        raise self._ended()

    def close(self) -> None:
        """End QEMU."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ended(self) -> FaultError:
        said = self._process.communicate()[1].decode(errors="replace").partition("\n")[0]
        kind = f"the firmware has ended or faulted in QEMU, status {self._process.returncode}"
        return self._fault(f"{kind}: {said}" if said else kind)

    def _fault(self, kind: str) -> FaultError:
        return FaultError(f"{self.board.name}: {kind}", kind, 0)
