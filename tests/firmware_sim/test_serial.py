"""A board at a serial port is what the emulated board is, to the bit, on a bad line too."""

import time

import numpy as np
import pytest
from pty_board import Faults, PtyBoard

from entropi.device.runtime import HostDevice
from entropi.device.session import HeadConfig
from entropi.firmware_sim.build import build_firmware
from entropi.firmware_sim.serial import SerialDevice
from entropi.firmware_sim.session import Simulator

BUDGET = 8192
HEAD = HeadConfig(3, batch=2, bytes_per_parameter=8, learning_rate=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def firmware(bundle):
    from entropi.firmware_sim.boards import board

    return build_firmware(bundle.image, board("nucleo-f446re"), BUDGET, 3 * 8 * 8, 8)


def lesson(device, count: int) -> tuple[list, bytes]:
    """Everything that a device answers in a session, and its head."""
    rng = np.random.default_rng(3)
    answers = []
    for image in rng.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8):
        features = device.features(image)
        answers += [
            features.tolist(),
            device.predict_features(features),
            device.learn_features(features, image[0, 0, 0] % 3),
        ]
    device.flush()
    return answers, device.head().tobytes()


def test_a_serial_session_is_the_simulators_to_the_bit(bundle, firmware):
    with Simulator(bundle, budget=BUDGET, head=HEAD) as simulator:
        expected = lesson(simulator, 20)
        cost = simulator.footprint()
    with PtyBoard(firmware) as board, SerialDevice(bundle, board.port, budget=BUDGET, head=HEAD) as device:
        assert lesson(device, 20) == expected
        found = device.footprint()
        assert (found["core"], found["arena"], found["ticks"]) == (cost["core"], cost["arena"], cost["instructions"])
        assert found["stack"] == cost["stack"]


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_line_changes_nothing_and_costs_seconds(bundle, firmware, seed):
    faults = Faults(seed, rate=0.1)
    expected = lesson(HostDevice(bundle, BUDGET, head=HEAD), 25)
    started = time.monotonic()
    with (
        PtyBoard(firmware, faults) as board,
        SerialDevice(bundle, board.port, budget=BUDGET, head=HEAD) as device,
    ):
        assert lesson(device, 25) == expected
    assert faults.count >= 10
    print("SECONDS", time.monotonic() - started, faults.count)
