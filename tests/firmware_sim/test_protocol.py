import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device.runtime import HostDevice
from entropi.device.session import DeviceError, HeadConfig
from entropi.firmware_sim.boards import board
from entropi.firmware_sim.build import build_firmware
from entropi.firmware_sim.emulator import Emulator
from entropi.firmware_sim.protocol import (
    ATTEMPTS,
    CLOSED,
    DAMAGED,
    REPLY,
    REPLY_BIT,
    SYNC,
    Command,
    Decoder,
    Frame,
    Link,
    LinkError,
)
from entropi.firmware_sim.session import FramedDevice

ARENA = 8192
FRAMES = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80))


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_survive_any_cut(frames, cuts):
    stream = b"".join(frame.encode() for frame in frames)
    decoder, found = Decoder(), []
    at = 0
    for size in [*cuts, len(stream)]:
        found += decoder.feed(stream[at : at + size])
        at += size
    assert found == frames


@given(FRAMES, st.binary(max_size=40).filter(lambda garbage: SYNC not in garbage and garbage[-1:] != SYNC[:1]))
def test_garbage_between_frames_is_skipped(frame, garbage):
    assert list(Decoder().feed(garbage + frame.encode() + garbage + frame.encode())) == [frame, frame]


@given(FRAMES, st.integers(0), st.integers(1, 255))
def test_a_damaged_frame_never_passes(frame, position, flip):
    damaged = bytearray(frame.encode())
    damaged[position % len(damaged)] ^= flip
    assert frame not in list(Decoder().feed(bytes(damaged)))


def test_payload_too_long_for_a_frame():
    with pytest.raises(ValueError, match="65536 bytes exceeds 65535"):
        Frame(1, 1, bytes(65536)).encode()


@pytest.fixture(scope="module")
def firmware(bundle):
    return build_firmware(bundle.image, board("nucleo-f446re"), ARENA)


@pytest.fixture
def emulator(firmware):
    return Emulator(firmware.board, firmware.elf)


def replies(emulator, data: bytes) -> list[Frame]:
    emulator.send(data)
    return list(Decoder().feed(emulator.receive()))


def test_firmware_says_what_it_is(emulator, bundle):
    reply = Link(emulator).request(Command.INFO)
    assert reply.status == 0
    assert reply.data[:4] == (8).to_bytes(4, "little")
    assert b"cortex-m4f, " in reply.data
    assert reply.ticks > len(bundle.image)


def test_firmware_answers_damage_and_then_goes_on(emulator):
    frame = Frame(Command.STACK, 7, b"").encode()
    for position in range(len(SYNC), len(frame)):
        damaged = bytearray(frame)
        damaged[position] ^= 0x10
        assert [f.command for f in replies(emulator, bytes(damaged))] == [DAMAGED]
    assert [f.command for f in replies(emulator, b"garbage \xe7\xe7" + frame)] == [Command.STACK | REPLY_BIT]


def test_firmware_is_not_lost_after_a_cut_frame(emulator):
    link = Link(emulator)
    emulator.send(Frame(Command.ENCODE, 99, bytes(192)).encode()[:-3])
    assert emulator.receive() == b""
    assert link.request(Command.STACK).status == 0


@settings(max_examples=30, deadline=None)
@given(garbage=st.binary(max_size=300))
def test_firmware_recovers_from_any_garbage(firmware, garbage):
    emulator = Emulator(firmware.board, firmware.elf)
    emulator.send(garbage)
    emulator.receive()
    assert Link(emulator).request(Command.STACK).status == 0


def test_payload_beyond_the_buffer_is_refused_and_skipped(emulator):
    too_long = Frame(Command.ENCODE, 1, bytes(5000)).encode()
    refused, fine = replies(emulator, too_long + Frame(Command.STACK, 2, b"").encode())
    assert (refused.command, refused.sequence) == (Command.ENCODE | REPLY_BIT, 1)
    assert REPLY.unpack_from(refused.payload)[0] == -1
    assert fine.sequence == 2


