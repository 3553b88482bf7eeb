"""The same ELF on QEMU, an emulator with a code base and a semihosting of its own; every core, M55 included."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from entropi.device.toolchain import build_shared
from entropi.firmware_sim.boards import Board, Memory, board
from entropi.firmware_sim.build import build_firmware
from entropi.firmware_sim.emulator import MODELS, Emulator
from entropi.firmware_sim.protocol import REPLY, Command, Decoder, Frame

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-system-arm"), reason="qemu-system-arm is not installed (Debian: qemu-system-arm)"
)


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


@pytest.fixture(params=MACHINES.values(), ids=MACHINES)
def on(request) -> Board:
    """A board that QEMU has, of each core in turn."""
    return request.param


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


def test_qemu_gives_the_same_answers_and_the_same_instructions(bundle, on, compiler, tmp_path):
    ours_on = on if on.core in MODELS else MACHINES["cortex-m4f"]
    counts = []
    for rounds in (1, 6):
        requests = session(rounds)
        firmware = build_firmware(bundle.image, on, 8192, 192, 8, compiler)
        qemu, qemu_count = on_qemu(firmware, requests, tmp_path)
        ours, our_count = on_ours(build_firmware(bundle.image, ours_on, 8192, 192, 8, compiler), requests)
        *replies, stack = answers(qemu)
        *our_replies, our_stack = answers(ours)
        assert replies == our_replies
        assert len(replies) == 2 * rounds + 2
        assert ours_on != on or stack == our_stack
        counts.append(qemu_count - our_count)
    # At the end of its input QEMU lets the firmware exit, where ours waits for more.
    assert ours_on != on or counts[0] == counts[1] < 100


def test_firmware_that_ends_takes_the_same_instructions(run_c, tmp_path, on):
    if on.core not in MODELS:
        pytest.skip(f"{on.core} is not emulated here")
    source = """int main(void) {
        port_open();
        volatile float product = 1.5f;
        volatile uint32_t sum = 0;
        for (uint32_t i = 1; i < 1000; i++) {
            sum += i % 7 ? 100000 / i : i * sum;
            product *= 1.001f;
        }
        port_write((const uint8_t *)&sum, 4);
        port_write((const uint8_t *)&product, 4);
        return 0; }"""
    emulator, firmware = run_c(source, on)
    assert on_qemu(firmware, b"", tmp_path) == (emulator.receive(), emulator.instructions)
    assert emulator.exit_status == 0
