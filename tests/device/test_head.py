"""The head: learning, its arena, and keeping it."""

from __future__ import annotations

import ctypes as c
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device import Bundle, DeviceError, HeadConfig, HostDevice, measure, plan_head
from entropi.device.bundle import Preprocessing
from entropi.device.library import ERASE_FUNCTION, TRANSFER_FUNCTION, CStore, library
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor

FEATURES = 24
HEAD = HeadConfig(classes=5, batch=4, bytes_per_parameter=8, learning_rate=0.3, momentum=0.9, weight_decay=0.01)


def bundle(features: int = FEATURES) -> Bundle:
    """An image without layers, whose features are its input."""
    centers = np.arange(features).astype(np.int8) - 5
    image, _ = write_image(Network({0: Tensor(features, 1, 1, 1.0, 0)}, 0, 0), Centering(centers, 1 / 400))
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))


def samples(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    means = rng.integers(-60, 60, (HEAD.classes, FEATURES))
    labels = rng.integers(0, HEAD.classes, count)
    noise = rng.integers(-60, 60, (count, FEATURES))
    return [((means[y] + n).astype(np.int8), int(y)) for y, n in zip(labels, noise, strict=True)]


def trained(head: HeadConfig, data) -> HostDevice:
    device = HostDevice(bundle(), "64KiB", head=head)
    for x, y in data:
        device.learn_features(x, y)
    return device


def sgd_in_float64(head: HeadConfig, data) -> np.ndarray:
    """Softmax regression by SGD with momentum as PyTorch defines it (weight decay on weights alone)."""
    centers, gain = np.arange(FEATURES) - 5, 1 / 400
    w = np.zeros((head.classes, FEATURES + 1))
    v = np.zeros_like(w)
    decay = np.r_[np.ones(FEATURES), 0] * head.weight_decay
    for start in range(0, len(data) - head.batch + 1, head.batch):
        gradient = np.zeros_like(w)
        for x, y in data[start : start + head.batch]:
            z = np.r_[(x.astype(float) - centers) * gain, 1.0]
            p = np.exp(w @ z - (w @ z).max())
            gradient += np.outer(p / p.sum() - np.eye(head.classes)[y], z) / head.batch
        v = head.momentum * v + gradient + decay * w
        w -= head.learning_rate * v
    return np.r_[w[:, :-1].ravel(), w[:, -1]]


@pytest.mark.parametrize("bytes_per_parameter", [12, 8, 4])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_learning_is_sgd(bytes_per_parameter, batch):
    momentum = 0.9 if bytes_per_parameter > 4 else 0.0
    head = replace(HEAD, bytes_per_parameter=bytes_per_parameter, momentum=momentum, batch=batch)
    data = samples(400)
    found = trained(head, data).head()
    np.testing.assert_allclose(found, sgd_in_float64(head, data), rtol=2e-4, atol=2e-5)


def test_a_gradient_buffer_changes_no_bit():
    data = samples(203)
    by_gradient, by_batch = (trained(replace(HEAD, bytes_per_parameter=n), data) for n in (12, 8))
    for device in (by_gradient, by_batch):
        device.flush()
    np.testing.assert_array_equal(by_gradient.head().view(np.uint32), by_batch.head().view(np.uint32))


def test_it_learns():
    device = trained(replace(HEAD, weight_decay=0.0), samples(2000))
    held_out = samples(2300)[2000:]
    assert np.mean([device.predict_features(x)[0] == y for x, y in held_out]) > 0.95


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 40), batch=st.integers(1, 40), mode=st.sampled_from([4, 8, 12]), features=st.integers(1, 99)
)
def test_one_byte_too_few_is_refused_with_the_number(classes, batch, mode, features):
    head = HeadConfig(classes, batch, mode)
    image = bundle(features).image
    need = measure(image, head)
    assert need.total == sum(
        (need.weights, need.momentum, need.gradient, need.batch, need.replay, max(need.encoder, need.learning))
    )
    HostDevice(bundle(features), need.total, head=head).close()
    with pytest.raises(DeviceError) as refused:
        HostDevice(bundle(features), need.total - 1, head=head)
    assert (refused.value.status, refused.value.need.missing) == ("E_ARENA", 1)
    assert f"needed {need.total} bytes, given {need.total - 1}, missing 1" in str(refused.value)


def test_the_runtime_stays_inside_its_arena():
    """Guard bytes behind an arena of exactly the measured size survive opening, learning and predicting."""
    device = HostDevice(bundle(), "64KiB", head=HEAD)
    total = device.need.total
    memory = np.frombuffer(device._arena, np.uint8)
    memory[total:] = 0xA5
    for x, y in samples(50):
        device.encode(x.reshape(FEATURES, 1, 1))
        device.learn_features(x, y)
        device.predict_features(x)
    device.flush()
    assert (memory[total:] == 0xA5).all()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1}, {"classes": 70000}, {"batch": 0}, {"bytes_per_parameter": 6}, {"learning_rate": 0.0},
        {"learning_rate": float("nan")}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"bytes_per_parameter": 4},
    ],
)  # fmt: skip
def test_a_head_out_of_range_is_refused(change):
    with pytest.raises(DeviceError, match="E_ARGUMENT"):
        HostDevice(bundle(), "64KiB", head=replace(HEAD, **change))