@pytest.mark.parametrize("command", [*set(Command) - {Command.INFO, Command.OPEN, Command.STACK}, 99])
def test_commands_out_of_turn_are_refused(emulator, command):
    (reply,) = replies(emulator, Frame(command, 1, bytes(6)).encode())
    assert REPLY.unpack_from(reply.payload)[0] == CLOSED


def test_an_unknown_command_is_refused(emulator, bundle):
    FramedDevice(bundle, emulator, HeadConfig(3, batch=1), ARENA)
    assert Link(emulator).request(99).status == -1


def test_a_device_that_was_reset_says_so(emulator, bundle):
    device = FramedDevice(bundle, emulator, HeadConfig(3, batch=1), ARENA)
    emulator.power_on()
    with pytest.raises(DeviceError, match="E_CLOSED: the device was reset, as by a loss of power") as refused:
        device.predict_features(np.zeros(8, np.int8))
    assert refused.value.status == "E_CLOSED"
    device.reset()
    assert device.predict_features(np.zeros(8, np.int8))[1] == pytest.approx(1 / 3)


def test_a_layer_that_is_not_there_is_refused(emulator, bundle):
    device = FramedDevice(bundle, emulator, HeadConfig(3, batch=1), ARENA)
    link = Link(emulator)
    assert link.request(Command.LAYERS, device.info.layers.to_bytes(2, "little") + bytes(192)).status == -1
    assert link.request(Command.LAYERS, b"\0").status == -1
    assert len(link.request(Command.LAYERS, b"\1\0" + bytes(192)).data) == 12


class Noisy:
    """A transport that loses, changes and invents bytes, twice at most before it lets two exchanges pass."""

    def __init__(self, transport, seed: int):
        self.transport = transport
        self.random = random.Random(seed)
        self.in_a_row = self.clean = self.damaged = 0

    def send(self, data: bytes) -> None:
        self.transport.send(self.noise(data))

    def receive(self, seconds: float) -> bytes:
        return self.noise(self.transport.receive(seconds))

    def noise(self, data: bytes) -> bytes:
        if self.in_a_row == 2:
            self.in_a_row, self.clean = 0, 4
        if not data or self.clean or self.random.random() < 0.5:
            self.clean = max(0, self.clean - bool(data))
            return data
        self.in_a_row += 1
        self.damaged += 1
        at = self.random.randrange(len(data))
        size = self.random.randint(0, 4)
        return data[:at] + self.random.randbytes(size) + data[at + self.random.randint(0, 4) :]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_noisy_line_changes_nothing_that_is_learned(firmware, bundle, seed):
    head = HeadConfig(3, batch=2, bytes_per_parameter=8, learning_rate=0.1, momentum=0.9)
    noisy = Noisy(Emulator(firmware.board, firmware.elf), seed)
    rng = random.Random(seed)
    board_device = FramedDevice(bundle, noisy, head, ARENA)
    host = HostDevice(bundle, ARENA, head=head)
    for _ in range(10):
        values = [rng.randint(-128, 127) for _ in range(8)]
        label = rng.randrange(3)
        assert board_device.learn_features(values, label) == host.learn_features(values, label)
    assert board_device.head().tobytes() == host.head().tobytes()
    assert noisy.damaged


def test_a_repeated_request_is_carried_out_once(emulator, bundle):
    head = HeadConfig(3, batch=1, learning_rate=0.1)
    device = FramedDevice(bundle, emulator, head, ARENA)
    request = Frame(Command.LEARN, 200, b"\1\0" + bytes(range(8))).encode()
    first, second = replies(emulator, request + request)
    assert first == second
    once = device.head()
    host = HostDevice(bundle, ARENA, head=head)
    host.learn_features(list(range(8)), 1)
    assert once.tobytes() == host.head().tobytes()
    assert replies(emulator, Frame(Command.LEARN, 201, b"\1\0" + bytes(range(8))).encode()) != [first]


def test_no_answer_is_an_error_after_a_bounded_number_of_attempts():
    class Dead:
        sent = 0

        def send(self, data):
            self.sent += 1

        def receive(self, seconds):
            return b""

    dead = Dead()
    with pytest.raises(LinkError, match="no answer to STACK in 8 attempts; check the connection"):
        Link(dead).request(Command.STACK)
    assert dead.sent == ATTEMPTS
