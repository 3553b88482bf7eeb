"""The same ELF on QEMU, an emulator with a code base and a semihosting of its own."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from entropi.device.toolchain import build_shared
from entropi.firmware_sim.build import build_firmware
from entropi.firmware_sim.emulator import Emulator
from entropi.firmware_sim.protocol import REPLY, Command, Decoder, Frame

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-system-arm"), reason="qemu-system-arm is not installed (Debian: qemu-system-arm)"
)


def session(rounds: int) -> bytes:
    """Open, then encode and learn a few times, then ask for the head and the stack."""
    requests = [(Command.OPEN, struct.pack("<HHHfffI", 3, 2, 8, 0.1, 0.9, 0.0, 8192))]
    for i in range(rounds):
        requests.append((Command.ENCODE, bytes((i + 7 * j) % 256 for j in range(192))))
        requests.append((Command.LEARN, struct.pack("<H8b", i % 3, *range(i, i + 8))))
    requests += [(Command.HEAD, struct.pack("<IH", 0, 3 * 9 * 4)), (Command.STACK, b"")]
    return b"".join(Frame(command, i, payload).encode() for i, (command, payload) in enumerate(requests))


def answers(stream: bytes) -> list[tuple[int, int, bytes]]:
    """Command, status and data of every reply; the ticks are no instructions in QEMU."""
    frames = Decoder().feed(stream)
    return [(f.command, REPLY.unpack_from(f.payload)[0], f.payload[REPLY.size :]) for f in frames]


def on_qemu(firmware, requests: bytes, folder: Path) -> tuple[bytes, int]:
    elf, plugin = folder / "firmware.elf", build_shared("qemu-count", (Path(__file__).with_name("qemu_count.c"),))
    elf.write_bytes(firmware.elf)
    command = ["qemu-system-arm", "-M", firmware.board.qemu, "-display", "none", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0", "-plugin", plugin]
    done = subprocess.run([*command, "-kernel", elf], input=requests, capture_output=True, timeout=20)
    count = re.search(rb"executed (\d+)", done.stderr)
    if done.returncode and b"plugin" in done.stderr:
        pytest.skip(f"this QEMU takes no plugins: {done.stderr.decode().strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout, int(count[1])


def on_ours(firmware, requests: bytes) -> tuple[bytes, int]:
    emulator = Emulator(firmware.board, firmware.elf)
    emulator.send(requests)
    return emulator.receive(), emulator.instructions


def test_qemu_gives_the_same_answers_and_the_same_instructions(bundle, nucleo, tmp_path):
    firmware = build_firmware(bundle.image, nucleo, 8192, 192, 8)
    counts = []
    for rounds in (1, 6):
        qemu, qemu_count = on_qemu(firmware, session(rounds), tmp_path)
        ours, our_count = on_ours(firmware, session(rounds))
        assert answers(qemu) == answers(ours)
        assert len(answers(ours)) == 2 * rounds + 3
        counts.append(qemu_count - our_count)
    # At the end of its input QEMU lets the firmware exit, where ours waits for more.
    assert counts[0] == counts[1] < 100
