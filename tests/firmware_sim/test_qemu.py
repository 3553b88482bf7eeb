"""The same ELF on QEMU, an emulator with a code base and a semihosting of its own; every core, M55 included."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from networks import opened, reference, residual_network
from qemu import MACHINES, Recorder, answers

from entropi.device.bundle import Bundle
from entropi.device.library import measure
from entropi.device.runtime import HostDevice
from entropi.device.session import DeviceError, HeadConfig
from entropi.device.toolchain import Compiler, build_shared
from entropi.firmware_sim.boards import Board
from entropi.firmware_sim.build import Firmware, build_firmware
from entropi.firmware_sim.emulator import MODELS, Emulator, FaultError
from entropi.firmware_sim.qemu import Qemu, command
from entropi.firmware_sim.session import FramedDevice, Simulator

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-system-arm"), reason="qemu-system-arm is not installed (Debian: qemu-system-arm)"
)

ARENA = 8192
HEAD = HeadConfig(3, batch=2, bytes_per_parameter=8, learning_rate=0.1, momentum=0.9)


@pytest.fixture(params=MACHINES.values(), ids=MACHINES)
def on(request) -> Board:
    """A board that QEMU has, of each core in turn."""
    return request.param


def build(bundle: Bundle, on: Board, compiler: Compiler) -> Firmware:
    return build_firmware(bundle.image, on, ARENA, compiler=compiler)


def lesson(bundle: Bundle, firmware: Firmware, rounds: int) -> Recorder:
    """Teach a firmware on our emulator, then ask for its head and its stack."""
    recorder = Recorder(Emulator(firmware.board, firmware.elf))
    rng = np.random.default_rng(rounds)
    with FramedDevice(bundle, recorder, HEAD, ARENA) as device:
        for step in range(rounds):
            features = device.encode(rng.integers(-128, 128, (3, 8, 8)).astype(np.int8))
            device.learn_features(features, step % HEAD.classes)
            device.predict_features(features)
        device.flush()
        device.head()
        device.footprint()
    return recorder


def on_qemu(firmware: Firmware, requests: bytes, folder: Path) -> tuple[bytes, int]:
    """What the firmware writes on QEMU's machine, and the instructions executed."""
    elf, plugin = folder / "firmware.elf", build_shared("qemu-count", (Path(__file__).with_name("qemu_count.c"),))
    elf.write_bytes(firmware.elf)
    counted = [*command(firmware.board), "-plugin", plugin]
    done = subprocess.run([*counted, "-kernel", elf], input=requests, capture_output=True, timeout=20)
    count = re.search(rb"executed (\d+)", done.stderr)
    if done.returncode and b"plugin" in done.stderr:
        pytest.skip(f"this QEMU takes no plugins: {done.stderr.decode().strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout, int(count[1])


def test_qemu_gives_the_same_answers_and_the_same_instructions(every_layer, on, compiler, tmp_path):
    firmware = build(every_layer, on, compiler)
    is_ours = on.core in MODELS
    ours = firmware if is_ours else build(every_layer, MACHINES["cortex-m4f"], compiler)
    counts = []
    for rounds in (1, 6):
        recorder = lesson(every_layer, ours, rounds)
        output, count = on_qemu(firmware, recorder.requests, tmp_path)
        *replies, stack = answers(output)
        *our_replies, our_stack = answers(recorder.replies)
        named = 0 if is_ours else 1  # INFO's reply names the core
        assert replies[named:] == our_replies[named:]
        assert len(replies) == 3 * rounds + 5  # INFO, OPEN, FLUSH, and HEAD twice
        assert stack == our_stack or not is_ours
        counts.append(count - recorder.emulator.instructions)
    # At the end of its input QEMU lets the firmware exit, where ours waits for more.
    assert counts[0] == counts[1] < 100 or not is_ours


@pytest.mark.parametrize("seed", range(6))
def test_the_vectors_of_an_m55_give_the_same_features(seed, compiler, tmp_path):
    """Maps, borders and strides for every tile; weights from few to all."""
    size, density = (5, 8, 11, 16, 18, 21)[seed], (0.02, 0.1, 0.3, 0.3, 0.1, 1.0)[seed]
    network = residual_network(seed, channels=6, size=size, density=density)
    bundle = opened(network, ("size", "speed")[seed % 2]).bundle
    arena, m4 = measure(bundle.image, HEAD).total, MACHINES["cortex-m4f"]
    values = np.random.default_rng(seed).integers(-128, 128, (3, *network.tensors[0].shape)).astype(np.int8)
    recorder = Recorder(Emulator(m4, build_firmware(bundle.image, m4, arena, compiler=compiler).elf))
    with FramedDevice(bundle, recorder, HEAD, arena) as device:
        expected = [device.encode(v) for v in values]
    np.testing.assert_array_equal(expected, [reference(network, v)[-1].ravel() for v in values])
    on = MACHINES["cortex-m55"]
    output, _ = on_qemu(build_firmware(bundle.image, on, arena, compiler=compiler), recorder.requests, tmp_path)
    found = answers(output)[2:]  # behind INFO and OPEN
    np.testing.assert_array_equal([np.frombuffer(data, np.int8) for _, _, data in found], expected)


def test_a_board_that_unicorn_lacks_learns_in_qemu(bundle):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    host = HostDevice(bundle, ARENA, head=HEAD)
    with Simulator(bundle, "corstone-300", ARENA, head=HEAD) as device:
        losses = [device.learn(image, label % HEAD.classes) for label, image in enumerate(images)]
        assert losses == [host.learn(image, label % HEAD.classes) for label, image in enumerate(images)]
        assert device.head().tobytes() == host.head().tobytes()
        cost = device.footprint()
        assert cost["core"] == "cortex-m55" and cost["stack"]["used"] > 0
        assert {name: ticks["calls"] for name, ticks in cost["instructions"].items()} == {
            "encode": 6, "learn": 6, "predict": 0
        }  # fmt: skip
        assert 0 < cost["instructions"]["encode"]["min"] == cost["instructions"]["encode"]["max"]
        with pytest.raises(DeviceError, match="a slot on the device has 0"):
            device.save()
        device.power_on()
        assert not device.head().any()


@pytest.mark.parametrize("statement", ["return 1;", '__asm__("udf 0");'])
def test_firmware_that_ends_or_faults_in_qemu(run_c, statement):
    _, firmware = run_c(f"int main(void) {{ {statement} return 0; }}", MACHINES["cortex-m3"])
    with pytest.raises(FaultError, match="bluepill: the firmware has ended or faulted in QEMU, status 1"):
        Qemu(firmware.board, firmware.elf).receive()


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


@pytest.mark.parametrize("rounds", [1, 1000, 3_000_000])
def test_the_ticks_of_an_m55_are_instructions(build_c, rounds):
    """Around a loop of three instructions, less what the clock itself takes."""
    source = f"""int main(void) {{
        port_open();
        uint32_t left = {rounds};
        const uint64_t before = port_ticks(), started = port_ticks();
        __asm__ volatile("1: subs %0, #1; nop; bne 1b" : "+r"(left) :: "cc");
        const uint64_t ticks = port_ticks() - started - (started - before);
        port_write((const uint8_t *)&ticks, 8);
        return 0; }}"""
    device = Qemu(MACHINES["cortex-m55"], build_c(source, MACHINES["cortex-m55"]).elf)
    ticks = int.from_bytes(device.receive(), "little")
    device.close()
    assert abs(ticks - 3 * rounds) < 8
