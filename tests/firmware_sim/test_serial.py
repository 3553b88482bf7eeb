"""A board at a serial port is what the emulated board is, to the bit, on a bad line too."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from pty_board import Faults, PtyBoard
from usart import UsartBoard

from entropi.device.runtime import HostDevice
from entropi.device.session import DeviceError, HeadConfig
from entropi.firmware_sim.boards import board
from entropi.firmware_sim.build import FIRMWARE, build_firmware
from entropi.firmware_sim.emulator import Emulator
from entropi.firmware_sim.protocol import Command, Frame, Link, LinkError
from entropi.firmware_sim.serial import SerialDevice, SerialTransport
from entropi.firmware_sim.session import FramedDevice, Simulator

BUDGET = 8192
HEAD = HeadConfig(3, batch=2, bytes_per_parameter=8, learning_rate=0.05, momentum=0.9)
INPUT_BYTES = 3 * 8 * 8


@pytest.fixture(scope="module")
def firmware(bundle):
    return build_firmware(bundle.image, board("nucleo-f446re"), BUDGET)


def lesson(device, count: int) -> tuple[list, bytes]:
    """Everything that a device answers in a session, and its head."""
    rng = np.random.default_rng(3)
    answers = []
    for image in rng.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8):
        features = device.features(image)
        answers += [features.tolist(), device.predict_features(features)]
        answers.append(device.learn_features(features, image[0, 0, 0] % 3))
    device.flush()
    return answers, device.head().tobytes()


def test_a_serial_session_is_the_simulators_to_the_bit(bundle, firmware):
    with Simulator(bundle, budget=BUDGET, head=HEAD) as simulator:
        expected = lesson(simulator, 20)
        cost = simulator.footprint()
    with PtyBoard(firmware) as at, SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD) as device:
        assert lesson(device, 20) == expected
        found = device.footprint()
    assert (found["core"], found["arena"], found["ticks"]) == (cost["core"], cost["arena"], cost["instructions"])
    assert found["stack"] == cost["stack"]


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_line_changes_nothing_and_costs_seconds(bundle, firmware, seed):
    faults = Faults(seed, rate=0.1)
    expected = lesson(HostDevice(bundle, BUDGET, head=HEAD), 25)
    started = time.monotonic()
    with PtyBoard(firmware, faults) as at, SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD) as device:
        assert lesson(device, 25) == expected
        assert device.ticks["learn"].count == 25
    assert faults.count >= 10
    assert time.monotonic() - started < 2 * faults.count


def test_a_frame_that_a_killed_session_left_half_written_does_not_hold_up_the_next(bundle, firmware):
    with PtyBoard(firmware) as at:
        for cut in (1, 5, 20, 190):
            transport = SerialTransport(at.port)
            transport.send(Frame(Command.ENCODE, 9, bytes(INPUT_BYTES)).encode()[:cut])
            transport.close()
            started = time.monotonic()
            with SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD) as device:
                assert device.predict_features(np.zeros(8))[1] == pytest.approx(1 / 3)
            assert time.monotonic() - started < 5


def test_a_session_after_a_killed_one_starts_from_nothing(bundle, firmware):
    with PtyBoard(firmware) as at:
        killed = SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD)
        lesson(killed, 5)
        killed.close()
        with SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD) as device:
            assert not device.head().any()


def test_another_image_and_too_small_an_arena_are_refused(bundle, other_bundle, firmware):
    with PtyBoard(firmware) as at:
        ours, theirs = bundle.image_crc32, other_bundle.image_crc32
        with pytest.raises(DeviceError, match=f"the firmware holds the image {ours}, the bundle {theirs}"):
            SerialDevice(other_bundle, at.port, budget=BUDGET, head=HEAD)
        with pytest.raises(DeviceError, match="budget of 8193 bytes exceeds the firmware's arena of 8192; lower the"):
            SerialDevice(bundle, at.port, budget=BUDGET + 1, head=HEAD)
        SerialDevice(bundle, at.port, budget=BUDGET, head=HEAD).close()


def refusal(port: object) -> str:
    with pytest.raises(LinkError) as refused:
        SerialTransport(str(port))
    return str(refused.value)


def test_a_port_that_cannot_be_used_says_why_and_what_helps(tmp_path):
    assert refusal(tmp_path / "ttyACM0").startswith(f"there is no port {tmp_path}/ttyACM0; plug the board in and")
    (tmp_path / "file").touch()
    assert "is no serial port that can be used" in refusal(tmp_path / "file")
    master, slave = os.openpty()
    name = os.ttyname(slave)
    held = SerialTransport(name)
    assert refusal(name) == f"{name} is in use; close the program that holds it, a serial monitor say"
    held.close()
    os.close(master)
    os.close(slave)


def as_nobody(call) -> str:
    """What `call` returns in a process that is not the superuser's."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        if os.geteuid() == 0:
            os.setuid(65534)
        os.write(writer, call().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    answer = os.read(reader, 65536).decode()
    os.close(reader)
    return answer


def test_a_port_without_permission_says_what_helps():
    master, slave = os.openpty()
    name = os.ttyname(slave)
    Path(name).chmod(0)
    assert as_nobody(lambda: refusal(name)).startswith(f"{name}: no permission; add yourself to the group that owns it")
    os.close(master)
    os.close(slave)


def test_a_board_that_is_silent_or_unplugged_is_an_error_in_seconds(monkeypatch):
    monkeypatch.setattr("entropi.firmware_sim.protocol.PATIENCE", 0.5)
    monkeypatch.setattr("entropi.firmware_sim.protocol.FIRST_WAIT", 0.1)
    master, slave = os.openpty()
    transport = SerialTransport(os.ttyname(slave))
    started = time.monotonic()
    with pytest.raises(LinkError, match="no answer to INFO in 3 attempts; check the connection and that the firmware"):
        Link(transport).request(Command.INFO)
    assert 0.5 < time.monotonic() - started < 2
    os.close(slave)
    os.close(master)
    with pytest.raises(LinkError, match="/dev/.* is gone; plug the board in again and repeat the command"):
        Link(transport).request(Command.INFO)
    transport.close()


class Deaf:
    """A device that does not hear the requests whose numbers are given, and takes 0.2 s for an answer."""

    def __init__(self, device, lost: set[int]):
        self.device, self.lost, self.requests, self.waits = device, lost, 0, []

    def send(self, data: bytes) -> None:
        self.requests += 1
        self.heard = self.requests not in self.lost
        if self.heard:
            self.device.send(data)

    def receive(self, seconds: float) -> bytes:
        self.waits.append(seconds)
        time.sleep(0.2 if self.heard else seconds)
        return self.device.receive() if self.heard else b""


def test_the_wait_is_learned_from_answers_at_the_first_attempt(bundle, firmware):
    deaf = Deaf(Emulator(firmware.board, firmware.elf), lost={3, 4})
    link = Link(deaf)
    for _ in range(3):
        link.request(Command.STACK)
    first, second, lost, lost_again, answered = deaf.waits
    assert first == 1.0 and 0.6 <= second <= lost < 1
    assert (lost_again, answered) == (2 * lost, 4 * lost)


EXAMPLE = FIRMWARE / "ports" / "stm32f446_usart2.c"


def test_the_example_port_runs_a_session_over_its_uart(bundle):
    """The real firmware on a model of the registers that the reference manual describes, bytes at the baud rate."""
    built = build_firmware(bundle.image, board("nucleo-f446re"), BUDGET, port=EXAMPLE)
    usart = UsartBoard(built)
    device = FramedDevice(bundle, usart, HEAD, BUDGET)
    host = HostDevice(bundle, BUDGET, head=HEAD)
    assert lesson(device, 6) == lesson(host, 6)
    assert usart.registers[0x408] == 139  # 16 MHz / 115,200
    assert usart.frames == 1 + 1 + 3 * 6 + 1 + 1  # INFO, OPEN, the samples, FLUSH, HEAD: none was sent twice


def test_the_example_port_has_every_function_of_port_h():
    declared = set(re.findall(r"\b(port_\w+)\(", (FIRMWARE / "port.h").read_text()))
    assert declared == set(re.findall(r"^\w+ (port_\w+)\(", EXAMPLE.read_text(), re.M))
