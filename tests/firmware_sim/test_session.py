import json
from dataclasses import asdict

import numpy as np
import pytest
from networks import EVERY_LAYER, wrong_layers

from entropi.device.library import measure
from entropi.device.runtime import HostDevice
from entropi.device.session import DeviceError, HeadConfig
from entropi.firmware_sim.boards import BoardError
from entropi.firmware_sim.emulator import FaultError
from entropi.firmware_sim.session import Simulator

HEAD = HeadConfig(4, batch=3, bytes_per_parameter=8, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
ANY_HEAD = HeadConfig(2, batch=1)
INPUTS = np.random.default_rng(0).integers(-128, 128, (3, 3, 8, 8)).astype(np.int8)


def samples(count: int, side: int = 8) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(5)
    return [(rng.integers(0, 256, (3, side, side)).astype(np.uint8), int(rng.integers(4))) for _ in range(count)]


def test_board_and_host_agree_bit_for_bit(bundle):
    host = HostDevice(bundle, "16KiB", head=HEAD)
    with Simulator(bundle, budget="16KiB", head=HEAD) as device:
        assert device.need == host.need
        for image, label in samples(8):
            assert (device.features(image) == host.features(image)).all()
            assert device.learn(image, label) == host.learn(image, label)
        device.flush()
        host.flush()
        assert device.head().tobytes() == host.head().tobytes()
        for image, _ in samples(3):
            assert device.predict(image) == host.predict(image)
        assert device.accuracy(samples(5)) == host.accuracy(samples(5))


def test_every_kind_of_layer_is_the_same_on_the_board(every_layer):
    host = HostDevice(every_layer, "16KiB", head=ANY_HEAD)
    with Simulator(every_layer, budget="16KiB", head=ANY_HEAD) as device:
        for values in INPUTS:
            np.testing.assert_array_equal(device.encode(values), host.encode(values))
            assert not wrong_layers(device, EVERY_LAYER, values)


def test_instructions_of_the_layers_are_those_of_the_encoder(every_layer):
    """But for copying the features out, a few each, and about a dozen a layer that call the observer."""
    with Simulator(every_layer, budget="16KiB", head=ANY_HEAD) as device:
        device.encode(INPUTS[0])
        whole = device.ticks["encode"].last
        runs = device.run_layers(INPUTS[0])
        assert device.run_layers(INPUTS[0]) == runs
        around = 10 * device.info.features + 20 * device.info.layers
        assert sum(run.ticks for run in runs) == pytest.approx(whole, abs=around)


def test_two_sessions_cost_the_same(bundle):
    def footprint() -> dict:
        with Simulator(bundle, budget="16KiB", head=HEAD) as device:
            for image, label in samples(4):
                device.learn(image, label)
                device.predict(image)
            return device.footprint()

    first, second = footprint(), footprint()
    assert first == second
    assert json.loads(json.dumps(first)) == first
    calls = {name: cost["calls"] for name, cost in first["instructions"].items()}
    assert calls == {"encode": 8, "learn": 4, "predict": 4}
    learn = first["instructions"]["learn"]
    assert 0 < learn["min"] < learn["mean"] < learn["max"]
    encode = first["instructions"]["encode"]
    assert encode["min"] == encode["max"] == encode["last"] == encode["mean"]
    assert sum(n for part, n in first["ram"].items() if part != "given") == first["ram"]["given"] == 131072
    assert 0 < first["stack"]["used"] < 2048 < first["stack"]["given"] == first["ram"]["stack"]
    assert first["arena"] == {**asdict(measure(bundle.image, HEAD)), "given": 16384}


def test_budget_is_held_to_the_byte(bundle):
    need = measure(bundle.image, HEAD).total
    with Simulator(bundle, budget=need, head=HEAD) as device:
        assert (device.need.given, device.need.missing) == (need, 0)
    with pytest.raises(DeviceError, match=f"needed {need} bytes, given {need - 1}, missing 1;") as error:
        Simulator(bundle, budget=need - 1, head=HEAD)
    assert error.value.status == "E_ARENA"
    assert (error.value.need.total, error.value.need.given, error.value.need.missing) == (need, need - 1, 1)


def test_without_a_head_the_best_that_fits_is_planned(bundle):
    with Simulator(bundle, budget=8000, classes=5, learning_rate=0.2) as device:
        assert device.head_config.classes == 5
        assert device.need.total <= 8000


def test_board_without_enough_ram(bundle):
    with pytest.raises(BoardError, match="nucleo-f446re, RAM: needed .* given 131072, missing"):
        Simulator(bundle, budget="128KiB", head=HEAD)


def test_refusals(bundle):
    with Simulator(bundle, budget="16KiB", head=HEAD) as device:
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.encode(np.zeros((3, 9, 9), np.int8))
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.encode(np.zeros((3, 80, 80), np.int8))
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.run_layers(np.zeros((3, 9, 9), np.int8))
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.learn_features(np.zeros(8, np.int8), 4)
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.learn_features(np.zeros(8, np.int8), -1)
        with pytest.raises(DeviceError, match="E_ARGUMENT"):
            device.predict_features(np.zeros(7, np.int8))
        assert device.predict(samples(1)[0][0])[1] == 0.25


def test_closed_device(bundle):
    device = Simulator(bundle, budget="16KiB", head=HEAD)
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="the device is closed, FLUSH cannot be sent"):
        device.flush()


def test_watchdog_reaches_the_caller(bundle):
    with pytest.raises(FaultError, match="no end after 20000 instructions"):
        Simulator(bundle, budget="16KiB", head=HEAD, instruction_limit=20_000)