def test_a_label_out_of_range_is_refused():
    device = HostDevice(bundle(), "64KiB", head=HEAD)
    with pytest.raises(DeviceError, match="label 5 is not below 5 classes"):
        device.learn_features(samples(1)[0][0], 5)


def test_an_infinite_loss_leaves_the_head_alone():
    device = HostDevice(bundle(), "64KiB", head=replace(HEAD, learning_rate=9e8, momentum=0.99, weight_decay=0.0, batch=1))
    with pytest.raises(DeviceError, match="E_NUMERIC"):
        for x, y in samples(2000):
            before = device.head()
            device.learn_features(x, y)
    np.testing.assert_array_equal(device.head(), before)


def test_exp_and_log_are_close():
    exp, log = library().exp_negative, library().log_above_one
    for function in (exp, log):
        function.argtypes, function.restype = [c.c_float], c.c_float
    for x in np.linspace(-87, 0, 4001, dtype=np.float32):
        assert exp(x) == pytest.approx(np.exp(np.float64(x)), rel=4e-7)
    assert exp(-100.0) == 0.0
    for x in np.geomspace(1, 1e30, 4001, dtype=np.float32):
        assert log(x) == pytest.approx(np.log(np.float64(x)), rel=4e-7, abs=2e-7)


def test_save_and_restore(tmp_path):
    device = trained(HEAD, samples(100))
    saved = device.head()
    device.save(tmp_path / "head")
    for x, y in samples(40, seed=9):
        device.learn_features(x, y)
    assert (device.head() != saved).any()
    device.restore(tmp_path / "head")
    np.testing.assert_array_equal(device.head(), saved)

    other = HostDevice(bundle(FEATURES - 1), "64KiB", head=HEAD)
    with pytest.raises(DeviceError, match="E_EMPTY"):
        other.restore(tmp_path / "head")


class FailingFlash:
    """Two slots of flash whose power fails after `writes` bytes have been written or erased."""

    def __init__(self, slot_bytes: int):
        self.slots = [bytearray(b"\xff" * slot_bytes) for _ in range(2)]
        self.left = 1 << 30
        self.store = CStore(
            None, slot_bytes, ERASE_FUNCTION(self.erase), TRANSFER_FUNCTION(self.write), TRANSFER_FUNCTION(self.read)
        )

    def put(self, slot: int, offset: int, data: bytes) -> int:
        kept = data[: max(self.left, 0)]
        self.left -= len(data)
        self.slots[slot][offset : offset + len(kept)] = kept
        return int(len(kept) != len(data))

    def erase(self, _, slot):
        return self.put(slot, 0, b"\xff" * len(self.slots[slot]))

    def write(self, _, slot, offset, data, length):
        return self.put(slot, offset, c.string_at(data, length))

    def read(self, _, slot, offset, data, length):
        c.memmove(data, bytes(self.slots[slot][offset : offset + length]), length)
        return 0


def test_a_power_cut_leaves_the_old_head_or_the_new():
    head = HeadConfig(classes=2, batch=1)
    device = HostDevice(bundle(3), "64KiB", head=head)
    slot_bytes = 24 + device.need.weights

    def call(name: str, flash: FailingFlash) -> int:
        return getattr(library(), name)(c.byref(device._self), c.byref(flash.store))

    for cut in range(2 * slot_bytes + 1):
        flash = FailingFlash(slot_bytes)
        device.learn_features(np.array([50, -20, 3], np.int8), 0)
        old = device.head()
        assert call("entropi_save", flash) == 0
        device.learn_features(np.array([-50, 20, 9], np.int8), 1)
        new = device.head()
        flash.left = cut
        failed = call("entropi_save", flash) != 0
        flash.left = 1 << 30
        assert call("entropi_restore", flash) == 0
        np.testing.assert_array_equal(device.head(), old if failed else new)


def test_the_plan_takes_what_fits_and_says_what_it_gave_up():
    image = bundle(512).image
    roomy, tight = plan_head(image, 200_000, 10), plan_head(image, 24_000, 10)
    assert (roomy.head.bytes_per_parameter, roomy.gave_up) == (8, ())
    assert tight.head.bytes_per_parameter == 4 and tight.need.total <= 24_000
    assert "momentum" in tight.gave_up[0]
    with pytest.raises(DeviceError, match="E_ARENA: needed .* given 20000, missing"):
        plan_head(image, 20_000, 10)
